"""Damaged files, killed and competing writers, full and read-only disks; what verify finds."""

import json
import os
import re
import threading
from dataclasses import asdict
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from latentrag import io
from latentrag.errors import DamagedVersionError, MemoryStoreError
from latentrag.memory import LocalDisk, Memory, repair, storage, upkeep, version_files
from latentrag.memory.verify import verify
from latentrag.types import Passage


def ids(memory: Memory) -> set[str]:
    return {z.id for z in memory.passages()}


def manifest(path: Path, version: int) -> Path:
    return path / version_files.manifest_name(version)


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    elif how == "another byte":
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        file.write_bytes({"empty": b"", "half": content[: len(content) // 2], "zeros": b"\0" * len(content)}[how])


def forget_record(path: Path, file: Path) -> None:
    """As if the writer had died before it acknowledged this file."""
    disk = storage.LocalDisk(path)
    known = disk.checksums()
    assert known is not None
    disk.keep_checksums(known.keys() - {file.relative_to(path).as_posix()})


# Damage


@pytest.mark.parametrize("how", ["empty", "half", "zeros", "another byte"])
def test_open_falls_back_to_the_newest_version_that_is_whole(path, encoder, filled, how):
    filled.add([Passage("new", "t")], encoder)
    damage(manifest(path, 3), how)
    with pytest.warns(UserWarning, match=r"^version 3 of .* cannot be read .*; opened version 2, the newest that can$"):
        memory = Memory.open(path)
    assert (memory.version, len(memory)) == (2, 12)
    with pytest.raises(DamagedVersionError, match="version 3 .* cannot be read .*; ask another version") as caught:
        Memory.open(path, version=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["gone", "half"])
def test_a_version_without_its_passages_is_not_opened(path, encoder, filled, how):
    data = set(LocalDisk(path).files())
    filled.add([Passage("new", "t")], encoder)
    (name,) = (name for name in LocalDisk(path).files() - data if name.startswith("data/"))
    damage(path / name, how)
    with pytest.warns(UserWarning, match=f"version 3 .*{name}.*; opened version 2"):
        assert len(Memory.open(path)) == 12


def test_versions_that_vanish_while_the_memory_is_opened_are_no_damage(monkeypatch, path, encoder, filled):
    """A prune between looking and opening: an older version is not what should be fallen back to."""
    version_numbers, calls = version_files.version_numbers, []

    def stale(folder):
        found = version_numbers(folder)
        calls.append(found)
        if len(calls) == 1:
            Memory.open(path, version=2).add([Passage("new", "t")], encoder)
            monkeypatch.undo()
            manifest(path, 2).unlink()
        return found

    monkeypatch.setattr(version_files, "version_numbers", stale)
    assert Memory.open(path).version == 3


def test_a_memory_of_which_nothing_can_be_read(path, filled):
    for version in (1, 2):
        damage(manifest(path, version), "empty")
    with pytest.raises(MemoryStoreError, match=r"cannot be read .*version 2.*; restore it from a copy") as caught:
        Memory.open(path)
    assert "\n" not in str(caught.value)


def test_a_manifest_is_checked_before_lance_reads_it(path, filled):
    """Lance reads most manifests with one wrong bit without a word."""
    content = bytearray(manifest(path, 2).read_bytes())
    for place in range(0, len(content), 97):
        content[place] ^= 8
        manifest(path, 2).write_bytes(content)
        content[place] ^= 8
        with pytest.warns(UserWarning, match="not as it was written"):
            assert Memory.open(path).version == 1


def test_writers_do_not_build_on_an_older_version_unasked(path, encoder, filled):
    filled.add([Passage("new", "t")], encoder)
    damage(manifest(path, 3), "half")
    with pytest.warns(UserWarning, match="opened version 2"):
        memory = Memory.open(path)
    before = LocalDisk(path).files()
    with pytest.raises(
        MemoryStoreError, match="version 3 .* cannot be read .*; .*go on from .*`latentrag index repair"
    ):
        memory.add([Passage("other", "t")], encoder)
    assert LocalDisk(path).files() == before

    done = repair.repair(path)
    assert (done.set_aside, done.newest) == ([3], 2)
    assert (path / version_files.DAMAGED / version_files.manifest_name(3)).exists()
    assert sum(1 for _ in (path / version_files.DAMAGED / "data").iterdir()) == 1  # what only version 3 had
    assert ids(Memory.open(path).add([Passage("other", "t")], encoder)) == ids(memory) | {"other"}
    report = verify(path)
    assert report.problems == []
    assert any("_damaged" in note for note in report.notes)
    assert repair.repair(path).set_aside == []


def test_a_version_that_was_never_acknowledged_and_is_damaged_is_set_aside(path, encoder, filled):
    filled.add([Passage("new", "t")], encoder)
    forget_record(path, manifest(path, 3))
    damage(manifest(path, 3), "half")
    with pytest.warns(UserWarning, match="opened version 2"):
        memory = Memory.open(path)
    with pytest.warns(UserWarning, match="version 3 .* cannot be read .*; it was never acknowledged and is now in"):
        after = memory.add([Passage("other", "t")], encoder)
    assert (after.version, ids(after)) == (3, ids(memory) | {"other"})
    assert (path / version_files.DAMAGED / version_files.manifest_name(3)).exists()
    assert verify(path).problems == []


def test_a_version_that_was_never_acknowledged_and_is_whole_is_kept(path, encoder, filled):
    newer = filled.add([Passage("new", "t")], encoder)
    forget_record(path, manifest(path, 3))
    assert verify(path).num_unrecorded == 1
    assert ids(Memory.open(path).delete(["p0"])) == ids(newer) - {"p0"}
    assert verify(path).num_unrecorded == 0


def test_what_is_damaged_twice_is_set_aside_twice(path, encoder, filled):
    for text in ("one", "two"):
        Memory.open(path).add([Passage("new", text)], encoder)
        damage(manifest(path, 3), "half")
        assert repair.repair(path).set_aside == [3]
    assert len(list((path / version_files.DAMAGED / "_versions").iterdir())) == 2


def test_a_memory_without_a_version_is_refused_by_writers(path, filled):
    for version in (1, 2):
        manifest(path, version).unlink()
    for change in (lambda: upkeep.prune(path, keep=1), lambda: repair.repair(path), lambda: filled.delete(["p0"])):
        with pytest.raises(MemoryStoreError, match="no version"):
            change()


def test_repair_refuses_to_give_up_everything(path, filled):
    for version in (1, 2):
        damage(manifest(path, version), "half")
    with pytest.raises(MemoryStoreError, match="no version of the memory .* can be read"):
        repair.repair(path)
    assert not (path / version_files.DAMAGED).exists()


def test_repair_keeps_what_another_version_needs(path, encoder, filled):
    filled.add([Passage("new", "t")], encoder).delete(["p0"])
    damage(manifest(path, 3), "zeros")
    with pytest.warns(UserWarning, match="^version 3 of .* cannot be read"):
        assert [version.number for version in Memory.open(path).log()] == [1, 2, 4]
    with pytest.raises(MemoryStoreError, match="an older version .* cannot be read .*; set it aside with .*repair"):
        upkeep.prune(path, keep=1)
    assert repair.repair(path).set_aside == [3]
    assert ids(Memory.open(path)) == {f"p{i}" for i in range(1, 12)} | {"new"}
    assert [version.number for version in Memory.open(path).log()] == [1, 2, 4]


# One writer at a time


def test_the_second_writer_is_refused_and_readers_are_not(path, encoder, filled, queries):
    """While the first encodes, which may take hours."""

    def stream():
        yield Passage("q0", "t")
        with pytest.raises(
            MemoryStoreError, match=rf"is being changed by process {os.getpid()} on .* for 0:0\d:\d\d; try again"
        ) as caught:
            Memory.open(path).delete(["p0"])
        assert "\n" not in str(caught.value)
        with pytest.raises(MemoryStoreError, match="is being changed by"):
            upkeep.prune(path, keep=1)
        assert Memory.open(path).search(queries, 3).version == 2
        assert any("is being changed by" in note for note in verify(path).notes)
        yield Passage("q1", "t")

    assert ids(filled.add(stream(), encoder)) == ids(filled) | {"q0", "q1"}
    assert len(Memory.open(path).delete(["p0"])) == 13
    assert verify(path).notes == []


def test_of_many_writers_at_once_one_wins(path, filled):
    barrier = threading.Barrier(6)
    outcomes: list[Memory | MemoryStoreError] = []

    def change(number: int) -> None:
        memory = Memory.open(path)
        barrier.wait()
        try:
            outcomes.append(memory.delete([f"p{number}"]))
        except MemoryStoreError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (won,) = (each for each in outcomes if isinstance(each, Memory))
    refused = [str(each) for each in outcomes if not isinstance(each, Memory)]
    assert len(refused) == 5
    assert all("is being changed by" in each or "its newest is 3" in each for each in refused)
    assert (Memory.open(path).version, len(won)) == (3, 11)


def leave_lock(path: Path, **fields: object) -> None:
    (path / storage.LOCK_FILE).write_text(json.dumps(asdict(storage.Owner.this_process()) | fields))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', None])
def test_a_lock_whose_writer_died_is_taken_over_and_its_files_removed(path, filled, content):
    orphans = [
        "data/0101.lance",
        "data/.tmpAb12",
        "_deletions/0-1-2.arrow",
        "_versions/18446744073709551612.manifest#1",
    ]
    for name in orphans:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"half a file")
    leave_lock(path, pid=2**22 + 1)
    if content is not None:
        (path / storage.LOCK_FILE).write_text(content)  # torn by a power failure; empty: nobody died
    assert len(filled.delete(["p0"])) == 11
    left = [name for name in orphans if (path / name).exists()]
    assert left == (orphans if content == "" else [])
    assert (path / storage.LOCK_FILE).read_bytes() == b""
    if left:
        (problem,) = verify(path).problems
        assert "4 files belong to no version" in problem.what
        assert f"`latentrag index repair {path}` removes them" in problem.remedy
        repair.repair(path)
        assert verify(path).problems == []
        assert not any((path / name).exists() for name in orphans)


def test_the_lock_of_another_machine_is_respected(path, filled):
    leave_lock(path, host="elsewhere", pid=7, boot="of another kernel")
    with pytest.raises(MemoryStoreError, match="by process 7 on elsewhere .*; wait, or delete .*_writer.lock if"):
        filled.delete(["p0"])
    (path / storage.LOCK_FILE).unlink()
    assert len(filled.delete(["p0"])) == 11


@pytest.mark.skipif(not storage.Owner.this_process().boot, reason="this system does not name its kernel's start")
def test_a_writer_that_died_in_another_container_of_this_kernel_locks_nobody_out(path, filled):
    """Each container has a host name of its own; the kernel's lock ended with the writer."""
    leave_lock(path, host="3f2a9c", pid=1)
    assert Memory.open(path).delete(["p0"]).version == 3
    lock = {"host": "3f2a9c", "pid": 1, "since": storage.Owner.this_process().since}
    (path / storage.LOCK_FILE).write_text(json.dumps(lock))  # as latentrag before wrote it: nothing tells where that is
    with pytest.raises(MemoryStoreError, match="by process 1 on 3f2a9c .*; wait, or delete"):
        Memory.open(path).delete(["p1"])


def test_nobody_has_to_learn_who_makes_room_on_a_full_disk(monkeypatch, path, filled):
    filled.delete(["p0"])

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(io, "sync_handle", full)
        with io.exclusive(path / storage.LOCK_FILE), pytest.raises(MemoryStoreError, match="is being changed by"):
            upkeep.prune(path, keep=1)
        with storage.LocalDisk(path).lock() as lock:
            assert lock.died is None
    assert upkeep.prune(path, keep=1).removed == [1, 2]


def test_a_lock_file_that_is_deleted_while_it_is_taken_locks_nobody_out(monkeypatch, path, filled):
    """What was locked is no longer there: the next attempt takes the new file."""
    fcntl = pytest.importorskip("fcntl")
    flock, calls = fcntl.flock, []

    def deleted_once(handle, how):
        calls.append(handle)
        if len(calls) == 1:
            (path / storage.LOCK_FILE).unlink()
        return flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", deleted_once)
    with pytest.raises(MemoryStoreError, match="is being changed by another process; try again"):
        filled.delete(["p0"])
    assert len(filled.delete(["p0"])) == 11
    assert len(calls) == 2


def test_a_creation_that_fails_leaves_nothing(monkeypatch, tmp_path, path, encoder):
    def fails(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(lance, "write_dataset", fails)
        with pytest.raises(MemoryStoreError, match="cannot be written .*No space left"):
            Memory.create(path, encoder)
    assert list(tmp_path.iterdir()) == []
    assert len(Memory.create(path, encoder)) == 0


# Disks that fail


@pytest.fixture
def small_files():
    """No file may grow beyond so many bytes, as on a disk that is full: Lance's own writes fail too."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(num_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("change", ["add", "upsert", "delete", "compact", "reencode"])
@pytest.mark.parametrize("room", [200, 1_000])
def test_a_full_disk_leaves_the_memory_as_it_was(path, encoder, filled, small_files, change, room):
    """200 bytes: the first file but the lock fails. 1,000 bytes: files with rows fail, smaller ones do not."""
    many = [Passage(f"q{i}", f"text {i}") for i in range(100)]
    memory = filled.delete(["p3"]).add([Passage("one", "t")], encoder)
    before, records = LocalDisk(path).files(), (path / storage.CHECKSUMS_FILE).read_bytes()
    changes = {
        "add": lambda: memory.add(many, encoder),
        "upsert": lambda: memory.upsert(many, encoder),
        "delete": lambda: memory.delete(["p0"]),
        "compact": lambda: upkeep.compact(path),
        "reencode": lambda: memory.reencode(encoder),
    }
    small_files(room)
    with pytest.raises(MemoryStoreError, match=r"cannot be written \(.*; make room .*, and try again") as caught:
        changes[change]()
    assert "\n" not in str(caught.value)
    small_files(-1)
    assert LocalDisk(path).files() == before
    assert (path / storage.CHECKSUMS_FILE).read_bytes() == records
    assert ids(Memory.open(path)) == ids(memory)
    changes[change]()
    assert verify(path).problems == []


def test_a_disk_that_fails_after_the_commit_is_reported(monkeypatch, path, filled):
    def full(disk, checksums):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(storage.LocalDisk, "record", full)
        with pytest.raises(
            MemoryStoreError, match="version 3 .* is committed, but a power failure may take it .*No space"
        ):
            filled.delete(["p0"])
    assert len(Memory.open(path).delete(["p1"])) == 10
    assert (verify(path).problems, verify(path).num_unrecorded) == ([], 0)


def test_files_that_cannot_be_forced_to_the_disk_are_not_committed(monkeypatch, path, encoder, filled):
    def fails(file):
        raise OSError(5, "Input/output error")

    before = LocalDisk(path).files()
    monkeypatch.setattr(io, "sync_file", fails)
    with pytest.raises(MemoryStoreError, match="cannot be written .*Input/output error"):
        filled.add([Passage("q", "t")], encoder)
    assert Memory.open(path).version == 2
    assert LocalDisk(path).files() == before


def test_a_lock_that_cannot_be_forced_to_the_disk_is_not_taken(monkeypatch, path, filled):
    def fails(handle):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(io, "sync_handle", fails)
        with pytest.raises(MemoryStoreError, match=r"cannot be written .Input/output error.; make room"):
            filled.delete(["p0"])
    assert len(filled.delete(["p0"])) == 11


def test_a_read_only_folder_can_be_read(monkeypatch, path, encoder, filled, queries):
    plain = os.open

    def refuse(file, flags, *rest, **options):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(30, "Read-only file system")
        return plain(file, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    memory = Memory.open(path)
    assert memory.search(queries, 2).version == 2
    assert verify(path).problems == []
    for change in (lambda: memory.delete(["p0"]), lambda: memory.add([Passage("q", "t")], encoder)):
        with pytest.raises(MemoryStoreError, match="cannot be written .Read-only file system.; make room, check"):
            change()


# Verify


def test_a_whole_memory(path, encoder, filled):
    filled.upsert([Passage("p0", "changed")], encoder).delete(["p1"])
    report = verify(path)
    assert (report.problems, report.notes, report.num_unrecorded) == ([], [], 0)
    assert (report.version, report.num_passages, report.num_versions) == (4, 11, 4)
    assert report.num_files == len(LocalDisk(path).files())
    assert report.size_bytes > 2_000


def test_a_changed_file_is_found(path, encoder, filled):
    (name,) = (name for name in LocalDisk(path).files() if name.startswith("data/"))
    filled.add([Passage("new", "t")], encoder)
    content = bytearray((path / name).read_bytes())
    content[10] ^= 1
    (path / name).write_bytes(content)
    problem = verify(path).problems[0]
    assert problem.what == f"{name} is not as it was written; versions 2 to 3 need it"
    assert problem.remedy == (
        f"restore that file from a copy, ask version 1: `latentrag index use {path} 1`, "
        f"or go on with what is intact: `latentrag index repair {path}`"
    )


def test_damaged_versions_and_tags_are_found(path, filled):
    filled.delete(["p0"])
    damage(manifest(path, 2), "half")
    (path / "_refs" / "tags").mkdir(parents=True)
    (path / "_refs" / "tags" / "gone.json").write_text('{"version": 9}')
    whats = [(problem.what, problem.remedy) for problem in verify(path).problems]
    assert len(whats) == 2
    assert "version 2 of the memory" in whats[0][0]
    assert "index repair" in whats[0][1]
    assert "'gone' names version 9, which is gone" in whats[1][0]
    (path / "_refs" / "tags" / "torn.json").write_text("{")
    assert any("torn.json cannot be read" in problem.what for problem in verify(path).problems)


@pytest.mark.parametrize(
    ("key", "value", "found"), [("p0", 1.0, "1 ids of version 3 come twice"), ("q", np.nan, "1 vectors .* not finite")]
)
def test_bad_rows_are_found(path, filled, key, value, found):
    table = filled._table
    rows = table.record_batch([Passage(key, "t")], np.full((1, 8), value, np.float16))
    table.commit(table.stage([rows]), removed_ids=(), change="by hand")
    (problem,) = verify(path).problems
    assert re.search(found, problem.what)


def test_a_line_that_a_power_failure_cut_off_does_not_spoil_the_next(path, filled):
    with (path / storage.CHECKSUMS_FILE).open("ab") as stream:
        stream.write(b'{"file": "_versions/1844674407370')
    filled.delete(["p0"])
    assert verify(path).num_unrecorded == 0
    assert storage.LocalDisk(path).checksum(version_files.manifest_name(3)) is not None


def test_a_memory_from_before_the_checksums(path, encoder, filled):
    """Nothing is recorded of it until it is changed, and nothing is taken for a dead writer's."""
    (path / storage.CHECKSUMS_FILE).unlink()
    (path / storage.LOCK_FILE).unlink()
    report = verify(path)
    assert (report.problems, report.num_unrecorded) == ([], 3)
    after = Memory.open(path).add([Passage("new", "t")], encoder)
    assert (verify(path).problems, verify(path).num_unrecorded) == ([], 3)
    damage(manifest(path, 3), "half")
    with pytest.warns(UserWarning, match="opened version 2"), pytest.raises(MemoryStoreError, match="index repair"):
        Memory.open(path).delete(["p0"])
    assert len(after) == 13


@pytest.mark.parametrize("what", ["folder", "table"])
def test_what_is_no_memory_is_left_alone(tmp_path, what):
    place = tmp_path / "place"
    place.mkdir()
    if what == "table":
        lance.write_dataset(pa.table({"id": ["a"]}), str(place))
    before = sorted(place.rglob("*"))
    for check in (verify, upkeep.compact, repair.repair):
        if what == "folder" or check is not repair.repair:
            with pytest.raises(MemoryStoreError):
                check(place)
    assert [file for file in sorted(place.rglob("*")) if file.name != storage.LOCK_FILE] == before
