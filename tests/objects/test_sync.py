"""A memory in an object store that is kept equal to a folder."""

import os

import pytest

from latentrag.memory import Memory
from latentrag.sync import SyncOptions, sync

pytestmark = pytest.mark.s3
OPTIONS = SyncOptions(name="notes", words=4)


def test_a_memory_is_synced(address, tmp_path, encoder):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("Ada was a mathematician. Byron was a poet.")
    (folder / "b.txt").write_text("Ulysses is a novel.")
    for file in folder.iterdir():
        os.utime(file, (1e9, 1e9))  # so long ago that its time tells whether it has changed
    first = sync(address, folder, lambda: encoder, options=OPTIONS)
    assert (first.files.added, first.version) == (2, 2)
    memory = Memory.open(address)
    texts = {passage.text for passage in memory.passages()}
    assert "Byron was a poet." in texts
    assert [file.suffix for file in (memory.local / "_sync").iterdir()] == [".journal"]

    again = sync(address, folder, lambda: pytest.fail("read again"), options=OPTIONS)  # the notes are there
    assert (again.files.unchanged, again.version) == (2, 2)


def test_what_has_changed_is_changed(address, tmp_path, encoder):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("Ada was a mathematician. Byron was a poet.")
    (folder / "b.txt").write_text("Ulysses is a novel.")
    sync(address, folder, lambda: encoder, options=OPTIONS)
    (folder / "a.txt").write_text("Ada was a mathematician. Byron was a lord.")
    (folder / "b.txt").unlink()
    report = sync(
        address, folder, lambda: encoder, options=SyncOptions(name="notes", words=4, delete_missing=True, keep=1)
    )
    assert (report.files.changed, report.pruned) == (1, [1, 2, 3])
    assert {passage.text for passage in Memory.open(address).passages()} == {
        "Ada was a mathematician.",
        "Byron was a lord.",
    }
