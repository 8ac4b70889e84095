"""A memory against a dict, through random changes, versions, upkeep and writers that die."""

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from latentrag.memory import Memory, forgetting, lock, tags, upkeep
from latentrag.memory.diff import diff
from latentrag.memory.table import Table
from latentrag.memory.verify import verify
from latentrag.types import Passage
from tests.memory.conftest import FakePassageEncoder

IDS = st.integers(0, 11).map("p{}".format)
TEXTS = st.integers(0, 5).map("a text with the number {}".format)
PASSAGES = st.lists(st.builds(Passage, IDS, TEXTS), min_size=1, max_size=6, unique_by=lambda z: z.id)

State = dict[str, str]


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

    @rule(ids=st.sets(IDS, min_size=1))
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
            tags.serve(self.path, number)
        elif name in self.tags:
            assert tags.untag(self.path, name) == self.tags[name]
            tags.tag(self.path, name, number)
        else:
            tags.tag(self.path, name, number)
        self.tags[name] = number
        assert Memory.open(self.path, version=name).version == number

    @rule(keep=st.integers(1, 4))
    def prune(self, keep: int) -> None:
        stays = {*sorted(self.versions)[-keep:], *self.tags.values()}
        done = upkeep.prune(self.path, keep=keep)
        assert set(done.removed) == self.versions.keys() - stays
        self.versions = {number: state for number, state in self.versions.items() if number in stays}

    @rule(ids=st.sets(IDS, min_size=1, max_size=2))
    def forget(self, ids: set[str]) -> None:
        ever = set().union(*self.versions.values())
        if not ids <= ever:
            return
        state = {key: text for key, text in self.state.items() if key not in ids}
        done = forgetting.forget(self.path, ids)
        assert done.left == []
        dropped = {number for number, held in self.versions.items() if held.keys() & ids}
        assert dropped <= set(done.dropped)
        self.versions = {number: held for number, held in self.versions.items() if number not in done.dropped}
        self.tags = {name: number for name, number in self.tags.items() if number not in done.dropped}
        assert tags.tags(self.path) == self.tags
        self.memory = Memory.open(self.path)
        self.versions[self.memory.version] = state

    @rule(name=st.sampled_from(["data/0.lance", "data/.tmpX", "_deletions/9-9-9.arrow", "_versions/.tmpY"]))
    def a_writer_dies(self, name: str) -> None:
        (self.path / name).parent.mkdir(exist_ok=True)
        (self.path / name).write_bytes(b"half a file")
        (self.path / lock.LOCK_FILE).write_text(json.dumps(asdict(lock.Owner.this_process())))
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
        found = memory.search(np.ones((1, memory.manifest.dimension), np.float32), len(state))
        expected = {key: FakePassageEncoder().vector(text).astype(np.float16) for key, text in state.items()}
        assert {z.id for z in found.passages[0]} == state.keys()
        for z, vector in zip(found.passages[0], found.vectors[0], strict=True):
            assert np.array_equal(vector, expected[z.id].astype(np.float32))


TestMemoryAgainstADict = Machine.TestCase
TestMemoryAgainstADict.settings = settings(
    max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
