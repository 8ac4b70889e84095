"""The parts of a memory that another kind of place replaces: commit, lock, durability, checksums."""

import json
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lance
import pytest
from lance.commit import CommitConflictError

from latentrag.errors import MemoryStoreError
from latentrag.memory import LocalDisk, Memory, Storage, history, upkeep
from latentrag.memory.repair import repair
from latentrag.memory.storage import Checksum, WriterLock
from latentrag.memory.verify import verify
from latentrag.types import Passage


@dataclass(frozen=True)
class ObjectStore:
    """As an object store would: no lock and no fsync, commits on a condition, checksums one object a commit."""

    folder: Path
    objects: dict[int, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    options = None
    is_exclusive = True  # so far as these tests write: nobody else repairs meanwhile

    @property
    def local(self) -> Path:
        return self.folder

    def making(self) -> AbstractContextManager[str]:
        return LocalDisk(self.folder).making()

    def files(self) -> set[str]:
        return LocalDisk(self.folder).files()

    def sizes(self, names: Collection[str]) -> dict[str, int]:
        return LocalDisk(self.folder).sizes(names)

    def written(self, before: Collection[str]) -> set[str]:
        return LocalDisk(self.folder).written(before)

    def abandoned(self) -> set[str]:
        return self.files()

    def remove(self, names: Collection[str]) -> int:
        return LocalDisk(self.folder).remove(names)

    def name_version(self, dataset: lance.LanceDataset, name: str, version: int) -> None:
        LocalDisk(self.folder).name_version(dataset, name, version)

    @contextmanager
    def lock(self) -> Iterator[WriterLock]:
        self.calls.append("lock")
        yield WriterLock(None, lambda: None)

    def owner(self) -> None:
        return None

    def force(self, names: Iterable[str]) -> None:
        self.calls.extend(f"force {name.split('/')[0]}" for name in names)

    def publish(self, dataset: lance.LanceDataset, operation: Any, *, change: str) -> lance.LanceDataset:
        self.calls.append("publish")
        if dataset.latest_version != dataset.version:
            raise CommitConflictError("the condition does not hold")
        return LocalDisk(self.folder).publish(dataset, operation, change=change)

    def record(self, checksums: Mapping[str, Checksum]) -> None:
        self.calls.append("record")
        content = {name: asdict(checksum) for name, checksum in checksums.items()}
        self.objects[len(self.objects)] = json.dumps(content)

    def checksums(self) -> dict[str, Checksum]:
        merged: dict[str, Any] = {}
        for content in self.objects.values():
            merged |= json.loads(content)
        return {name: Checksum(**fields) for name, fields in merged.items()}

    def checksum(self, name: str) -> Checksum | None:
        return self.checksums().get(name)

    def keep_checksums(self, names: Collection[str]) -> None:
        kept = {name: checksum for name, checksum in self.checksums().items() if name in names}
        self.objects.clear()
        self.record(kept)


@pytest.fixture
def store(path) -> ObjectStore:
    return ObjectStore(path)


def test_a_memory_lives_in_another_storage(store, path, encoder, queries):
    """Made, added to, changed, searched, checked, named, compacted, pruned: nothing is left to the local disk's own."""
    storage: Storage = store
    memory = Memory.create(storage, encoder).add([Passage(f"p{i}", f"text {i}") for i in range(12)], encoder)
    memory = memory.upsert([Passage("p0", "changed")], encoder).delete(["p1"])
    assert (memory.version, len(memory)) == (4, 11)
    reopened = Memory.open(storage)
    assert reopened.search(queries, 3).passages == memory.search(queries, 3).passages
    history.tag(storage, "good", 2)
    assert upkeep.compact(storage).changed
    assert upkeep.prune(storage, keep=1).removed == [1, 3, 4]
    assert memory.at("good").version == 2
    report = verify(storage)
    assert (report.problems, report.num_unrecorded, report.version) == ([], 0, 5)
    assert not any((path / name).exists() for name in ("_checksums.jsonl", "_writer.lock"))


def test_a_commit_takes_its_steps_in_order(store, encoder):
    memory = Memory.create(store, encoder)
    store.calls.clear()
    memory = memory.add([Passage("a", "one")], encoder)
    assert store.calls == ["lock", "force data", "publish", "force _transactions", "force _versions", "record"]
    store.calls.clear()
    memory.delete(["a"])
    assert [call for call in store.calls if call not in {"force _deletions", "force _transactions"}] == [
        *("lock", "publish", "force _versions", "record")
    ]


def test_of_simultaneous_commits_without_a_lock_one_wins(store, encoder):
    memory = Memory.create(store, encoder).add([Passage(f"p{i}", f"text {i}") for i in range(6)], encoder)
    barrier = threading.Barrier(4)
    outcomes: list[int | str] = []

    def change(number: int) -> None:
        barrier.wait()
        try:
            outcomes.append(memory.table.commit(removed_ids=[f"p{number}"], change="deleted 1").version)
        except MemoryStoreError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(3) == 1
    refused = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(refused) == 3
    assert all("committed to" in each or "its newest is 3" in each for each in refused), refused
    assert len(Memory.open(store)) == 5


def test_a_winner_records_its_own_transaction_and_no_losers(store, path, encoder):
    """Who loses writes a transaction too, and Lance removes it at any moment."""
    memory = Memory.create(store, encoder).add([Passage("a", "one")], encoder)
    of_loser = "_transactions/2-00000000-0000-0000-0000-000000000000.txn"
    (path / of_loser).write_bytes(b"")
    memory.delete(["a"])
    recorded = {name for name in store.checksums() if name.startswith("_transactions/2-")}
    assert len(recorded) == 1
    assert of_loser not in recorded


def test_its_checksums_decide_what_is_damaged(store, path, encoder):
    Memory.create(store, encoder).add([Passage("a", "one")], encoder).add([Passage("b", "two")], encoder)
    manifest = sorted((path / "_versions").iterdir())[0]  # the newest comes first
    content = bytearray(manifest.read_bytes())
    content[-5] ^= 1
    manifest.write_bytes(content)
    with pytest.warns(UserWarning, match="not as it was written.*; opened version 2"):
        assert len(Memory.open(store)) == 1
    done = repair(store)
    assert (done.set_aside, done.newest, done.lost) == ([3], 2, ["b"])


WITHOUT = """
import os, sys
sys.modules["fcntl"] = None
for name in ("pread", "pwrite", "sysconf", "posix_fadvise", "sched_getaffinity", "O_DIRECTORY", "statvfs"):
    if hasattr(os, name):
        delattr(os, name)
import numpy as np
from latentrag.errors import MemoryStoreError
from latentrag.memory import LiveMemory, Memory
from latentrag.memory.verify import verify
from tests.memory.conftest import FakePassageEncoder
path = sys.argv[1]
memory = LiveMemory(Memory.open(path)).snapshot()
found = memory.search(np.ones((1, 8), np.float32), 3)
assert len(found.passages[0]) == 3
assert [z.id for z in memory.get(["p7", "p1"])] == ["p7", "p1"]
assert len(list(memory.passages())) == 12 and len(memory.log()) == 2
assert len(Memory.open(path, version=1)) == 0
report = verify(path)
assert report.problems == [], report.problems
try:
    memory.delete(["p1"])
except MemoryStoreError as error:
    print(error)
"""


@pytest.mark.parametrize("index", ["flat", "ivf-rabitq"])
def test_reading_needs_nothing_that_windows_lacks(path, filled, index):
    if index != "flat":
        filled.build_index(index)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WITHOUT, str(path)]
    done = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no locks on files that latentrag knows; change memories on Linux or macOS" in done.stdout
