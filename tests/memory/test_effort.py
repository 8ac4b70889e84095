"""How far an ivf-rabitq index is searched is measured when it is built, and kept."""

import json

import numpy as np
import pytest

from latentrag.errors import IndexDamagedError
from latentrag.memory import Memory
from latentrag.memory.indexes import building, ivf_rabitq
from latentrag.memory.indexes.building import EFFORTS, NEEDED, opened, read_effort
from latentrag.memory.indexes.folder import EFFORT
from latentrag.memory.indexes.stored import StoredIndex
from tests.memory.indexing import build, built, drawn, forge, make_table, recall_at, rows_of
from tests.noting import noting

NUM_ROWS, DIMENSION, USUAL_PROBES = 3_000, 64, 30


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Of vectors without any order, few of whose lists are usually looked at."""
    monkeypatch.setattr(ivf_rabitq, "default_probes", lambda *_: USUAL_PROBES)
    monkeypatch.setattr(building, "NUM_QUESTIONS", 40)
    monkeypatch.setattr(building, "NEEDED", {5: 0.9, 100: 0.9})
    vectors = np.random.default_rng(0).standard_normal((NUM_ROWS, DIMENSION))
    return make_table(tmp_path / "m.lance", vectors.astype(np.float16))


def shares(index, table) -> dict[int, float]:
    rows = rows_of(table)
    q = rows.vectors[np.unique(np.linspace(0, NUM_ROWS - 1, building.NUM_QUESTIONS).astype(np.int64))]
    return {k: recall_at(index, [rows], q.astype(np.float32), k) for k in NEEDED}


def test_vectors_that_are_easy_to_find_need_no_effort(tmp_path):
    assert built(make_table(tmp_path / "m.lance", drawn(500, 40)), "ivf-rabitq").proposer.effort == 1


@pytest.mark.parametrize("needed", [{5: 0.82, 100: 0.5}, {5: 0.5, 100: 0.98}, {5: 0.95, 100: 0.6}])
def test_the_least_effort_that_finds_what_is_needed(table, monkeypatch, needed):
    monkeypatch.setattr(building, "NEEDED", needed)
    index = built(table, "ivf-rabitq")
    chosen = index.proposer.effort
    found = {}
    for index.proposer.effort in EFFORTS:
        found[index.proposer.effort] = shares(index, table)
    assert 1 < chosen < EFFORTS[-1]
    enough = [each for each in EFFORTS if all(found[each][k] >= share for k, share in needed.items())]
    assert chosen == enough[0]


def test_where_nothing_is_enough_it_is_the_greatest_and_is_said(table, monkeypatch):
    monkeypatch.setattr(building, "NEEDED", {5: 1.1, 100: 0.1})
    with pytest.warns(UserWarning, match=r"finds \d+\.\d% of the 5 best and .* meant to find 110\.0% and 10\.0%; the"):
        assert built(table, "ivf-rabitq").proposer.effort == EFFORTS[-1]


@pytest.mark.parametrize("factor", EFFORTS)
def test_it_multiplies_lists_and_candidates(table, monkeypatch, factor):
    proposer = built(table, "ivf-rabitq").proposer
    looked_at: list[int] = []
    proposer.effort = 1.0
    few, many = proposer.num_rescored(1), proposer.num_rescored(1_000)
    scan = ivf_rabitq.IvfRabitq._scan
    monkeypatch.setattr(
        ivf_rabitq.IvfRabitq,
        "_scan",
        noting(scan, lambda _self, _turned, _num, _live, chosen: looked_at.append(len(chosen))),
    )
    monkeypatch.setattr(ivf_rabitq, "LOOKED_AT_FIRST", 1_000)  # none is left out
    proposer.effort = factor
    assert proposer.num_rescored(1_000) == pytest.approx(factor * many, rel=0.02)
    assert few * factor**0.5 - 1 <= proposer.num_rescored(1) <= few * factor + 1
    assert len(proposer.propose(drawn(1, DIMENSION)[0].astype(np.float32), 3, None)) == 3
    assert looked_at == [USUAL_PROBES * factor]


def test_it_is_kept_with_the_index(table):
    published = build(table, "ivf-rabitq")
    kept = json.loads((published.folder / EFFORT).read_text())
    index = opened(published)
    assert index.proposer.effort == kept["effort"] > 1
    assert kept["recall"] == {str(k): pytest.approx(share) for k, share in shares(index, table).items()}
    assert build(table, "ivf-rabitq") == published  # nothing is made twice


def test_an_index_without_it_is_thrown_away_and_built_anew(table):
    """As builds made them before effort was measured."""
    published = build(table, "ivf-rabitq")
    forge(published.folder, without=EFFORT)
    (published.folder / EFFORT).unlink()
    with pytest.warns(UserWarning, match=r"effort\.json is missing; this index is thrown away"):
        index = Memory.open(table.path, index="ivf-rabitq").index
    assert isinstance(index, StoredIndex)
    assert index.proposer.effort > 1


WITHOUT_RECALL = ["", "[]", "{}", '{"effort": 1}', '{"effort": 1, "recall": [1]}', '{"effort": 1, "recall": {"x": 1}}']


@pytest.mark.parametrize(
    "content", [*WITHOUT_RECALL, *(f'{{"effort": {each}, "recall": {{}}}}' for each in ("null", "1e9", "0.5", "NaN"))]
)
def test_what_is_no_effort_is_damage(tmp_path, content):
    (tmp_path / EFFORT).write_text(content)
    with pytest.raises(IndexDamagedError, match=r"effort\.json"):
        read_effort(tmp_path)


def test_one_passage(tmp_path):
    table = make_table(tmp_path / "m.lance", drawn(1, 8))
    assert len(built(table, "ivf-rabitq")) == 1
    assert Memory.open(table.path).index.search(np.ones((1, 8), np.float32), 1).row_ids.shape == (1, 1)
