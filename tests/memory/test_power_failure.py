"""Power failures: what was acknowledged is there afterwards, whatever was not forced to the disk is lost."""

import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latentrag import io as disk_module
from latentrag.memory import Memory, history, upkeep
from latentrag.memory.indexes import IndexFolder
from latentrag.memory.verify import verify
from latentrag.types import Passage
from tests.memory.power_failure import Disk

State = dict[str, str]


def state_of(memory: Memory) -> State:
    passages = list(memory.passages())
    assert len(passages) == len({z.id for z in passages})
    return {z.id: z.text for z in passages}


@pytest.fixture
def changes(encoder) -> list[tuple[str, Callable[[Memory], object]]]:
    return [
        ("add", lambda memory: memory.add([Passage(f"q{i}", f"new text {i}") for i in range(3)], encoder)),
        ("upsert", lambda memory: memory.upsert([Passage("p0", "changed"), Passage("r", "r")], encoder)),
        ("tag", lambda memory: history.tag(memory.path, "good", 3)),
        ("serve", lambda memory: history.serve(memory.path, 4)),
        ("delete", lambda memory: memory.delete(["p1", "q0"])),
        ("compact", lambda memory: upkeep.compact(memory.path)),
        ("serve", lambda memory: history.serve(memory.path, 5)),
        ("prune", lambda memory: upkeep.prune(memory.path, keep=1)),
        ("untag", lambda memory: history.untag(memory.path, "good")),
        ("forget", lambda memory: upkeep.forget(memory.path, ["p2"])),
        ("reencode", lambda memory: memory.reencode(encoder)),
    ]


def test_what_was_acknowledged_survives(monkeypatch, tmp_path, path, encoder, changes):
    """At each fsync of each change the power fails: once with all lost that can be, once with a part of it."""
    disk, rng, num_failures, warned = Disk(path), random.Random(0), 0, []
    Memory.create(path, encoder).add([Passage(f"p{i}", f"text {i}") for i in range(6)], encoder)
    disk.sync_everything()
    expected: tuple[State, ...] = ()
    expected_tags: tuple[dict[str, int], ...] = ()

    def fail() -> None:
        nonlocal num_failures
        num_failures += 1
        for worst in (True, False):
            copy = tmp_path / "copy.lance"
            disk.after_power_failure(copy, rng, worst=worst)
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                assert state_of(Memory.open(copy)) in expected
                assert history.tags(copy) in expected_tags
            warned.extend(found)
            shutil.rmtree(copy)

    monkeypatch.setattr(disk_module, "sync_handle", disk.fsync)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    for name, change in changes:
        memory = Memory.open(path)
        before = state_of(memory)
        after = state_after(name, before)
        names = history.tags(path)
        expected, expected_tags = (before, after), (names, names_after(name, names))
        disk.before_sync = fail
        change(memory)
        expected, expected_tags = (after,), (names_after(name, names),)
        fail()  # acknowledged: nothing else may be found from now on
        disk.before_sync = lambda: None
        assert state_of(Memory.open(path)) == after, name
    assert num_failures > 60
    assert any("cannot be read" in str(each.message) for each in warned)  # some manifests were torn


def test_an_index_is_there_whole_or_not_at_all(monkeypatch, tmp_path, path, encoder, queries, hnsw):
    """At each fsync of a build the power fails; what is found then, and is not known to be damaged, is searched."""
    disk, rng, found = Disk(path), random.Random(0), []
    memory = Memory.create(path, encoder).add([Passage(f"p{i}", f"text {i}") for i in range(20)], encoder)
    exact = memory.search(queries, 20)
    memory.build_index(hnsw)
    disk.sync_everything()

    def fail() -> None:
        for worst in (True, False):
            copy = tmp_path / "copy.lance"
            disk.after_power_failure(copy, rng, worst=worst)
            published, damaged = IndexFolder.of(copy).indexes()
            assert not damaged
            for each in published:
                each.verify()
            found.append(sorted(each.description.kind for each in published))
            assert np.array_equal(Memory.open(copy).search(queries, 20).scores, exact.scores)
            assert verify(copy).problems == []
            shutil.rmtree(copy)

    monkeypatch.setattr(disk_module, "sync_handle", disk.fsync)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    disk.before_sync = fail
    memory.build_index("ivf-rabitq")
    fail()  # acknowledged
    assert len(found) > 10
    assert found[0] == [hnsw]
    assert found[-2:] == [[hnsw, "ivf-rabitq"]] * 2


def names_after(change: str, before: dict[str, int]) -> dict[str, int]:
    if change == "tag":
        return before | {"good": 3}
    if change == "serve":
        return before | {"served": 5 if "served" in before else 4}
    gone = {"untag": {"good"}, "forget": {"served"}}.get(change, set())
    return {name: version for name, version in before.items() if name not in gone}


def state_after(name: str, before: State) -> State:
    if name == "add":
        return before | {f"q{i}": f"new text {i}" for i in range(3)}
    if name == "upsert":
        return before | {"p0": "changed", "r": "r"}
    gone = {"delete": {"p1", "q0"}, "forget": {"p2"}}.get(name, set())
    return {key: text for key, text in before.items() if key not in gone}


@pytest.mark.parametrize("worst", [True, False])
def test_the_next_writer_clears_up(monkeypatch, tmp_path, path, encoder, worst):
    """A copy of every moment of an upsert can be written to, and is whole then."""
    disk, rng = Disk(path), random.Random(1)
    copies: list[Path] = []
    Memory.create(path, encoder).add([Passage(f"p{i}", f"text {i}") for i in range(6)], encoder)
    disk.sync_everything()

    def fail() -> None:
        copies.append(tmp_path / f"{len(copies)}.lance")
        disk.after_power_failure(copies[-1], rng, worst=worst)

    memory = Memory.open(path)
    disk.before_sync = fail
    with monkeypatch.context() as patched:
        patched.setattr(disk_module, "sync_handle", disk.fsync)
        patched.setattr(os, "fsync", disk.fsync)
        memory.upsert([Passage("p0", "changed"), Passage("r", "r")], encoder)
    assert len(copies) > 8
    for copy in copies:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = Memory.open(copy)
            held = state_of(opened)
            after = opened.upsert([Passage("s", "s")], encoder)
        assert state_of(after) == held | {"s": "s"}
        assert verify(copy).problems == []
