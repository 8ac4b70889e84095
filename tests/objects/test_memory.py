"""A memory in an object store: commits by condition, nothing forced or locked, checksums an object a commit."""

import json
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from datetime import timedelta

import numpy as np
import pytest
from lance.fragment import write_fragments

from latentrag.errors import MemoryStoreError
from latentrag.memory import LiveMemory, Memory, object_store, upkeep, version_files
from latentrag.memory.object_path import ObjectPath
from latentrag.memory.object_store import ObjectStore
from latentrag.memory.repair import repair
from latentrag.memory.storage import Owner, storage_of
from latentrag.memory.verify import verify
from latentrag.types import Passage
from tests.objects.conftest import running, send, set_variables

pytestmark = pytest.mark.s3
PASSAGES = [Passage(f"p{i}", f"text {i}") for i in range(12)]
Q = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)


def files_and_needed(address):
    storage = storage_of(address)
    return storage.files(), version_files.needed(storage)


def test_a_memory_lives_in_an_object_store(address, encoder, home, tmp_path):
    """Made, added to, changed, searched, checked, named, compacted, pruned, as on a disk, with the same answers."""
    both = []
    for place in (address, tmp_path / "notes"):
        memory = Memory.create(place, encoder).add(PASSAGES, encoder)
        memory = memory.upsert([Passage("p0", "changed")], encoder).delete(["p1"])
        assert (memory.version, len(memory)) == (4, 11)
        memory.tag("good", 2)
        memory.serve(3)
        memory.serve(2)
        assert upkeep.compact(place).changed
        assert upkeep.prune(place, keep=1).removed == [1, 3, 4]
        reopened = Memory.open(place)
        assert reopened.tags() == {"good": 2, "served": 2}
        assert [version.number for version in reopened.log()] == [2, 5]
        report = verify(place)
        assert (report.problems, report.notes, report.num_unrecorded, report.version) == ([], [], 0, 5)
        reopened.untag("good")
        reopened.serve(None)
        assert reopened.tags() == {}
        both.append(reopened)
    ours, theirs = both
    assert ours.search(Q, 3).passages == theirs.search(Q, 3).passages
    assert ours.search_words(["changed"], 2).passages == theirs.search_words(["changed"], 2).passages
    files, needed = files_and_needed(address)
    assert files == needed & files
    assert ours.name == address


def test_of_four_simultaneous_commits_one_wins(address, encoder):
    Memory.create(address, encoder).add(PASSAGES, encoder)
    barrier = threading.Barrier(4)
    outcomes: list[int | str] = []

    def add(number: int) -> None:
        memory = Memory.open(address)
        batch = memory.table.record_batch([Passage(f"n{number}", "new")], np.ones((1, 8), np.float16))
        try:
            with memory.table.writing():
                staged = memory.table.stage([batch])
                barrier.wait()
                outcomes.append(memory.table.commit(staged, change="added 1").version)
        except MemoryStoreError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert outcomes.count(3) == 1
    assert len(refused) == 3
    assert all(
        "someone else committed to s3://" in each
        or "someone else is committing to s3://" in each
        or "its newest is 3; open it without" in each
        for each in refused
    ), refused
    assert len(Memory.open(address)) == 13
    files, needed = files_and_needed(address)
    assert {name for name in files - needed if name.startswith("data/")} == set()  # what the others staged is gone
    assert verify(address).problems == []


def test_of_simultaneous_makers_one_wins(address, encoder):
    Memory.create(address, encoder)
    with pytest.raises(MemoryStoreError, match="exists already"):
        Memory.create(address, encoder)


def test_what_a_killed_writer_leaves_goes_when_it_is_old(address, encoder, monkeypatch):
    memory = Memory.create(address, encoder).add(PASSAGES, encoder)
    table = memory.table
    rows = table.record_batch([Passage("n", "new")], np.ones((1, 8), np.float16))
    (left,) = write_fragments(rows, table.dataset, mode="append")  # and then the process was killed
    name = f"data/{left.files[0].path}"
    memory = memory.add([Passage("m", "more")], encoder)
    upkeep.prune(address, keep=1)
    assert name in ObjectStore(ObjectPath.parse(address)).files()
    report = verify(address)
    assert report.problems == []
    (note,) = report.notes
    assert note == f"1 files belong to no version; a writer may be about to commit them, {name}"
    monkeypatch.setattr(object_store, "ABANDONED_AFTER", timedelta(seconds=-5))
    (problem,) = verify(address).problems
    assert problem.remedy == f"a writer must have died; `latentrag index prune {address} --keep 10` removes them"
    upkeep.prune(address, keep=1)
    assert name not in ObjectStore(ObjectPath.parse(address)).files()
    assert verify(address).problems == []
    assert len(Memory.open(address)) == 13


def test_a_commit_that_was_not_recorded_is_recorded_by_the_next_writer(address, encoder, monkeypatch):
    memory = Memory.create(address, encoder)

    def killed(self, checksums):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            memory.add(PASSAGES, encoder)
    assert verify(address).num_unrecorded == 2
    memory = Memory.open(address).add([Passage("n", "new")], encoder)
    assert (memory.version, len(memory)) == (3, 13)
    report = verify(address)
    assert (report.problems, report.num_unrecorded) == ([], 0)


def test_damage_shows(address, encoder):
    memory = Memory.create(address, encoder).add(PASSAGES, encoder)
    place = ObjectPath.parse(address)
    ((name,),) = memory.table.fragments()
    content = bytearray((place / name).read_bytes())
    content[40] ^= 1
    place.remove([name])
    assert (place / name).write_new(bytes(content))
    (problem,) = verify(address).problems
    assert "is not as it was written" in problem.what
    with pytest.raises(MemoryStoreError, match="cannot be repaired where it lies.*copy its objects to a folder"):
        repair(address)
    with pytest.raises(MemoryStoreError, match="cannot be forgotten from where it lies"):
        upkeep.forget(address, ["p1"])


def test_a_reencoding_goes_on(address, encoder, make_encoder):
    memory = Memory.create(address, encoder).add(PASSAGES, encoder)
    other = make_encoder(6, "f2")
    again = memory.reencode(other, resumes=True)
    assert (again.card.dimension, again.version, len(again)) == (6, 3, 12)
    assert not (again.local / "_reencoding.jsonl").exists()


def test_indexes_are_on_the_local_disk(address, encoder, home):
    memory = Memory.create(address, encoder).add([Passage(f"p{i}", f"text {i}") for i in range(80)], encoder)
    exact = memory.search(Q, 5).passages
    built = Memory.open(address)
    built.build_index("ivf-rabitq")
    built.build_words()
    reopened = Memory.open(address)
    assert reopened.search(Q, 5).passages == exact
    assert type(reopened.index).__name__ != "FlatIndex"
    assert reopened.local.is_relative_to(home / "objects")
    assert len(list((reopened.local / "_indexes").glob("ivf-rabitq-*"))) == 1
    assert len(list((reopened.local / "_indexes/words").glob("*.words"))) == 1
    report = verify(address)
    assert report.problems == []
    assert [index.kind for index in report.indexes] == ["ivf-rabitq"]
    assert all(not name.startswith("_indexes") for name, _ in ObjectPath.parse(address).listed())


def test_versions_are_exchanged(address, encoder):
    memory = Memory.create(address, encoder).add(PASSAGES, encoder)
    live = LiveMemory(memory)
    memory.delete(["p0"])
    before = live.use("newest")
    assert (before.version, live.version, len(live)) == (2, 3, 11)


def test_nothing_secret_is_stored(address, encoder, home):
    memory = Memory.create(address, encoder).add(PASSAGES, encoder)
    memory.build_index("ivf-rabitq")
    place = ObjectPath.parse(address)
    assert all(b"very-secret" not in (place / name).read_bytes() for name, _ in place.listed())
    assert all(b"very-secret" not in file.read_bytes() for file in home.rglob("*") if file.is_file())


def test_staged_files_that_are_gone_are_not_committed(address, encoder):
    memory = Memory.create(address, encoder)
    rows = memory.table.record_batch([Passage("n", "new")], np.ones((1, 8), np.float16))
    with pytest.raises(MemoryStoreError, match="1 files of s3://.* were removed before they were committed"):
        stage_and_lose(memory, rows)
    assert Memory.open(address).version == 1


def stage_and_lose(memory, rows):
    with memory.table.writing():
        staged = memory.table.stage([rows])
        ObjectPath.parse(memory.name).remove(list(staged.checksums))
        memory.table.commit(staged, change="added 1")


def test_many_files_are_as_long_as_they_were(address, encoder):
    memory = Memory.create(address, encoder)
    for i in range(18):
        memory = memory.add([Passage(f"p{i}", f"text {i}")], encoder)
    assert len(Memory.open(address)) == 18
    storage = storage_of(address)
    (name,) = list(memory.table.fragments())[3]
    storage.remove([name])
    with pytest.warns(UserWarning, match=f"{name}: No such file or directory.*opened version 4"):
        assert len(Memory.open(address)) == 3


def test_checksums_are_joined(address, encoder):
    """An object a commit, until versions are pruned."""
    memory = Memory.create(address, encoder)
    for i in range(3):
        memory = memory.add([Passage(f"p{i}", f"text {i}")], encoder)
    place = ObjectPath.parse(address) / "_checksums"
    assert len(list(place.iterdir())) == 4
    open_before = Memory.open(address)
    upkeep.prune(address, keep=1)
    assert len(list(place.iterdir())) == 1
    assert verify(address).num_unrecorded == 0
    assert len(open_before.add([Passage("n", "new")], encoder)) == 4
    upkeep.prune(address, keep=5)
    assert verify(address).num_unrecorded == 0


def test_a_store_that_goes_away_is_no_damage(home, encoder, monkeypatch):
    """What Lance cannot read for want of a connection is not taken for damaged."""
    with running() as (server, process):
        set_variables(server, monkeypatch)
        send("PUT", server, "/away")
        memory = Memory.create("s3://away/m", encoder).add(PASSAGES, encoder)
        memory.search(Q, 3)
        process.terminate()
        process.wait()
        no_connection = "cannot be reached: there is no connection; check the network and AWS_ENDPOINT_URL"
        with pytest.raises(MemoryStoreError, match=f"^the object store {no_connection}"):
            list(memory.passages())
        with pytest.raises(MemoryStoreError, match=f"^s3://away/m.* {no_connection}"):
            memory.delete(["p0"])
        with pytest.raises(MemoryStoreError, match=f"^s3://away/m.* {no_connection}"):
            Memory.open("s3://away/m")


def test_a_memory_is_copied_there_and_back(address, encoder, tmp_path):
    Memory.create(tmp_path / "notes", encoder).add(PASSAGES, encoder)
    place = ObjectPath.parse(address)
    for file in (tmp_path / "notes").rglob("*"):
        if file.is_file():
            (place / file.relative_to(tmp_path / "notes").as_posix()).write_new(file.read_bytes())
    assert Memory.open(address).add([Passage("n", "new")], encoder).version == 3
    report = verify(address)
    assert (report.problems, report.num_passages) == ([], 13)
    assert report.num_unrecorded > 0
    for name, _ in place.listed():
        file = tmp_path / "back" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((place / name).read_bytes())
    assert upkeep.forget(tmp_path / "back", ["p1"]).version > 3
    assert len(Memory.open(tmp_path / "back")) == 12


def test_one_commits_a_version_and_the_claim_of_a_dead_process_is_passed_over(address, encoder, monkeypatch):
    memory = Memory.create(address, encoder)
    claim = ObjectPath.parse(address) / "_claims/2.0"
    owner = Owner.this_process()
    claim.write_new(json.dumps(asdict(owner)).encode())
    with pytest.raises(
        MemoryStoreError, match="someone else is committing to s3://.* after version 1; .* 5 minutes later"
    ):
        memory.add(PASSAGES, encoder)
    files, needed = files_and_needed(address)
    assert files == needed & files  # what it had written is gone
    with monkeypatch.context() as patched:
        patched.setattr(object_store, "CLAIMED_FOR", timedelta(seconds=-5))
        assert memory.add(PASSAGES, encoder).version == 2
    (ended := subprocess.Popen([sys.executable, "-c", ""])).wait()
    (claim.parent / "3.0").write_new(json.dumps(asdict(replace(owner, pid=ended.pid))).encode())
    assert Memory.open(address).delete(["p0"]).version == 3
    assert list(claim.parent.iterdir()) == []


def test_nothing_is_put_on_top_of_what_others_have_committed(address, encoder, monkeypatch):
    """Lance would, where rows allow it; two additions of one id would both succeed."""
    memory = Memory.create(address, encoder)
    first, second = (Memory.open(address) for _ in range(2))
    first.add(PASSAGES[:1], encoder)
    monkeypatch.setattr(type(memory.table), "require_newest", lambda _: None)  # both looked before
    with pytest.raises(MemoryStoreError, match="someone else committed to s3://"):
        second.add(PASSAGES[:1], encoder)
    assert len(Memory.open(address)) == 1
