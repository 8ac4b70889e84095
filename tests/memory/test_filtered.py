"""Passages that satisfy a condition: which those are, and that the best of them are found in every way."""

import random
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

from latentrag.conditions import And, Condition, condition_of
from latentrag.errors import InputError, MemoryStoreError
from latentrag.marginal import log_prior
from latentrag.memory import LiveMemory, Memory
from latentrag.memory.indexes import index
from latentrag.memory.table import Table
from latentrag.retriever import BM25Retriever
from latentrag.retriever.hybrid import HybridRetriever
from latentrag.types import Passage
from tests.conditions import drawn, drawn_passages, holds
from tests.memory.conftest import FakePassageEncoder
from tests.memory.test_fields import without_column
from tests.retriever.test_bm25 import bm25

__all__ = ["without_column"]
SIZE = 60


class QueryEncoder:
    """q(x) drawn from the text, of the same space as the passages' vectors."""

    dimension, scale, passage_fingerprint = 8, 1.0, "f1"
    module = torch.nn.Module()

    def save(self, folder):
        raise AssertionError("nothing is saved")

    def encode_queries(self, x):
        return torch.from_numpy(np.stack([FakePassageEncoder().vector(text) for text in x]))


CONDITIONS = 1_000


@pytest.fixture(scope="module")
def passages():
    return drawn_passages(SIZE, random.Random(0))


@pytest.fixture(scope="module")
def memory(tmp_path_factory, passages):
    path = tmp_path_factory.mktemp("filtered") / "memory.lance"
    return Memory.create(path, FakePassageEncoder()).add(passages, FakePassageEncoder())


@pytest.fixture(scope="module")
def vectors(memory):
    """(N, D) as they are kept."""
    return np.concatenate([block for _, block in memory.table.vectors()]).astype(np.float64)


@pytest.fixture
def read_before(memory, monkeypatch):
    """A thousand reads of a few rows each take longer than what is tested."""
    rows = memory.table.take(memory.columns.row_ids.tolist())
    monkeypatch.setattr(Table, "take", lambda _, row_ids: {row: rows[row] for row in row_ids})


def conditions(number: int) -> list[Condition]:
    draw = random.Random(1)
    return [condition_of("id is not null"), condition_of("id = 'p7'"), *(drawn(draw) for _ in range(number - 2))]


@pytest.fixture(scope="module")
def cases(passages):
    """Conditions, and which rows satisfy each."""
    return [(each, satisfying(each, passages)) for each in conditions(CONDITIONS)]


def satisfying(condition: Condition, passages: list[Passage]) -> list[int]:
    return [row for row, passage in enumerate(passages) if holds(condition, passage)]


def brute_force(
    passages: list[Passage], vectors: np.ndarray, q: np.ndarray, k: int, left: list[int]
) -> list[tuple[str, float]]:
    """Ids and scores of the K best of those left: float64 sums, rounded once; equal ones in their order."""
    scores = (vectors * q).sum(axis=1).astype(np.float32)
    best = sorted(left, key=lambda row: (-scores[row], row))[:k]
    return [(passages[row].id, float(scores[row])) for row in best]


def found_by(memory, q: np.ndarray, k: int, condition: Condition) -> list[tuple[str, float]]:
    try:
        found = memory.where(condition).search(q[None], k)
    except InputError as error:
        assert str(error).startswith("0 passages satisfy")  # noqa: PT017
        return []
    return [(z.id, score) for z, score in zip(found.passages[0], found.scores[0].tolist(), strict=True)]


def test_dense_search_is_brute_force_over_what_is_left(memory, passages, vectors, cases, read_before):
    random_numbers = np.random.default_rng(2)
    for condition, left in cases:
        q, k = random_numbers.standard_normal(8).astype(np.float32), int(random_numbers.integers(1, 9))
        assert found_by(memory, q, k, condition) == brute_force(passages, vectors, q, k, left), condition
    assert {0, 1, SIZE} <= {len(left) for _, left in cases}


def test_bm25_is_brute_force_over_what_is_left(memory, passages, cases, read_before):
    retriever = BM25Retriever(memory)
    questions = ["paris river", "prince of denmark", "letter capital seine seine", "nothing known"]
    of_all = {x: np.array(bm25(x, passages)) for x in questions}
    draw = random.Random(3)
    for condition, left in cases:
        x, k = draw.choice(questions), draw.randint(1, 8)
        filtered = retriever.over(memory.where(condition))
        if not left:
            with pytest.raises(InputError, match="^0 passages satisfy"):
                filtered.retrieve([x], k)
            continue
        found = filtered.retrieve([x], k)
        scores = found.parts["bm25"][0].tolist()
        rows = [int(z.id[1:]) for z in found.passages[0]]
        np.testing.assert_allclose(scores, of_all[x][rows], rtol=1e-5)
        rest = [row for row in left if row not in rows]
        assert set(rows) <= set(left)
        assert len(rows) == min(k, len(left))
        assert not rest or of_all[x][rest].max() <= min(scores) + 1e-5
        assert all(a > b or (a == b and i < j) for (a, i), (b, j) in pairwise(zip(scores, rows, strict=True)))


@pytest.mark.parametrize("kind", ["ivf-rabitq", "hnsw"])
@pytest.mark.parametrize("changed", [False, True])
def test_with_stored_indexes(tmp_path, encoder, hnsw, passages, kind, changed):
    """Also one that was built before some passages came and others went."""
    path = tmp_path / "memory.lance"
    memory = Memory.create(path, encoder).add(passages[:50] if changed else passages, encoder)
    memory.build_index(kind)
    now = passages
    if changed:
        Memory.open(path).delete(["p3", "p30"]).add(passages[50:], encoder)
        now = [passage for passage in passages if passage.id not in {"p3", "p30"}]
    memory = Memory.open(path, index=kind)
    with warnings.catch_warnings(action="ignore"):  # much has changed
        memory.warm_up()
    vectors = np.stack([encoder.vector(z.text) for z in now]).astype(np.float16).astype(np.float64)
    q = np.random.default_rng(4).standard_normal(8).astype(np.float32)
    assert memory.index.kind == kind
    for condition in conditions(60):
        assert found_by(memory, q, 5, condition) == brute_force(now, vectors, q, 5, satisfying(condition, now))


@pytest.mark.parametrize("kind", ["flat", "ivf-rabitq"])
def test_where_too_many_are_left_for_scoring_all(tmp_path, encoder, monkeypatch, passages, kind):
    monkeypatch.setattr(index, "ROWS_SCORED", 0)
    path = tmp_path / "memory.lance"
    Memory.create(path, encoder).add(passages, encoder).build_index(kind)
    vectors = np.stack([encoder.vector(z.text) for z in passages]).astype(np.float16).astype(np.float64)
    memory, q = Memory.open(path), np.random.default_rng(4).standard_normal(8).astype(np.float32)
    for condition in conditions(60):
        left = satisfying(condition, passages)
        assert found_by(memory, q, 5, condition) == brute_force(passages, vectors, q, 5, left)


def test_the_prior_is_over_what_is_left(memory, passages):
    """Softmax over the K best of those that satisfy the condition, of the scores that they have among all."""
    every = BM25Retriever(memory).retrieve(["paris river"], SIZE)
    logit = dict(zip((z.id for z in every.passages[0]), every.logits[0].tolist(), strict=True))
    condition = condition_of("language = 'de'")
    few = BM25Retriever(memory.where(condition)).retrieve(["paris river"], 4)
    left = sorted((logit[z.id] for z in passages if holds(condition, z)), reverse=True)[:4]
    weights = np.exp(left) / np.exp(left).sum()
    np.testing.assert_allclose(log_prior(few.logits).exp()[0].tolist(), weights, rtol=1e-5)


def test_the_sum_of_experts_chooses_among_what_is_left(memory, passages, cases, read_before):
    """Where both experts propose everything, the best of it is what a scan finds."""
    retriever = HybridRetriever(QueryEncoder(), memory, num_candidates=SIZE)
    x = "paris river of the prince"
    every = retriever.retrieve([x], SIZE)
    logit = dict(zip((z.id for z in every.passages[0]), every.logits[0].tolist(), strict=True))
    for condition, left in cases[:200]:
        if not left:
            continue
        found = retriever.over(memory.where(condition)).retrieve([x], 5)
        best = sorted((logit[passages[row].id] for row in left), reverse=True)[:5]
        assert found.logits[0].tolist() == pytest.approx(best, rel=1e-5), condition


def test_what_is_seen_of_a_scope_does_not_depend_on_the_rest(memory, passages):
    scope = condition_of("language in ('de', 'fr')")
    seen = [z for z in passages if holds(scope, z)]
    bounded = memory.only(scope)
    assert list(bounded.passages()) == seen
    assert len(bounded) == len(seen)
    retriever = BM25Retriever(memory).over(bounded)
    found = retriever.retrieve(["paris river"], len(seen))
    expected = dict(zip((z.id for z in seen), bm25("paris river", seen), strict=True))
    scores = found.parts["bm25"][0].tolist()
    np.testing.assert_allclose(scores, [expected[z.id] for z in found.passages[0]], rtol=1e-5)
    further = condition_of("draft = true")
    found = retriever.over(bounded.where(further)).retrieve(["paris river"], SIZE)
    assert {z.id for z in found.passages[0]} == {z.id for z in seen if holds(further, z)}
    scores = found.parts["bm25"][0].tolist()
    np.testing.assert_allclose(scores, [expected[z.id] for z in found.passages[0]], rtol=1e-5)


def test_as_a_memory(memory, passages):
    condition = condition_of("year < 1985")
    left, some = [z for z in passages if holds(condition, z)], memory.where("year < 1985")
    gone = next(z for z in passages if not holds(condition, z))
    assert list(some.passages()) == left
    assert some.get([left[1].id, left[0].id]) == [left[1], left[0]]
    with pytest.raises(InputError, match="1 ids are not among the passages that satisfy the condition: 'p"):
        some.get([gone.id])
    assert some.find([gone.id, left[0].id]) == {left[0].id: left[0]}
    assert some.version == memory.version
    assert some.identity not in {memory.identity, memory.where("year < 1986").identity}
    both = some.where("draft = true")
    assert list(both.passages()) == [z for z in passages if holds(And((condition, condition_of("draft=true"))), z)]
    one = memory.where("id = 'p7'")
    assert list(one.passages()) == [passages[7]]


def test_true_is_not_one(memory, passages):
    """In Python they are equal, and conditions that were asked before are kept."""
    with_one = [z.id for z in memory.where("mixed = 1").passages()]
    with_true = [z.id for z in memory.where("mixed = true").passages()]
    assert with_one == [z.id for z in passages if z.fields.get("mixed") == 1 and z.fields["mixed"] is not True]
    assert with_true == [z.id for z in passages if z.fields.get("mixed") is True]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("dat > '2024-01-01'", "no passage has a field 'dat'; there are: id, title, source, page, a b, date, draft, "),
        ("year = '1984'", "the field 'year' has numbers, got the text '1984'; write the value without quotes"),
        ("language = 1", "the field 'language' has texts, got the number 1; write the value in single quotes"),
        ("draft in ('true')", "the field 'draft' has booleans, got the text 'true'; write the value without quotes"),
    ],
)
def test_what_cannot_be_asked(memory, where, said):
    with pytest.raises(InputError) as caught:
        len(memory.where(where))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scope_knows_fields_of_its_own_passages_alone(path, encoder):
    kept = [Passage("a", "one", fields={"team": "x", "open": 1}), Passage("b", "two", fields={"team": "y", "pay": 9})]
    memory = Memory.create(path, encoder).add(kept, encoder)
    seen = memory.only("team = 'x'")
    for where in ("pay > 3", "never = 3"):
        with pytest.raises(InputError, match="no passage has a field '.*'; there are: id, title, source, page, open, "):
            seen.where(where)
    with pytest.raises(InputError, match=r"^0 passages satisfy team = 'y'; widen the condition$"):
        seen.where("team = 'y'").search(np.ones((1, 8), np.float32), 1)
    nothing = memory.only("team = 'z'")
    assert len(nothing) == 0
    with pytest.raises(MemoryStoreError, match="^the memory has no passages at version 2$"):
        nothing.search(np.ones((1, 8), np.float32), 1)
    assert len(memory.only("unknown = 1")) == 0


def test_of_a_live_memory_the_version_that_is_there(path, encoder, make_encoder):
    first = Memory.create(path, encoder).add([Passage("a", "one", fields={"n": 1})], encoder)
    live = LiveMemory(first)
    some = live.where("n >= 1")
    kept = some.snapshot()
    live.use(first.add([Passage("b", "two", fields={"n": 2})], encoder))
    assert [z.id for z in some.passages()] == ["a", "b"]
    assert [z.id for z in kept.passages()] == ["a"]
    assert (some.version, kept.version) == (3, 2)
    assert [z.id for z in some.at(2).passages()] == ["a"]


def test_of_a_memory_from_before_there_were_fields(path, encoder, without_column):
    memory = Memory.create(path, encoder).add([Passage("old", "text", "title", page=3)], encoder)
    assert "fields" not in memory.table.dataset.schema.names
    assert len(memory.where("title = 'title' and page > 2")) == 1
    with pytest.raises(InputError, match="no passage has a field 'date'; there are: id, title, source, page$"):
        memory.where("date is null")


def test_the_place_of_a_source_is_without_the_folders_of_this_machine(path, encoder):
    kept = [Passage("notes/a.md#0", "one", source="/home/ann/notes/a.md"), Passage("x", "two", source="b.md")]
    memory = Memory.create(path, encoder).add(kept, encoder)
    assert len(memory.where("place = 'notes/a.md'")) == 1
    assert len(memory.where("place like '%ann%'")) == 0
    assert len(memory.where("source like '%ann%'")) == 1
