"""Passages that are to be gone, with their bytes."""

import shutil

import pytest

from latentrag.errors import InputError, MemoryStoreError
from latentrag.memory import LocalDisk, Memory, history, upkeep, version_files
from latentrag.memory import table as table_module
from latentrag.memory.repair import repair
from latentrag.memory.upkeep import forget
from latentrag.memory.verify import verify
from latentrag.memory.version_files import passages_of_file
from latentrag.types import Passage
from tests.memory.indexing import build

SECRET = "Ada's number is 555-0199, and it was nobody's business."


@pytest.fixture
def secret(monkeypatch, path, encoder, filled):
    """Version 3 has the secret in a file with others, 4 adds another file, 5 replaces it, 6 deletes it."""
    monkeypatch.setattr(table_module, "ROWS_PER_FRAGMENT", 4)  # a file that is compacted does not swallow the others
    others = [Passage(f"q{i}", f"text {i}") for i in range(4)]
    memory = filled.add([*others, Passage("ada", SECRET)], encoder).add([Passage("late", "t")], encoder)
    return memory.upsert([Passage("ada", "Ada's number is secret.")], encoder).delete(["ada"])


def everywhere(path):
    """Every text in every file, deleted or not: files are compressed, so that their bytes say little."""
    disk = LocalDisk(path)
    names = (name for name in disk.files() if name.startswith("data/"))
    return {z.text for name in names for z in passages_of_file(disk, name)}


def test_forgotten_passages_are_in_no_file(path, secret):
    assert SECRET in everywhere(path)
    history.tag(path, "a", 4)
    history.tag(path, "b", 2)
    history.serve(path, 5)
    (path / version_files.INDEXES).mkdir()
    (path / version_files.INDEXES / "7.index").write_text("vectors")
    state = {z.id for z in secret.passages()}

    done = forget(path, ["ada"])

    assert [z.text for z in done.passages] == [SECRET, "Ada's number is secret."]
    assert everywhere(path).isdisjoint(z.text for z in done.passages)
    assert (done.dropped, done.tags, done.left, done.same_text) == ([3, 4, 5, 6], ["a", "served"], [], {})
    assert history.tags(path) == {"b": 2}
    assert not (path / version_files.INDEXES).exists()
    memory = Memory.open(path)
    assert {z.id for z in memory.passages()} == state
    assert [(v.number, v.change) for v in memory.log()] == [(1, "created"), (2, "added 12"), (7, "forgot 1")]
    assert verify(path).problems == []


def test_the_newest_version_loses_only_what_is_forgotten(path, encoder, filled, queries):
    memory = filled.add([Passage("ada", SECRET, title="Ada")], encoder)
    expected = memory.delete(["ada", "p3"]).search(queries, 5)
    done = forget(path, ["ada", "p3", "ada"])
    assert {z.id for z in done.passages} == {"ada", "p3"}
    found = Memory.open(path).search(queries, 5)
    assert found.passages == expected.passages
    assert len(Memory.open(path)) == 11
    assert done.dropped == [2, 3, 4]
    with pytest.raises(InputError, match="1 ids are in no version of .*: 'ada'; leave them out"):
        forget(path, ["ada", "p1"])
    assert len(Memory.open(path).get(["p1"])) == 1


@pytest.mark.parametrize("stage", ["copying passages", "training"])
def test_an_index_that_is_being_built_does_not_survive(path, filled, stage):
    """Neither if the build began before, nor if it begins afterwards from a version that is gone."""

    def progress(what, *_):
        if what == stage and not forgotten:
            forgotten.append(forget(path, ["p0"]))

    forgotten: list[object] = []
    for _ in range(2):
        with pytest.raises(MemoryStoreError):
            build(filled._table, "ivf-rabitq", progress=progress)
    assert not [file for file in path.rglob("*") if file.name in ("vectors.f16", "passages.json")]
    assert len(forgotten) == 1
    assert Memory.open(path).build_index("ivf-rabitq").num_passages == 11


def test_an_index_that_is_built_meanwhile_does_not_survive(monkeypatch, path, filled):
    without = upkeep._without
    monkeypatch.setattr(upkeep, "_without", lambda *given: filled.build_index("ivf-rabitq") and without(*given))
    forget(path, ["p0"])
    assert not (path / version_files.INDEXES).exists()


def test_all_can_be_forgotten(path, filled):
    assert len(forget(path, [f"p{i}" for i in range(12)]).passages) == 12
    assert len(Memory.open(path)) == 0
    assert everywhere(path) == set()


def test_what_was_set_aside_is_removed_too(path, encoder, secret):
    manifest = path / version_files.manifest_name(4)
    manifest.write_bytes(b"")
    with pytest.raises(MemoryStoreError, match="index repair"):
        forget(path, ["ada"])
    repair(path)
    shutil.copy(next((path / "data").iterdir()), path / version_files.DAMAGED / "copy.lance")
    assert forget(path, ["ada"]).left == []
    assert not (path / version_files.DAMAGED).exists()


def test_the_same_text_elsewhere_is_said(path, encoder, filled):
    filled.add([Passage("ada", SECRET), Passage("copy", SECRET), Passage("quote", f"He said: {SECRET}")], encoder)
    done = forget(path, ["ada"])
    assert done.same_text == {"ada": ["copy", "quote"]}
    assert done.left == []


def test_a_file_that_still_holds_a_text_is_named(path, encoder, filled):
    filled.add([Passage("ada", SECRET)], encoder)
    (path / "notes.txt").write_text(f"mine: {SECRET}")
    assert forget(path, ["ada"]).left == ["notes.txt"]


def test_a_killed_forgetting_can_be_repeated(monkeypatch, path, secret):
    monkeypatch.setattr(upkeep, "_drop", lambda storage, versions: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        forget(path, ["ada"])
    assert SECRET in everywhere(path)
    monkeypatch.undo()
    forget(path, ["ada"])
    assert SECRET not in everywhere(path)


@pytest.mark.parametrize(("ids", "message"), [([], "no ids to forget"), (["p0", "x"], "'x'; leave them out")])
def test_nothing_happens_to_a_memory_without_these_ids(path, filled, ids, message):
    before = LocalDisk(path).files()
    with pytest.raises(InputError, match=message):
        forget(path, ids)
    assert LocalDisk(path).files() == before
