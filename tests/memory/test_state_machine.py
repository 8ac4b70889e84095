"""A memory against a dict, through random changes, versions, syncs, indexes, upkeep, bit rot and writers that die."""

import json
import shutil
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from latentrag.errors import MemoryStoreError
from latentrag.ids import document_of, id_of_part
from latentrag.memory import Memory, history, storage, upkeep
from latentrag.memory.history import diff
from latentrag.memory.repair import repair
from latentrag.memory.table import Table
from latentrag.memory.verify import verify
from latentrag.sync import SyncOptions, sync
from latentrag.types import Passage
from tests.memory.conftest import FakePassageEncoder
from tests.memory.indexing import STORED_KINDS

IDS = st.integers(0, 11).map("p{}".format)
NOTES = st.integers(0, 3).map("notes/{}.txt".format)
"""Passages of a folder that is synced: one of each file."""
TEXTS = st.integers(0, 5).map("a text with the number {}".format)
PASSAGES = st.lists(st.builds(Passage, IDS, TEXTS), min_size=1, max_size=6, unique_by=lambda z: z.id)

State = dict[str, str]


def named(name: str, text: str, before: State) -> str:
    """The id of a file's only passage: the file's, until it has another text; a text keeps its id."""
    old = {key: held for key, held in before.items() if document_of(key) == name}
    return next((key for key, held in old.items() if held == text), id_of_part(name, text) if old else name)


class Machine(RuleBasedStateMachine):
    """``versions`` is what each version must hold, by its number."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "m.lance"
        self.encoder = FakePassageEncoder()
        self.memory = Memory.create(self.path, self.encoder)
        self.versions: dict[int, State] = {1: {}}
        self.tags: dict[str, int] = {}

    def teardown(self) -> None:
        assert verify(self.path).problems == []
        shutil.rmtree(self.folder)

    @property
    def state(self) -> State:
        return self.versions[self.memory.version]

    def committed(self, memory: Memory, state: State) -> None:
        assert memory.version == self.memory.version + 1
        self.memory = memory
        self.versions[memory.version] = state

    @rule(passages=PASSAGES)
    def add(self, passages: list[Passage]) -> None:
        new = [z for z in passages if z.id not in self.state]
        if new:
            state = self.state | {z.id: z.text for z in new}
            self.committed(self.memory.add(new, self.encoder), state)

    @rule(passages=PASSAGES)
    def upsert(self, passages: list[Passage]) -> None:
        state = self.state | {z.id: z.text for z in passages}
        self.committed(self.memory.upsert(passages, self.encoder), state)

    @rule(ids=st.sets(IDS | NOTES, min_size=1))
    def delete(self, ids: set[str]) -> None:
        if here := ids & self.state.keys():
            state = {key: text for key, text in self.state.items() if key not in here}
            self.committed(self.memory.delete(here), state)

    @precondition(lambda self: self.state)
    @rule()
    def reencode(self) -> None:
        self.committed(self.memory.reencode(self.encoder), self.state)

    @rule()
    def compact(self) -> None:
        done = upkeep.compact(self.path)
        if done.changed:
            self.committed(Memory.open(self.path), self.state)
        assert done.version == self.memory.version

    @rule(files=st.dictionaries(NOTES, TEXTS, min_size=1))
    def sync(self, files: State) -> None:
        """The memory follows the folder, whatever has been deleted from it meanwhile; what was added by hand stays."""
        shutil.rmtree(self.folder / "notes", ignore_errors=True)
        (self.folder / "notes").mkdir()
        for name, text in files.items():
            (self.folder / name).write_text(text)
        before = self.state
        read = {named(name, text, before): text for name, text in files.items()}
        during = {key: text for key, text in before.items() if document_of(key) not in files} | read
        after = {key: text for key, text in before.items() if not key.startswith("notes/")} | read
        found = sync(self.path, self.folder / "notes", lambda: self.encoder, options=SyncOptions(delete_missing=True))
        assert found.version is not None
        for number in range(self.memory.version + 1, found.version + 1):
            here = {z.id: z.text for z in Memory.open(self.path, version=number).passages()}
            assert here in (before, during, after)  # made ready; files that are there; then those that are gone
            self.versions[number] = here
        self.memory = Memory.open(self.path)
        self.versions[self.memory.version] = after

    @precondition(lambda self: self.state)
    @rule(kind=st.sampled_from(STORED_KINDS))
    def build_index(self, kind: str) -> None:
        self.memory.build_index(kind)
        self.memory = Memory.open(self.path)  # searched through it from here on, whatever is changed
        check(self.memory, self.state)
        self.delete({min(self.state)})

    @rule(which=st.floats(0, 1, exclude_max=True), where=st.floats(0, 1, exclude_max=True))
    def a_bit_is_wrong(self, which: float, where: float) -> None:
        """Fractions, and files in the order of their content: names and times differ from run to run."""
        files = sorted((self.path / "data").glob("*"), key=Path.read_bytes)
        if not files:
            return
        file = files[int(which * len(files))]
        content = file.read_bytes()
        place = int(where * len(content))
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x81]) + content[place + 1 :])
        before = self.state
        try:
            done = repair(self.path)
        except MemoryStoreError:
            file.write_bytes(content)
            return
        assert done.set_aside
        self.versions = {number: held for number, held in self.versions.items() if number not in done.set_aside}
        self.tags = {name: number for name, number in self.tags.items() if number not in done.set_aside}
        self.memory = Memory.open(self.path)
        if self.memory.version not in self.versions:  # made of what is intact: nothing else, and more than there was
            here = {z.id: z.text for z in self.memory.passages()}
            assert here.items() <= before.items()
            assert len(here) > len(self.versions[max(self.versions)]) if self.versions else here
            self.versions[self.memory.version] = here

    @rule()
    def reopen(self) -> None:
        version = self.memory.version
        self.memory = Memory.open(self.path)
        assert self.memory.version == version

    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        check(Memory.open(self.path, version=number), self.versions[number])

    @rule(name=st.sampled_from(["a", "b", "served"]), data=st.data())
    def give_a_name(self, name: str, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        if name == "served":
            history.serve(self.path, number)
        elif name in self.tags:
            assert history.untag(self.path, name) == self.tags[name]
            history.tag(self.path, name, number)
        else:
            history.tag(self.path, name, number)
        self.tags[name] = number
        assert Memory.open(self.path, version=name).version == number

    @rule(keep=st.integers(1, 4))
    def prune(self, keep: int) -> None:
        stays = {*sorted(self.versions)[-keep:], *self.tags.values()}
        done = upkeep.prune(self.path, keep=keep)
        assert set(done.removed) == self.versions.keys() - stays
        self.versions = {number: state for number, state in self.versions.items() if number in stays}

    @rule(ids=st.sets(IDS | NOTES, min_size=1, max_size=2))
    def forget(self, ids: set[str]) -> None:
        ever = set().union(*self.versions.values())
        if not ids <= ever:
            return
        state = {key: text for key, text in self.state.items() if key not in ids}
        done = upkeep.forget(self.path, ids)
        assert done.left == []
        dropped = {number for number, held in self.versions.items() if held.keys() & ids}
        assert dropped <= set(done.dropped)
        self.versions = {number: held for number, held in self.versions.items() if number not in done.dropped}
        self.tags = {name: number for name, number in self.tags.items() if number not in done.dropped}
        assert history.tags(self.path) == self.tags
        self.memory = Memory.open(self.path)
        self.versions[self.memory.version] = state

    @rule(name=st.sampled_from(["data/0.lance", "data/.tmpX", "_deletions/9-9-9.arrow", "_versions/.tmpY"]))
    def a_writer_dies(self, name: str) -> None:
        (self.path / name).parent.mkdir(exist_ok=True)
        (self.path / name).write_bytes(b"half a file")
        (self.path / storage.LOCK_FILE).write_text(json.dumps(asdict(storage.Owner.this_process())))
        self.upsert([Passage("p0", "after")])
        assert not (self.path / name).exists()

    @rule(data=st.data())
    def compare(self, data: st.DataObject) -> None:
        numbers = st.sampled_from(sorted(self.versions))
        a, b = data.draw(numbers), data.draw(numbers)
        before, after = self.versions[a], self.versions[b]
        found = diff(Table.open(self.path, a), Table.open(self.path, b))
        assert sorted(found.added) == sorted(after.keys() - before.keys())
        assert sorted(found.removed) == sorted(before.keys() - after.keys())
        assert sorted(found.changed) == sorted(z for z in after.keys() & before.keys() if after[z] != before[z])

    @invariant()
    def holds_what_it_must(self) -> None:
        check(self.memory, self.state)


def check(memory: Memory, state: State) -> None:
    assert {z.id: z.text for z in memory.passages()} == state
    assert len(memory) == len(state)
    if state:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* has changed since its index was built")
            found = memory.search(np.ones((1, memory.card.dimension), np.float32), len(state))
        expected = {key: FakePassageEncoder().vector(text).astype(np.float16) for key, text in state.items()}
        assert {z.id for z in found.passages[0]} == state.keys()
        for z, vector in zip(found.passages[0], found.vectors[0], strict=True):
            assert np.array_equal(vector, expected[z.id].astype(np.float32))


TestMemoryAgainstADict = Machine.TestCase
TestMemoryAgainstADict.settings = settings(
    max_examples=10, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
