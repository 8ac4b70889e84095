"""The passages beside an index: what was written is what is read, and nothing else is."""

import shutil

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from latentrag.errors import IndexDamagedError, MemoryStoreError
from latentrag.memory import Memory
from latentrag.memory.indexes import building
from latentrag.memory.indexes.building import plan
from latentrag.memory.indexes.changes import stream_with_passages
from latentrag.memory.indexes.folder import FOLDER, IndexFolder
from latentrag.memory.indexes.stored import PassageFile, passage_records
from latentrag.memory.table import Table
from latentrag.memory.verify import verify
from latentrag.types import Passage
from tests.memory.indexing import STORED_KINDS, build, built, drawn, make_table
from tests.noting import noting

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
places = st.integers(-(2**63), 2**63 - 1)
pages = st.none() | st.integers(-(2**31), 2**31 - 1)
scalars = texts | places | st.booleans() | st.floats(allow_nan=False)
passages = st.builds(
    Passage, texts, texts, texts, texts, places, places, pages, texts, st.dictionaries(texts, scalars, max_size=2)
)


def written(folder, rows: list[tuple[int, Passage]], batches: int = 1) -> PassageFile:
    path, ends = folder / "passages", folder / "ends"
    records: list[bytes] = []
    for part in np.array_split(np.arange(len(rows)), batches):
        row_ids = np.array([rows[i][0] for i in part], np.int64)
        records += passage_records([rows[i][1] for i in part], row_ids, first_position=len(records))
    path.write_bytes(b"".join(records))
    ends.write_bytes(np.cumsum([len(record) for record in records]).astype("<i8").tobytes())
    return PassageFile(path, ends, num_rows=len(rows))


@given(st.lists(passages, min_size=1, max_size=8), st.integers(1, 4), st.data())
def test_any_rows_are_read_as_they_were_written(tmp_path_factory, some, batches, data):
    rows = [(7 * i + 3, passage) for i, passage in enumerate(some)]
    file = written(tmp_path_factory.mktemp("rows"), rows, batches)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True))
    ids = np.array([rows[i][0] for i in chosen], np.int64)
    assert file.read(np.array(chosen, np.int64), ids) == {rows[i][0]: rows[i][1] for i in chosen}


def test_what_has_no_fields_is_written_as_it_always_was():
    (record,) = passage_records(
        [Passage("p", "text", "title", "file", 1, 5, None, "o")], np.array([7]), first_position=3
    )
    assert record == b'4\xe6\xa1 ["p","text","title","file",1,5,null,"o"]'


def test_every_wrong_bit_place_and_name_is_noticed(tmp_path):
    rows = [(i, Passage(f"p{i}", f"text {i}")) for i in range(3)]
    file = written(tmp_path, rows)
    everything = np.arange(3)
    content = file.path.read_bytes()
    for bit in range(8 * len(content)):
        wrong = bytearray(content)
        wrong[bit // 8] ^= 1 << bit % 8
        file.path.write_bytes(bytes(wrong))
        for positions in (everything, everything[::2]):
            row = int(np.searchsorted(file._ends, bit // 8, side="right"))
            if row in positions:
                with pytest.raises(IndexDamagedError, match=f"is damaged in row {row}"):
                    file.read(positions, positions)
            else:
                assert len(file.read(positions, positions)) == 2
    file.path.write_bytes(content)
    with pytest.raises(IndexDamagedError, match="in row 0"):
        file.read(everything, everything + 1)
    with pytest.raises(IndexDamagedError, match="in row 0"):
        file.read(np.array([0]), np.array([1]))
    file.path.write_bytes(content[:-1])
    with pytest.raises(IndexDamagedError, match="ends early"):
        file.read(everything, everything)
    with pytest.raises(IndexDamagedError, match=f"has {len(content) - 1} bytes, needed {len(content)}"):
        PassageFile(file.path, tmp_path / "ends", num_rows=3)
    with pytest.raises(IndexDamagedError, match="ends has 24 bytes, needed 32"):
        PassageFile(file.path, tmp_path / "ends", num_rows=4)


# In a memory


@pytest.fixture
def memory(path, encoder) -> Memory:
    given = [Passage(f"p{i}", f"text {i}", "title", f"file {i}", i, i + 9, i or None, "o") for i in range(60)]
    return Memory.create(path, encoder).add(given, encoder)


Q = np.random.default_rng(9).standard_normal((3, 8)).astype(np.float32)


@pytest.mark.parametrize("kind", STORED_KINDS)
def test_a_search_needs_nothing_of_the_table(memory, kind, monkeypatch):
    memory.build_index(kind)
    expected = Memory.open(memory.path, index="flat").search(Q, 60)
    opened = Memory.open(memory.path)
    monkeypatch.setattr(Table, "take", None)
    found = opened.search(Q, 60)
    assert [sorted(each, key=str) for each in found.passages] == [sorted(each, key=str) for each in expected.passages]


def test_what_came_later_is_the_tables(memory, encoder, monkeypatch):
    memory.build_index("ivf-rabitq")
    newer = Memory.open(memory.path).upsert([Passage("p1", "text 1, corrected"), Passage("q", "new")], encoder)
    newer = newer.delete(["p2"])
    asked: list[int] = []
    monkeypatch.setattr(Table, "take", noting(Table.take, lambda _, ids: asked.extend(ids)))
    (found,) = newer.search(Q[:1], 60).passages
    assert len(asked) == 2
    assert {z.text for z in found} == {*(f"text {i}" for i in range(60) if i not in (1, 2)), "text 1, corrected", "new"}


def test_those_of_another_memory_with_the_same_vectors_are_not_served(tmp_path):
    vectors = drawn(40, 8)
    ours, theirs = (make_table(tmp_path / name, vectors) for name in ("ours.lance", "theirs.lance"))
    theirs = theirs.replace_all(
        theirs.stage([theirs.record_batch([Passage(f"p{i}", "other") for i in range(40)], vectors)]), change="others"
    )
    ours = ours.replace_all(
        ours.stage([ours.record_batch([Passage(f"p{i}", "own") for i in range(40)], vectors)]), change="own"
    )
    built(theirs, "ivf-rabitq")
    shutil.copytree(theirs.storage.local / FOLDER, ours.storage.local / FOLDER)
    with pytest.warns(UserWarning, match="belongs to another memory; this index is thrown away"):
        (found,) = Memory.open(ours.path).search(Q[:1], 40).passages
    assert {z.text for z in found} == {"own"}


def test_some_are_compared_with_the_table(memory, monkeypatch):
    def wrong(table):
        for rows, found in stream_with_passages(table):
            yield rows, [found[0], *found[:-1]]

    monkeypatch.setattr(building, "stream_with_passages", wrong)
    build(memory._table, "ivf-rabitq")
    (problem,) = verify(memory.path).problems
    assert "belongs to another memory" in str(problem)


def test_their_room_on_the_disk_is_reckoned(memory, monkeypatch):
    made = memory.build_index("ivf-rabitq")
    without = plan("ivf-rabitq", 60, 8).disk_bytes
    reckoned = without + building.bytes_of_passages(memory._table)
    assert made.disk_bytes < reckoned < without + made.disk_bytes
    IndexFolder.of(memory.local).discard_all()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("", (), {"free": reckoned - 1}))
    with pytest.raises(MemoryStoreError, match="the index ivf-rabitq needs"):
        memory.build_index("ivf-rabitq")
