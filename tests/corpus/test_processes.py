"""Several processes read: the same documents in the same order, whatever becomes of the processes."""

import bz2
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from latentrag.corpus import passages, processes, read
from latentrag.errors import DataError, InputError
from latentrag.types import Document
from tests.corpus import making

# Stands in for the PDF library in the processes that read, and does what the file says.
LIBRARY = """
import os, signal, sys, time

class PdfiumError(RuntimeError):
    err_code = None

class PdfDocument:
    def __init__(self, file):
        self.does = file.read().decode()
        marker = os.environ.get("READING")
        if marker:
            open(marker, "a").close()
        if self.does == "bug":
            raise ZeroDivisionError
        if self.does == "exit":
            os._exit(3)
        if self.does.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.does))
        while self.does == "hang":
            time.sleep(60)
        print(self.does)  # must not come between the messages
        os.system("echo " + self.does)
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def __len__(self):
        return 1
    def __getitem__(self, i):
        return self
    raw = property(lambda self: self)
    formenv = None
    def get_metadata_dict(self):
        return {}
    def init_forms(self):
        pass
    def get_textpage(self):
        return self
    def get_bbox(self):
        return 0, 0, 1000, 1000
    def count_chars(self):
        return len(self.does)
    def close(self):
        pass
"""
RAW = """
FPDF_PAGEOBJ_IMAGE = 3
FPDFPage_GetAnnotCount = lambda page: 0
FPDFText_GetUnicode = lambda page, i: ord(page.does[i])
FPDFText_GetFontSize = lambda page, i: 10.0
FPDFText_IsGenerated = lambda page, i: 0

def FPDFText_GetCharOrigin(page, i, x, y):
    x._obj.value, y._obj.value = 6.0 * i, 700.0

def FPDFText_GetCharBox(page, i, left, right, bottom, top):
    left._obj.value, right._obj.value = 6.0 * i, 6.0 * i + 5
"""


@pytest.fixture
def library(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "library"
    (folder / "pypdfium2").mkdir(parents=True)
    (folder / "pypdfium2" / "__init__.py").write_text(LIBRARY)
    (folder / "pypdfium2" / "raw.py").write_text(RAW)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen[bytes]]:
    """The processes as they are started."""
    popens: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            popens.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    return popens


def read_reporting(path: Path, workers: int, **options: Any) -> tuple[list[Document], list[tuple[str, str]]]:
    skipped: list[tuple[str, str]] = []
    found = read(path, on_skip=lambda file, reason: skipped.append((file.name, reason)), workers=workers, **options)
    return list(found), skipped


def write_mixed(folder: Path) -> None:
    """Every format, some twice, some broken."""
    (folder / "sub").mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"text {i}\n\u2028 \U0001f600")
        (folder / "sub" / f"{i}.pdf").write_bytes(making.pdf([[f"page {i}"], ["two"]]))
        (folder / f"{i}.html").write_text(f"<title>T{i}</title><p>page {i}")
    (folder / "rows.jsonl").write_text('{"id": "r1", "text": "t"}\n' * 3 + "no\n")
    (folder / "rows.tsv").write_text("1\tt\tT\n")
    (folder / "letter.docx").write_bytes(making.docx(making.paragraph("Dear all")))
    (folder / "wiki.xml.bz2").write_bytes(bz2.compress(making.dump(*(making.page(i, "T", "x" * i) for i in range(50)))))
    (folder / "broken.pdf").write_bytes(b"%PDF")
    (folder / "broken.txt").write_bytes(b"\xff\x00")
    (folder / "photo.png").write_bytes(b"")


def test_documents_and_reports_are_those_of_one_process_in_the_same_order(folder):
    write_mixed(folder)
    expected = read_reporting(folder, 0)
    assert len(expected[0]) == 3 * 4 + 3 + 1 + 1 + 50
    assert [name for name, _ in expected[1]] == ["photo.png", "broken.pdf", "broken.txt", "rows.jsonl"]
    assert read_reporting(folder, 1) == expected
    assert read_reporting(folder, 3) == expected
    assert list(passages(folder, words=1, on_skip=lambda *_: None, workers=2)) == list(
        passages(folder, words=1, on_skip=lambda *_: None)
    )


def test_what_was_read_ahead_waits_in_the_pipes(folder, started):
    """A caller that stops in between: the processes stand still, and go on when it does."""
    for name in "abc":
        rows = [f'{{"id": "{name}{j}", "text": "{"long " * 200}"}}\n' for j in range(2_000)]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    expected = list(read(folder))
    documents = read(folder, workers=2)
    first = [next(documents)]
    time.sleep(1)
    assert len(started) == 2
    for process in started:  # bytes that it has written so far: of 2 MB, a pipe holds 64 KiB
        written = Path(f"/proc/{process.pid}/io").read_text().split("wchar: ")[1].split()[0]
        assert 0 < int(written) < 200_000
    assert first + list(documents) == expected


DEATHS = {
    "SIGKILL": "the process that read it ended (SIGKILL, perhaps as it took more than 2000 MB)",
    "SIGSEGV": "the process that read it ended (SIGSEGV, perhaps as it took more than 2000 MB)",
    "exit": "the process that read it ended (code 3)",
    "bug": "the process that read it ended (code 1)",
    "hang": "given up: a document took more than 3 s",
}


def test_files_that_end_their_process_are_reported_and_the_others_read(library, folder, monkeypatch, capfd):
    for name in DEATHS:
        (folder / f"{name}.pdf").write_text(name)
        (folder / f"{name}-after.pdf").write_text(f"text of {name}")
    found, skipped = read_reporting(folder, workers=2, time_limit_s=3)
    assert [d.text for d in found] == [f"text of {name}" for name in sorted(DEATHS)]
    assert [name for name, _ in skipped] == [f"{name}.pdf" for name in sorted(DEATHS)]
    assert all(DEATHS[name[:-4]] in reason for name, reason in skipped)
    assert all("; remove or repair the file" in reason for _, reason in skipped)
    out, err = capfd.readouterr()
    assert out == ""
    assert "ZeroDivisionError" in err  # a bug keeps its traceback


def test_a_given_file_that_ends_its_process_is_an_error(library, folder):
    (folder / "a.pdf").write_text("SIGKILL")
    with pytest.raises(DataError, match=r"a\.pdf: the process that read it ended \(SIGKILL"):
        list(read(folder / "a.pdf", workers=1, on_skip=lambda *_: pytest.fail("reported instead of raised")))


def test_what_came_before_the_death_of_a_process_is_kept(folder, started):
    (folder / "a.jsonl").write_text("".join(f'{{"id": "{j}", "text": "{"long " * 200}"}}\n' for j in range(4_000)))
    (folder / "b.txt").write_text("text")
    skipped = []
    documents = read(folder, on_skip=lambda *each: skipped.append(each), workers=1)
    assert next(documents).id == "0"
    started[0].kill()
    ids = [document.id for document in documents]
    assert ids == [*(str(j) for j in range(1, len(ids))), "b.txt"]
    (reason,) = [reason for _, reason in skipped]
    assert f"after {len(ids)} documents (SIGKILL" in reason
    assert len(ids) < 4_000


def test_a_process_that_dies_between_two_files_costs_no_more_than_the_next(folder, started, monkeypatch):
    monkeypatch.setattr(processes, "_FILES_AHEAD", 1)
    for name in "abc":
        (folder / f"{name}.txt").write_text(name)
    skipped = []
    documents = read(folder, on_skip=lambda file, _: skipped.append(file.name), workers=1)
    assert next(documents).id == "a.txt"
    started[0].kill()
    started[0].wait()
    ids = [document.id for document in documents]
    # If it had said that a.txt was over, b.txt was handed to it in vain.
    assert (skipped, ids) in ((["a.txt"], ["b.txt", "c.txt"]), (["b.txt"], ["c.txt"]))


def test_a_document_longer_than_a_pipe_holds(folder):
    text = "long \u706f " * 300_000
    (folder / "a.txt").write_text(text)
    (document,) = read(folder, workers=1)
    assert document.text == text


@pytest.mark.parametrize("how", ["close", "exhaust", "raise"])
def test_processes_end_with_the_reading(folder, started, how):
    for i in range(6):
        (folder / f"{i}.jsonl").write_text("".join(f'{{"id": "{i}.{j}", "text": "t"}}\n' for j in range(1_000)))
    if how == "raise":
        (folder / "0.jsonl").write_text('{"text": "t"}\nno')
    num_threads = threading.active_count()
    found = passages(folder, workers=2)
    assert started == []
    next(found)
    assert len(started) > 0
    if how == "close":
        found.close()
    elif how == "exhaust":
        list(found)
    else:
        with pytest.raises(DataError, match="line 2"):
            list(found)
    assert {process.returncode is not None for process in started} == {True}
    assert threading.active_count() == num_threads


SCRIPT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from latentrag.corpus import read
try:
    for document in read(sys.argv[2], workers=2, on_skip=print):
        print(document.id, flush=True)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_or_killed_it_leaves_no_process_behind(library, folder, tmp_path, how):
    for i in range(3):
        (folder / f"{i}.pdf").write_text("hang")
    (folder / "a.txt").write_text("text")
    marker = tmp_path / "reading"
    os.mkfifo(marker)
    command = [sys.executable, "-c", SCRIPT, str(library), str(folder)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, env={**os.environ, "READING": str(marker)}, start_new_session=True
    )
    marker.read_bytes()  # until one of them is in the middle of a file
    os.killpg(process.pid, how)
    # The processes that read share standard error: it ends when the last of them has.
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert err == b""


def test_processes_that_do_not_start_are_an_error_of_one_line(folder, monkeypatch):
    (folder / "a.txt").write_text("text")
    for program, problem in (("/nowhere/python", "No such file"), ("false", "ended with code 1")):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(DataError, match=problem) as raised:
            list(read(folder, workers=2, on_skip=lambda *_: None))
        assert str(raised.value).endswith("; read with workers=0")
        assert "\n" not in str(raised.value)


def test_fewer_than_none_is_refused_at_the_call(folder):
    with pytest.raises(InputError, match="workers=-1; needed 0 or more"):
        read(folder, workers=-1)
    with pytest.raises(InputError, match="workers=-1; needed 0 or more"):
        passages(folder, workers=-1)


def test_nothing_to_read_starts_nothing(folder, started):
    assert list(read(folder, workers=2)) == []
    assert started == []


def test_a_json_py_in_the_current_folder_is_not_run(folder, tmp_path, monkeypatch):
    (folder / "a.txt").write_text("text")
    (tmp_path / "json.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    assert [document.id for document in read("folder", workers=1)] == ["a.txt"]
