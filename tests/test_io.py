"""Files and folders forced to the disk, in the order that a power failure asks for."""

import ctypes
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentrag import io


@pytest.fixture
def synced(monkeypatch) -> list[Path]:
    """What has been forced to the disk, in order."""
    seen: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(Path(f"/proc/self/fd/{handle}").readlink()))
    monkeypatch.setattr(io, "sync_handle", os.fsync)
    return seen


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_files_come_before_the_folders_that_list_them(tmp_path, synced):
    make(tmp_path, "a/b/one", "a/two", "three", "not asked for")
    io.sync_all(tmp_path, ["a/b/one", "a/two", "three"])
    names = [path.relative_to(tmp_path).as_posix() for path in synced]
    assert names == ["a/b/one", "a/two", "three", "a/b", "a", "."]


def test_the_content_of_a_folder(tmp_path, synced):
    make(tmp_path, "one", "two")
    io.sync_tree(tmp_path)
    assert sorted(synced[:-1]) == [tmp_path / "one", tmp_path / "two"]
    assert synced[-1] == tmp_path


def test_a_file_is_replaced_when_its_content_is_on_the_disk_and_not_before(tmp_path, synced, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def fails(handle: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(io, "sync_handle", fails)
        with pytest.raises(OSError, match="Input/output"):
            io.write_file(file, b"new")
    assert file.read_bytes() == b"old"
    io.write_file(file, b"new")
    assert file.read_bytes() == b"new"
    assert synced == [tmp_path / "file.new", tmp_path]
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", [b"", b"a" * 300_000])
def test_the_hash_of_a_file(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert io.sha256_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_at_a_time(tmp_path, kind):
    path = tmp_path / kind
    path.mkdir() if kind == "folder" else path.touch()
    with io.exclusive(path) as first:
        with io.exclusive(path) as second:
            assert (first, second) == (True, False)
        with io.exclusive(path) as third:
            assert not third, "who was refused has not opened the lock"
    with io.exclusive(path) as later:
        assert later
    with pytest.raises(FileNotFoundError), io.exclusive(tmp_path / "none"):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    code = """
import sys
from pathlib import Path
from latentrag import io
with io.exclusive(Path(sys.argv[1])) as it:
    print(it, flush=True)
    input()
"""
    command = [sys.executable, "-c", code, tmp_path]
    held = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with held:
        assert held.stdout is not None
        assert held.stdout.readline() == "True\n"
        with io.exclusive(tmp_path) as alone:
            assert not alone
        held.kill()
    with io.exclusive(tmp_path) as alone:
        assert alone


def test_json_lines_go_on_after_a_line_that_was_cut(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": ' + b"2" * 200_000)
    io.append_lines(file, [{"a": 3}, {"a": None}], durable=True)
    assert file.read_bytes() == b'{"a": 1}\n{"a": 3}\n{"a": null}\n'
    file.write_bytes(b"no line at all")
    io.cut_unfinished_line(file)
    assert file.read_bytes() == b""


def test_a_folder_takes_its_place_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "folder"
    with io.replacing_folder(folder) as scratch:
        make(scratch, "one")
    with pytest.raises(ZeroDivisionError), io.replacing_folder(folder) as scratch:
        make(scratch, str(1 // 0))
    assert [path.name for path in folder.iterdir()] == ["one"]
    with io.replacing_folder(folder) as scratch:
        make(scratch, "sub/three")
    assert [path.name for path in folder.iterdir()] == ["sub"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_json_has_no_number_that_is_not_finite():
    assert io.finite({"a": [1.5, float("-inf")], "b": (float("nan"), "x", 2)}) == {
        "a": [1.5, None],
        "b": [None, "x", 2],
    }
    with pytest.raises(ValueError, match="JSON"):
        io.write_json(Path("never"), float("nan"))


def test_strict_json_leaves_what_only_a_bug_makes():
    record = io.finite([float("-inf"), 1.5, {"a": float("inf")}], strict=True)
    assert record == [None, 1.5, {"a": float("inf")}]


HAS_GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim")


@pytest.mark.skipif(not HAS_GLIBC, reason="of glibc")
def test_what_was_freed_is_handed_back() -> None:
    def resident_pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    pieces = [bytearray(50_000) for _ in range(2_000)]
    last = bytearray(50_000)  # above them on the heap
    del pieces
    before = resident_pages()
    io.give_back_memory()
    assert resident_pages() <= before
    assert len(last) == 50_000
