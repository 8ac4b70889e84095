"""A kind of index is one row of a table; kinds that are gone; indexes that lie elsewhere; systems with less."""

import os
import shutil
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from latentrag.errors import InputError
from latentrag.memory import Memory
from latentrag.memory.indexes import INDEX_KINDS, IndexFolder
from latentrag.memory.indexes.stored import StoredIndex
from latentrag.memory.table import Table
from latentrag.memory.verify import verify
from latentrag.types import Passage
from tests.memory.conftest import FakePassageEncoder
from tests.memory.hnsw_index import Hnsw
from tests.memory.indexing import assert_found, build, built, drawn, forge, make_table, recall_at, rows_of, thorough

Q = np.random.default_rng(9).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture
def memory(path: Path, encoder: FakePassageEncoder) -> Memory:
    """Sixty passages at version 2, without an index."""
    return Memory.create(path, encoder).add([Passage(f"p{i}", f"text {i}") for i in range(60)], encoder)


# Another kind


@pytest.fixture
def large(tmp_path: Path) -> Table:
    """3,000 vectors in clusters, of varying norm."""
    return make_table(tmp_path / "large.lance", drawn(3_000, 40))


def test_a_kind_is_added_by_one_row_and_is_gone_with_it(large: Table) -> None:
    INDEX_KINDS.add("hnsw", "tests.memory.hnsw_index:HNSW")
    try:
        made = Memory.open(large.path).build_index("hnsw")
        assert (made.kind, made.num_passages) == ("hnsw", 3_000)
        assert made.recall >= 0.95
        opened = Memory.open(large.path)  # auto takes what was built
        assert opened.index.kind == "hnsw"
        q = drawn(60, 40).astype(np.float32)
        assert recall_at(opened.index, [rows_of(large)], q, 5) >= 0.95
        report = verify(large.path)
        assert report.problems == []
        assert [recall.share >= 0.95 for recall in report.indexes[0].recall] == [True, True]
    finally:
        INDEX_KINDS.remove("hnsw")
    with pytest.raises(InputError, match="index 'hnsw' is unknown"):
        Memory.open(large.path, index="hnsw")
    with pytest.warns(UserWarning, match=r"of a kind that is no longer supported .hnsw.; flat is used"):
        assert Memory.open(large.path).index.kind == "flat"


def test_without_the_extra_dimension_norms_would_mislead(large: Table, hnsw: str) -> None:
    """The longest vectors have the largest products, and are near neighbours of nothing."""
    index = built(large, hnsw)
    assert isinstance(index.proposer, Hnsw)
    rows = rows_of(large)
    rebuilt = np.vstack([index.proposer.graph.reconstruct(i) for i in range(100)])  # fp16
    np.testing.assert_allclose(np.linalg.norm(rebuilt, axis=1), 1, atol=2e-3)
    longest = np.linalg.norm(rows.vectors.astype(np.float32), axis=1).max()
    np.testing.assert_allclose(rebuilt[:, :-1] * longest, rows.vectors[:100], atol=1e-2)


def test_a_graph_serves_later_versions_too(memory: Memory, encoder: FakePassageEncoder, hnsw: str) -> None:
    memory.build_index(hnsw)
    newer = Memory.open(memory.path).delete(["p3"]).add([Passage("new", "newer")], encoder)
    assert newer.index.kind == hnsw
    assert_found(thorough(newer).index, rows_of(newer._table), Q, 5)


# Kinds that are gone


@pytest.fixture
def outdated(memory: Memory) -> Memory:
    """With an index of a kind that earlier versions of the library had."""
    folder = build(memory._table, "ivf-rabitq").folder
    forge(folder, kind="sq8")
    folder.rename(folder.with_name("sq8-2-0123456789ab"))
    return memory


def test_an_index_of_a_kind_that_is_gone_is_not_used_and_one_line_says_so(outdated: Memory) -> None:
    opened = Memory.open(outdated.path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert opened.index.kind == "flat"
        assert opened.delete(["p0"]).add([Passage("p0", "again")], FakePassageEncoder()).index.kind == "flat"
    (line,) = [str(warning.message) for warning in caught]
    assert (
        "has an index of a kind that is no longer supported (sq8); flat is used instead; build an index again" in line
    )
    assert "\n" not in line
    assert [folder.name.split("-")[0] for folder in IndexFolder.of(outdated.local).path.glob("*-*-*/")] == ["sq8"]


def test_it_is_a_note_of_verify_and_no_problem(outdated: Memory) -> None:
    report = verify(outdated.path)
    assert report.problems == []
    (note,) = report.notes
    assert "is of the kind sq8, which is no longer supported; version 2 does without" in note


@pytest.mark.parametrize("kind", ["auto", "ivf-rabitq"])
def test_building_again_removes_it(outdated: Memory, kind: str) -> None:
    built_kind = outdated.build_index(kind).kind
    left = [index.description.kind for index in IndexFolder.of(outdated.local).indexes()[0]]
    assert left == ([] if built_kind == "flat" else [built_kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Memory.open(outdated.path).index.kind == built_kind


# Indexes elsewhere


def test_the_indexes_of_a_memory_may_lie_elsewhere(memory: Memory, encoder: FakePassageEncoder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "fast disk"
    opened = Memory.open(memory.path, index_folder=elsewhere)
    made = opened.build_index("ivf-rabitq")
    assert made.disk_bytes > 0
    assert not IndexFolder.of(memory.local).path.exists()
    (published,) = IndexFolder(elsewhere).indexes()[0]
    opened = Memory.open(memory.path, index_folder=elsewhere)
    assert opened.index.kind == "ivf-rabitq"
    assert_found(thorough(opened).index, rows_of(opened._table), Q, 5)
    newer = opened.delete(["p3"])
    assert newer.at(2).index.kind == newer.index.kind == "ivf-rabitq"
    assert Memory.open(memory.path).index.kind == "flat"
    report = verify(memory.path, index_folder=elsewhere)
    assert report.problems == []
    assert [(index.folder, index.version) for index in report.indexes] == [(published.folder.name, 3)]
    assert verify(memory.path).indexes == []


def test_another_index_in_the_memory_and_a_damaged_one_elsewhere_are_kept_apart(memory: Memory, tmp_path: Path) -> None:
    elsewhere = tmp_path / "fast disk"
    memory.build_index("ivf-rabitq")
    (published,) = IndexFolder.of(memory.local).indexes()[0]
    shutil.copytree(published.folder, elsewhere / published.folder.name)
    (elsewhere / published.folder.name / "index.faiss").write_bytes(b"")
    with pytest.warns(UserWarning, match=f"{elsewhere}.*; this index is thrown away"):
        assert Memory.open(memory.path, index_folder=elsewhere).index.kind == "flat"
    assert list(elsewhere.glob("*-*-*/")) == []
    assert Memory.open(memory.path).index.kind == "ivf-rabitq"


# Systems with less


@pytest.fixture
def bare_system(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """The memory on a system without what Windows and macOS lack."""
    for name in ("pread", "posix_fadvise", "sysconf"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    return memory


def test_indexes_are_built_and_read_on_a_bare_system(bare_system: Memory) -> None:
    exact = bare_system.search(Q, 5)
    bare_system.build_index("ivf-rabitq")
    opened = Memory.open(bare_system.path)
    assert isinstance(opened.index, StoredIndex)
    wrong: list[int] = []

    def search() -> None:
        for _ in range(20):
            wrong.extend([1] if not np.array_equal(opened.search(Q, 5).scores, exact.scores) else [])

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
