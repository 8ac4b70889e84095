"""Bit rot, missing files and manifests: what repair sets aside, what it keeps, and what it says is missing."""

import contextlib
import hashlib
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from latentrag.errors import MemoryStoreError
from latentrag.memory import LocalDisk, Memory, storage, upkeep, version_files
from latentrag.memory import table as table_module
from latentrag.memory.indexes.folder import IndexFolder
from latentrag.memory.repair import repair
from latentrag.memory.storage import TABLE_FOLDERS
from latentrag.memory.verify import verify
from latentrag.types import Passage
from tests.memory.test_damage import places

State = dict[str, str]
TWELVE = {f"p{i}": f"text {i}" for i in range(12)}


def held(memory: Memory) -> State:
    """Its passages, each once, each found with the vector of its text."""
    passages = list(memory.passages())
    found = {z.id: z.text for z in passages}
    assert len(passages) == len(found) == len(memory)
    return found


def assert_searched(memory: Memory, encoder) -> None:
    found = memory.search(np.ones((1, 8), np.float32), len(memory))
    for z, vector in zip(found.passages[0], found.vectors[0], strict=True):
        assert np.array_equal(vector, encoder.vector(z.text).astype(np.float16).astype(np.float32))
    assert {z.id for z in found.passages[0]} == held(memory).keys()


def added(path: Path, change) -> str:
    """The data or deletion file that a change makes."""
    before = LocalDisk(path).files()
    change()
    (name,) = (n for n in LocalDisk(path).files() - before if n.startswith(("data/", "_deletions/")))
    return name


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0x81
    file.write_bytes(content)


def rot(file: Path, encoder, text: str) -> None:
    """A wrong bit in the vector of this text, so that ids and texts can still be read."""
    place = file.read_bytes().find(encoder.vector(text).astype(np.float16).tobytes())
    assert place >= 0
    flip(file, place)


def only_data_file(path: Path) -> str:
    (name,) = (n for n in LocalDisk(path).files() if n.startswith("data/"))
    return name


def contents(path: Path) -> Counter[str]:
    """How often each content of a file of the table is there, set aside or not."""
    folders = [place / name for place in (path, path / version_files.DAMAGED) for name in TABLE_FOLDERS]
    return Counter(
        hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in folders
        if folder.exists()
        for file in folder.iterdir()
        if not file.name.endswith(".json")
    )


def many(first: int, last: int) -> list[Passage]:
    return [Passage(f"q{i}", f"text q{i}") for i in range(first, last)]


def test_newer_passages_are_kept_where_an_older_file_is_rotten(path, encoder, filled):
    rotten = only_data_file(path)
    filled.add(many(0, 3), encoder)
    rot(path / rotten, encoder, "text 0")
    before = contents(path)
    done = repair(path)
    assert (done.set_aside, done.newest, done.num_passages, done.num_rescued) == ([2, 3], 4, 3, 0)
    assert done.why == dict.fromkeys([2, 3], f"{rotten} is not as it was written")
    assert (sorted(done.lost), done.older, done.num_unnamed, done.num_returned) == (sorted(TWELVE), {}, 0, 0)
    assert held(Memory.open(path)) == {f"q{i}": f"text q{i}" for i in range(3)}
    assert_searched(Memory.open(path), encoder)
    assert (path / version_files.DAMAGED / rotten).exists()
    assert before - contents(path) == Counter()
    assert verify(path).problems == []
    assert held(Memory.open(path).add([Passage("p0", "again")], encoder))["p0"] == "again"
    assert (repair(path).set_aside, repair(path).lost) == ([], [])


def test_the_newest_whole_version_is_enough_where_it_has_as_much(path, encoder, filled):
    name = added(path, lambda: filled.add(many(0, 1), encoder))
    rot(path / name, encoder, "text q0")
    done = repair(path)
    assert (done.set_aside, done.newest, done.num_rescued) == ([3], 2, None)
    assert (done.lost, done.older, done.num_unnamed, done.num_returned) == (["q0"], {}, 0, 0)
    assert held(Memory.open(path)) == TWELVE
    assert verify(path).problems == []


def test_an_index_of_a_version_that_is_set_aside_goes_with_it(path, encoder, filled):
    """The number of the version is used again, for other rows."""
    name = added(path, lambda: filled.add(many(0, 3), encoder))
    Memory.open(path).build_index("ivf-rabitq")
    rot(path / name, encoder, "text q0")
    repair(path)
    assert IndexFolder.of(path).indexes() == ([], [])
    again = Memory.open(path).add(many(5, 8), encoder)
    assert again.version == 3
    assert_searched(Memory.open(path), encoder)
    assert verify(path).problems == []


def test_rows_of_a_rotten_file_are_taken_from_the_files_that_it_was_compacted_from(path, encoder, filled):
    filled.add(many(0, 3), encoder)
    rotten = added(path, lambda: upkeep.compact(path))
    Memory.open(path).delete(["p5"]).add(many(3, 6), encoder)
    expected = held(Memory.open(path))
    rot(path / rotten, encoder, "text 0")
    done = repair(path)
    assert (done.set_aside, done.newest, done.num_rescued) == ([4, 5, 6], 7, 14)
    assert (done.lost, done.older, done.num_unnamed, done.num_returned) == ([], {}, 0, 0)
    assert held(Memory.open(path)) == expected
    assert_searched(Memory.open(path), encoder)
    assert verify(path).problems == []
    assert [version.number for version in Memory.open(path).log()] == [1, 2, 3, 7]


def test_an_older_passage_of_a_missing_id_is_named(path, encoder, filled):
    before = LocalDisk(path).files()
    replaced = filled.upsert([Passage("p0", "new"), Passage("r", "t")], encoder)
    (name,) = (n for n in LocalDisk(path).files() - before if n.startswith("data/"))
    replaced.add(many(0, 3), encoder)
    rot(path / name, encoder, "new")
    done = repair(path)
    assert (done.set_aside, done.newest, done.older, done.lost) == ([3, 4], 5, {"p0": 2}, ["r"])
    assert held(Memory.open(path)).keys() == (TWELVE.keys() - {"p0"}) | {"q0", "q1", "q2"}


def test_a_replaced_passage_that_is_back_is_counted(path, encoder, filled):
    before = LocalDisk(path).files()
    filled.upsert([Passage("p0", "new")], encoder)
    (name,) = (n for n in LocalDisk(path).files() - before if n.startswith("data/"))
    rot(path / name, encoder, "new")
    done = repair(path)
    assert (done.newest, done.older, done.lost, done.num_returned) == (2, {"p0": 2}, [], 1)
    assert held(Memory.open(path)) == TWELVE


@pytest.mark.parametrize("more", [0, 20])
def test_deletions_that_cannot_be_trusted(path, encoder, filled, more):
    """Nobody knows which rows are deleted: their file is not used, unless an older version is the one to go back to."""
    name = added(path, lambda: filled.delete(["p3", "p4"]))
    if more:
        Memory.open(path).add(many(0, more), encoder)
    flip(path / name, 4)
    done = repair(path)
    assert verify(path).problems == []
    if more:
        assert (done.num_passages, done.num_unnamed, done.lost, done.num_returned) == (more, 10, [], 0)
    else:
        assert (done.newest, done.num_unnamed, done.lost, done.num_returned) == (2, 0, [], 2)
        assert held(Memory.open(path)) == TWELVE


@pytest.mark.parametrize("how", ["gone", "cut", "rotten"])
def test_what_is_intact_is_kept_where_no_version_is_whole(monkeypatch, path, encoder, how):
    monkeypatch.setattr(table_module, "ROWS_PER_FRAGMENT", 4)
    monkeypatch.setattr("latentrag.memory.writer.PASSAGES_PER_ENCODING", 4)
    Memory.create(path, encoder).add(many(0, 12), encoder)
    upkeep.prune(path, keep=1)
    table = Memory.open(path)._table
    second = list(table.fragments())[1][0]
    if how == "gone":
        (path / second).unlink()
    elif how == "cut":
        (path / second).write_bytes((path / second).read_bytes()[:-1])
    else:
        rot(path / second, encoder, "text q4")
    done = repair(path)
    assert (done.set_aside, done.newest, done.num_passages) == ([2], 3, 8)
    assert held(Memory.open(path)) == {f"q{i}": f"text q{i}" for i in (0, 1, 2, 3, 8, 9, 10, 11)}
    assert len(done.lost) + done.num_unnamed == 4
    assert set(done.lost) <= {"q4", "q5", "q6", "q7"}
    assert verify(path).problems == []


def test_nothing_is_moved_where_nothing_is_left(path, encoder, filled):
    upkeep.prune(path, keep=1)
    rot(path / only_data_file(path), encoder, "text 0")
    before = contents(path)
    with pytest.raises(MemoryStoreError, match="no version of the memory .* can be read; restore it from a copy"):
        repair(path)
    assert contents(path) == before
    assert not (path / version_files.DAMAGED).exists()


def test_half_of_a_commit_that_was_never_acknowledged_is_not_kept(monkeypatch, path, encoder, filled):
    monkeypatch.setattr(table_module, "ROWS_PER_FRAGMENT", 4)
    monkeypatch.setattr("latentrag.memory.writer.PASSAGES_PER_ENCODING", 4)
    known = storage.LocalDisk(path).checksums()
    assert known is not None
    newer = filled.add(many(0, 8), encoder)
    storage.LocalDisk(path).keep_checksums(known.keys())
    (path / list(newer._table.fragments())[2][0]).write_bytes(b"")
    done = repair(path)
    assert (done.set_aside, done.newest, done.lost) == ([3], 2, [])
    assert held(Memory.open(path)) == TWELVE


def test_passages_of_a_manifest_that_cannot_be_read_are_named(path, encoder, filled):
    filled.upsert([Passage("p1", "changed"), Passage("q", "t")], encoder)
    (path / version_files.manifest_name(3)).write_bytes(b"")
    done = repair(path)
    assert (done.newest, done.older, done.lost) == (2, {"p1": 2}, ["q"])


def test_a_wrong_bit_anywhere_in_any_file_is_set_aside(tmp_path, path, encoder, filled):
    filled.delete(["p3", "p4"]).add(many(0, 30), encoder)
    names = [n for n in LocalDisk(path).files() if n.startswith(("data/", "_deletions/", "_versions/1"))]
    assert len(names) == 7
    for name in names:
        for place in places((path / name).stat().st_size)[::3]:
            other = shutil.copytree(path, tmp_path / "other.lance")
            flip(other / name, place)
            before = contents(other)
            done = repair(other)
            assert all(name in what for what in done.why.values())
            assert done.set_aside
            assert verify(other).problems == []
            assert (other / version_files.DAMAGED / name).exists()
            assert before - contents(other) == Counter()
            held(Memory.open(other))
            shutil.rmtree(other)


class KilledError(BaseException):
    """In place of SIGKILL."""


@pytest.mark.parametrize("between", ["repair", "add"])
def test_a_repair_that_is_killed_can_be_repeated_and_nothing_is_gone(
    monkeypatch, tmp_path, path, encoder, filled, between
):
    rotten = only_data_file(path)
    filled.add(many(0, 3), encoder).delete(["q0"])
    Memory.open(path).add([Passage("z", "last")], encoder)
    (path / version_files.manifest_name(5)).write_bytes(b"")
    rot(path / rotten, encoder, "text 0")
    before = contents(path)
    whole_run = shutil.copytree(path, tmp_path / "whole.lance")
    repair(whole_run)
    expected = held(Memory.open(whole_run))
    assert expected == {"q1": "text q1", "q2": "text q2"}
    for last in range(100):
        other = shutil.copytree(path, tmp_path / "other.lance")
        moves: list[object] = []

        def move(*names, moves=moves, last=last):
            if len(moves) == last:
                raise KilledError
            moves.append(names)
            return shutil.move(*names)

        with monkeypatch.context() as patched:
            patched.setattr(version_files, "shutil", type("Shutil", (), {"move": staticmethod(move)}))
            try:
                repair(other)
                killed = False
            except KilledError:
                killed = True
        if killed and between == "add":
            with contextlib.suppress(MemoryStoreError), warnings.catch_warnings(action="ignore"):
                Memory.open(other).add([Passage("n", "in between")], encoder)
        assert before - contents(other) == Counter()
        repair(other)
        assert before - contents(other) == Counter()
        assert {key: text for key, text in held(Memory.open(other)).items() if key != "n"} == expected
        assert verify(other).problems == []
        shutil.rmtree(other)
        if not killed:
            break
    assert last > 5
