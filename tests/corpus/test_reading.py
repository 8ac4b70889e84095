"""Which files are read, in which order and under which ids, and what happens to the others."""

import gzip
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest

import latentrag.corpus
from latentrag.corpus import read
from latentrag.errors import DataError
from tests.corpus import making


def read_reporting(path: Path) -> tuple[list[str], dict[str, str]]:
    """Ids of the documents, and the files left out with their reasons."""
    skipped: dict[str, str] = {}

    def on_skip(left_out: Path, reason: str) -> None:
        assert isinstance(left_out, Path)
        skipped[left_out.relative_to(path).as_posix()] = reason

    return [document.id for document in read(path, on_skip=on_skip)], skipped


def test_public_names():
    names = ["READERS", "Ledger", "Reader", "UnreadableError", "bounds_of", "passages", "read", "split"]
    assert latentrag.corpus.__all__ == names


def test_a_folder_is_read_sorted_with_its_subfolders_and_without_hidden_files(tmp_path):
    names = ["b.TXT", "a.md", "sub/c.txt", "sub/deep/d.txt", ".hidden.txt", ".git/e.txt", "sub/.f.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    assert read_reporting(tmp_path) == (["a.md", "b.TXT", "sub/c.txt", "sub/deep/d.txt"], {})
    assert [document.source for document in read(tmp_path)][2] == str(tmp_path / "sub" / "c.txt")


def test_ids_are_the_same_at_every_reading_and_for_every_way_to_the_folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("text")
    (tmp_path / "sub" / "b.jsonl").write_text('{"text": "t"}\n{"id": "own", "text": "t"}\n')
    expected = ["sub/a.txt", "sub/b.jsonl:1", "own"]
    monkeypatch.chdir(tmp_path)
    assert [[document.id for document in read(path)] for path in (tmp_path, str(tmp_path), ".")] == [expected] * 3
    assert [document.id for document in read("sub/b.jsonl")] == ["b.jsonl:1", "own"]


def test_other_formats_in_a_folder_are_reported_and_do_not_raise(tmp_path):
    for name in ("a.txt", "photo.PNG", "LICENSE", "old.pkl", "data.yaml"):
        (tmp_path / name).write_text("text")
    ids, skipped = read_reporting(tmp_path)
    assert ids == ["a.txt"]
    assert set(skipped) == {"photo.PNG", "LICENSE", "old.pkl", "data.yaml"}
    assert ".png is not a format that is read; convert it to one of .txt, .md" in skipped["photo.PNG"]
    assert "no extension" in skipped["LICENSE"]
    assert "pickle files are never read" in skipped["old.pkl"]
    assert ".yaml is not a format that is read" in skipped["data.yaml"]
    assert [document.id for document in read(tmp_path)] == ["a.txt"]


def test_a_wrong_file_in_a_folder_keeps_its_rows_so_far_and_is_reported(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "a1", "text": "t"}\nno\n{"id": "a3", "text": "t"}\n')
    (tmp_path / "b.txt").write_bytes(b"\xff\x00")
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(b"c1\tt\tT\n" * 10_000)[:-20])
    (tmp_path / "d.jsonl.gz").write_text("plain")
    (tmp_path / "e.txt").write_text("text")
    ids, skipped = read_reporting(tmp_path)
    assert (ids[0], ids[-1], set(ids)) == ("a1", "e.txt", {"a1", "c1", "e.txt"})
    assert skipped["a.jsonl"] == ("from line 2 on: not valid JSON (Expecting value, column 1); fix or remove the line")
    assert skipped["b.txt"].startswith("not UTF-8 text")
    assert skipped["c.tsv.gz"].startswith("not a whole gzip file")
    assert skipped["d.jsonl.gz"].startswith("not a whole gzip file")
    with pytest.raises(DataError, match=r"a\.jsonl line 2: not valid JSON"):
        list(read(tmp_path))


@pytest.mark.parametrize(
    ("name", "raw", "problem"),
    [
        ("a.jsonl.gz", b"plain", "not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "t"}', mtime=0)[:-4], "not a whole gzip file"),
        ("a.tsv.gz", gzip.compress(b"x", mtime=0)[:10] + b"\xff" * 20, "not a whole gzip file"),
        ("a.yaml", b"", r"\.yaml is not a format that is read"),
        ("a", b"", "no extension is not a format"),
        ("a.json", b"", "not valid JSON"),
        *((f"a{suffix}", b"\x80\x04].", "pickle files are never read") for suffix in (".pkl", ".pickle")),
        *((f"a{suffix}", b"", r"pickle files are never read.*\.jsonl") for suffix in (".pt", ".bin", ".tsv.PKL")),
    ],
)
def test_a_given_file_that_cannot_be_read_raises_even_with_on_skip(tmp_path, name, raw, problem):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=problem) as raised:
        list(read(tmp_path / name, on_skip=lambda *_: pytest.fail("reported instead of raised")))
    assert str(raised.value).startswith(str(tmp_path / name))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("packed", [True, False])
def test_too_little_memory_to_unpack_is_no_damage_to_the_file(tmp_path, monkeypatch, packed):
    """zlib says so by its number -4, which a process with a limit of memory meets by chance."""

    def unpack(*_):
        raise zlib.error("Error -4 while decompressing data")

    if packed:
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "text"}'))
        monkeypatch.setattr(gzip.GzipFile, "read", unpack)
        monkeypatch.setattr(gzip.GzipFile, "read1", unpack)
    else:
        (tmp_path / "a.docx").write_bytes(making.docx("text"))
        monkeypatch.setattr(zipfile.ZipExtFile, "read", unpack)
    with pytest.raises(MemoryError):
        list(read(tmp_path))


def test_a_missing_path_raises_at_the_call(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: cannot be read \(No such file or directory\); check the path"):
        read(tmp_path / "nowhere")


def test_links_and_pipes(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.txt").write_text("text")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file.txt").symlink_to(tmp_path / "outside" / "x.txt")
    (folder / "broken.txt").symlink_to(tmp_path / "nowhere")
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.txt")
    ids, skipped = read_reporting(folder)
    assert ids == []
    assert set(skipped) == {"broken.txt", "file.txt", "linked", "pipe.txt"}
    assert "not a file" in skipped["pipe.txt"]
    assert skipped["linked"] == (
        "a link to a folder outside; pass that folder as well, or follow_links (--follow-links)"
    )


def test_what_the_system_refuses_in_a_folder_is_reported_and_raises_otherwise(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "closed.txt").write_text("text")
    (tmp_path / "sealed").mkdir()
    allowed_open, allowed_scan = Path.open, os.scandir

    def refused(path: str | Path, name: str) -> bool:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return False

    # Simulated, for the tests may run as a user whom no permission stops.
    monkeypatch.setattr(
        Path, "open", lambda path, *args, **options: refused(path, "closed.txt") or allowed_open(path, *args, **options)
    )
    monkeypatch.setattr(os, "scandir", lambda path: refused(path, "sealed") or allowed_scan(path))
    ids, skipped = read_reporting(tmp_path)
    assert ids == ["a.txt"]
    assert set(skipped) == {"closed.txt", "sealed"}
    assert all("Permission denied" in reason for reason in skipped.values())
    with pytest.raises(DataError, match=r"sealed: cannot be read \(Permission denied\)"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"closed\.txt: cannot be read \(Permission denied\)"):
        list(read(tmp_path / "closed.txt"))
    with pytest.raises(DataError, match="sealed"):
        read(tmp_path / "sealed", on_skip=lambda *_: pytest.fail("reported instead of raised"))


def test_a_name_that_is_not_utf8_is_left_out(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("text")
    except OSError:
        pytest.skip("this file system keeps names in UTF-8")
    ids, skipped = read_reporting(tmp_path)
    assert ids == []
    assert [reason.partition(",")[0] for reason in skipped.values()] == ["its name is not UTF-8"]


def test_files_are_read_as_the_documents_are_asked_for(tmp_path):
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"id": "1", "text": "t"}\nno\n')
    documents = read(rows)
    assert next(documents).id == "1"
    rows.unlink()
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("first")
    documents = read(tmp_path)
    assert next(documents).text == "first"
    (tmp_path / "b.txt").write_text("second")
    assert next(documents).text == "second"


def test_importing_the_room_and_reading_text_imports_nothing_heavy(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    heavy = {"torch", "numpy", "transformers", "faiss", "lance", "pyarrow"}
    heavy |= {"pypdfium2", "selectolax", "mwparserfromhell"}
    code = (
        "import sys, latentrag.corpus as corpus; assert list(corpus.read(sys.argv[1]));"
        f"sys.exit(', '.join({heavy!r} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr.strip() == ""


WITHOUT = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("sysconf", "pread", "mkfifo", "setsid", "geteuid", "fork"):
    delattr(os, name)
for name in ("setitimer", "alarm", "SIGALRM"):
    delattr(signal, name)
from latentrag.corpus import passages
for workers in (0, 1):
    print([passage.id for passage in passages(sys.argv[1], workers=workers)])
"""


def test_files_are_read_where_the_system_has_no_more_than_windows(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text('{"text": "row"}\n')
    command = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "['a.txt', 'b.jsonl:1']\n" * 2
