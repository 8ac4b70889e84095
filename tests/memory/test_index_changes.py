"""An index of one version serves others: against an index built anew, through adds, deletes, compaction and time."""

import warnings

import lance
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentrag.errors import IndexDamagedError
from latentrag.memory import Memory
from latentrag.memory.indexes import changes, supply
from latentrag.memory.indexes.building import opened
from latentrag.memory.indexes.changes import difference, fragments, rows_with
from latentrag.memory.indexes.folder import FOLDER
from latentrag.memory.indexes.index import Rows
from latentrag.memory.table import Table
from latentrag.types import Passage
from tests.memory.indexing import STORED_KINDS, append, assert_found, built, drawn, make_table, rows_of, thorough
from tests.noting import noting

few = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Q = np.random.default_rng(9).standard_normal((3, 6)).astype(np.float32)


def compacted(table: Table) -> Table:
    lance.dataset(str(table.path)).optimize.compact_files()
    return Table.open(table.path)


def restored(table: Table, version: int) -> Table:
    lance.dataset(str(table.path), version=version).restore()
    return Table.open(table.path)


def without(table: Table, ids: list[str]) -> Table:
    return table.commit(None, removed_ids=ids, change="deleted")


def test_the_table_keeps_its_promises_about_row_ids(tmp_path):
    """They rise with every commit, survive compaction, and are never used twice. All of this rests on it."""
    first = append(make_table(tmp_path / "m.lance", drawn(30, 6)), drawn(30, 6, seed=1), prefix="q")
    thinned = without(first, ["p3", "q7"])
    compact = compacted(thinned)
    grown = append(compact, drawn(5, 6, seed=2), prefix="r")
    back = append(restored(grown, first.version), drawn(5, 6, seed=3), prefix="s")
    anew = back.replace_all(back.stage([back.record_batch([Passage("x", "t")], drawn(1, 6))]), change="all replaced")
    ids = [rows_of(table).row_ids for table in (first, thinned, compact, grown, back, anew)]
    assert all((np.diff(each) > 0).all() for each in ids)
    assert np.array_equal(ids[1], ids[2])
    assert np.array_equal(rows_of(thinned).vectors, rows_of(compact).vectors)
    assert not np.isin(ids[4][-5:], ids[3]).any()
    assert not np.isin(ids[5], np.concatenate(ids[:5])).any()


def moved_behind(path) -> tuple[Table, Table]:
    """Three files of rows, and a version with the first written anew without p0: Lance puts it behind the others."""
    table = make_table(path, drawn(20, 6))
    for seed, prefix in ((1, "q"), (2, "r")):
        table = append(table, drawn(20, 6, seed=seed), prefix=prefix)
    kept = [fragment.fragment_id for fragment in table.dataset.get_fragments()][1:]
    return table, without(table, ["p0"]).compact(deleted_share=0.0, keep=kept)


def by_row_id(table: Table) -> Rows:
    rows = rows_of(table)
    order = np.argsort(rows.row_ids)
    return Rows(rows.row_ids[order], rows.vectors[order])


@pytest.mark.parametrize("kind", ["flat", *STORED_KINDS])
def test_rows_that_a_compaction_puts_behind_others_are_found_and_left_out_as_before(tmp_path, kind):
    before, moved = moved_behind(tmp_path / "m.lance")
    assert (np.diff(rows_of(moved).row_ids) < 0).any()
    if kind != "flat":
        built(moved, kind)
    indexes = supply.IndexSupply(kind)
    thinned = without(moved, ["p3", "q4", "r19"])
    for table in (moved, thinned, append(thinned, drawn(2, 6, seed=3), prefix="s"), before):
        assert_found(indexes.index_for(table), by_row_id(table), Q, 5)


@few
@given(
    kind=st.sampled_from(["flat", *STORED_KINDS]),
    steps=st.lists(st.sampled_from(["add", "upsert", "delete", "compact", "restore"]), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_edits_reach_an_index_as_they_reach_one_built_anew(tmp_path_factory, make_encoder, kind, steps, seed):
    path, encoder, rng = tmp_path_factory.mktemp("t") / "m.lance", make_encoder(6), np.random.default_rng(seed)
    memory = Memory.create(path, encoder).add([Passage(f"p{i}", f"text {i}") for i in range(40)], encoder)
    if kind != "flat":
        memory.build_index(kind)
    memory = Memory.open(path, index=kind)
    memory.search(Q, 1)
    versions = [memory]
    for step in steps:
        ids = [passage.id for passage in memory.passages()]
        some = [str(each) for each in rng.choice(ids, min(3, len(ids) - 1), replace=False)]
        new = [f"n{len(versions)}-{i}" for i in range(3)]
        if step == "add":
            memory = memory.add([Passage(each, each) for each in new], encoder)
        elif step == "upsert":
            memory = memory.upsert([Passage(each, f"changed {each}") for each in [*some, new[0]]], encoder)
        elif step == "delete":
            memory = memory.delete(some)
        elif step == "compact":
            compacted(memory._table)
            memory = Memory(Table.open(path), memory._indexes)
        else:
            restored(memory._table, int(rng.integers(2, memory.version + 1)))
            memory = Memory(Table.open(path), memory._indexes)
        versions.append(memory)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has changed since its index was built")
        for version in [*versions, *(Memory.open(path, version=each.version, index=kind) for each in versions)]:
            rows = rows_of(version._table)
            assert_found(thorough(version).index, rows, Q, min(7, len(version)))
            texts = {passage.id: passage.text for passage in version.passages()}
            found = version.search(Q, min(7, len(version)))
            assert all(texts[z.id] == z.text for passages in found.passages for z in passages)


@pytest.mark.parametrize("way", ["looked up", "scanned"])
def test_the_difference_of_two_versions(tmp_path, monkeypatch, way):
    monkeypatch.setattr(changes, "SCANNED_SHARE", 2.0 if way == "looked up" else 0.0)
    monkeypatch.setattr("latentrag.memory.table.ROWS_PER_LOOKUP", 4)
    old = append(make_table(tmp_path / "m.lance", drawn(50, 6)), drawn(20, 6, seed=1), prefix="q")
    new = append(without(old, ["p0", "p49", "q5"]), drawn(11, 6, seed=2), prefix="r")
    for one, other in ((old, new), (new, old), (old, compacted(new)), (new, compacted(new)), (old, old)):
        before, now = rows_of(one), rows_of(other)
        found = difference(other, fragments(one), before.row_ids)
        assert np.array_equal(found.removed, np.setdiff1d(before.row_ids, now.row_ids))
        assert np.array_equal(found.added, np.setdiff1d(now.row_ids, before.row_ids))
        added = rows_with(other, found.added)
        assert np.array_equal(added.row_ids, found.added)
        assert np.array_equal(added.vectors, now.vectors[np.isin(now.row_ids, found.added)])


def test_what_did_not_change_is_not_read(tmp_path, monkeypatch):
    table = make_table(tmp_path / "m.lance", drawn(50, 6))
    before, row_ids = fragments(table), rows_of(table).row_ids
    grown = append(table, drawn(5, 6, seed=1), prefix="q")
    read, original = [], Table.row_ids

    def counted(table, chosen):
        found = original(table, chosen)
        read.append(len(found))
        return found

    monkeypatch.setattr(Table, "row_ids", counted)
    assert len(difference(grown, before, row_ids).added) == 5
    assert sum(read) == 5


@pytest.mark.parametrize("kind", STORED_KINDS)
def test_a_thousand_queries_never_bring_back_what_was_deleted(tmp_path, make_encoder, kind):
    encoder = make_encoder(6)
    passages = [Passage(f"p{i}", f"text {i}") for i in range(300)]
    memory = Memory.create(tmp_path / "m.lance", encoder).add(passages, encoder)
    memory.build_index(kind)
    gone = {f"p{i}" for i in range(0, 300, 12)}
    changed = Memory.open(memory.path, index=kind).delete(gone)
    q = np.random.default_rng(0).standard_normal((1_000, 6)).astype(np.float32)
    assert not {z.id for passages in changed.search(q, 5).passages for z in passages} & gone
    assert changed.index.kind == kind


def names(path) -> list[str]:
    return sorted(folder.name for folder in (path / FOLDER).glob("*-*-*/"))


def test_one_index_serves_every_version_near_it(tmp_path, make_encoder, monkeypatch):
    encoder = make_encoder(6)
    memory = Memory.create(tmp_path / "m.lance", encoder)
    memory = memory.add([Passage(f"p{i}", f"text {i}") for i in range(100)], encoder)
    memory.build_index("ivf-rabitq")
    published = names(memory.path)
    loads: list[object] = []
    monkeypatch.setattr(supply, "opened", noting(opened, loads.append))
    memory = Memory.open(memory.path)  # auto takes what was built
    for i in range(4):
        memory = memory.add([Passage(f"q{i}", f"more {i}")], encoder)
        assert memory.index.kind == "ivf-rabitq"
        assert memory.search(encoder.vector(f"more {i}")[None], 1).version == memory.version
    assert len(loads) == 1
    assert names(memory.path) == published
    assert Memory.open(memory.path, version=3).index.kind == "ivf-rabitq"


def test_an_index_that_has_drifted_is_said_once_and_refused_when_it_is_of_no_use(tmp_path, make_encoder):
    encoder = make_encoder(6)
    memory = Memory.create(tmp_path / "m.lance", encoder)
    memory = memory.add([Passage(f"p{i}", f"text {i}") for i in range(100)], encoder)
    memory.build_index("ivf-rabitq")
    memory = Memory.open(memory.path).delete([f"p{i}" for i in range(20)])
    with pytest.warns(
        UserWarning, match=r"^20% of .* changed since its index was built at version 2; `latentrag index"
    ):
        assert memory.index.kind == "ivf-rabitq"
    memory = memory.delete(["p20"])
    assert memory.index.kind == "ivf-rabitq"  # said already
    memory = memory.delete([f"p{i}" for i in range(21, 60)])
    assert memory.index.kind == "flat"
    assert Memory.open(memory.path).index.kind == "flat"
    memory.build_index("ivf-rabitq")
    assert Memory.open(memory.path).index.kind == "ivf-rabitq"
    assert len(names(memory.path)) == 1


def test_another_encoder_needs_another_index(tmp_path, make_encoder):
    encoder = make_encoder(6)
    memory = Memory.create(tmp_path / "m.lance", encoder)
    memory = memory.add([Passage(f"p{i}", f"text {i}") for i in range(30)], encoder)
    memory.build_index("ivf-rabitq")
    memory = Memory.open(memory.path)
    assert memory.index.kind == "ivf-rabitq"
    other = make_encoder(6, "f2")
    other.vector = lambda text: -encoder.vector(text)
    after = memory.reencode(other)
    assert after.index.kind == "flat"
    assert_found(after.index, rows_of(after._table), Q, 5)
    assert Memory.open(memory.path, version=2).index.kind == "ivf-rabitq"


@pytest.mark.parametrize("alike", [True, False])
def test_the_index_of_another_memory_is_noticed(tmp_path, make_encoder, alike):
    """Same number of rows and the same encoder; in the one case all but the last vectors are the same too."""
    encoder = make_encoder(6)
    texts = [f"text {i}" for i in range(30)]
    others = [*texts[:15], *texts[16:], "more"] if alike else [f"other {i}" for i in range(30)]
    memories = []
    for name, words in (("a", texts), ("b", others)):
        memory = Memory.create(tmp_path / name, encoder)
        memories.append(memory.add([Passage(f"p{i}", word) for i, word in enumerate(words)], encoder))
    memories[0].build_index("ivf-rabitq")
    (tmp_path / "a" / FOLDER).rename(tmp_path / "b" / FOLDER)
    foreign = Memory.open(tmp_path / "b")
    with pytest.warns(UserWarning, match="belongs to another memory; this index is thrown away"):
        assert foreign.index.kind == "flat"
    assert names(tmp_path / "b") == []
    assert_found(foreign.index, rows_of(foreign._table), Q, 5)


def test_rows_that_are_not_the_same_are_told_apart(tmp_path):
    table = make_table(tmp_path / "m.lance", drawn(10, 6))
    rows = rows_of(table)
    changes.require_same_rows(table, Rows(rows.row_ids[2:5], rows.vectors[2:5]), {}, file=tmp_path)
    with pytest.raises(IndexDamagedError, match="belongs to another memory"):
        changes.require_same_rows(table, Rows(rows.row_ids[2:5], rows.vectors[3:6]), {}, file=tmp_path)
    with pytest.raises(IndexDamagedError, match="belongs to another memory"):
        changes.require_same_rows(table, Rows(rows.row_ids[2:5] + 90, rows.vectors[2:5]), {}, file=tmp_path)
