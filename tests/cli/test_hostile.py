"""Files that would take all time or memory there is: reported, and the rest goes on, in every command that reads."""

from pathlib import Path

import pytest

from latentrag.memory import Memory
from tests.cli.conftest import cli
from tests.corpus import hostile, making

READABLE = {"before", "behind", "deep down"}
LIMITS = ("--time-limit", 30, "--memory-limit", "120MB")
"""A process that reads has some 25 MB of its own."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("files") / "notes"
    made.mkdir()
    hostile.write(made)
    (made / "endless.pdf").unlink()
    return made


@pytest.mark.parametrize("command", ["add", "sync"])
def test_bombs_are_reported_and_the_rest_goes_on(command, folder, tmp_path, encoder) -> None:
    path = tmp_path / "m.lance"
    done = cli("index", command, path, folder, "--encoder", encoder, *LIMITS, "--json")
    assert done.code == 0
    assert {z.text for z in Memory.open(path).passages()} == READABLE
    reasons = {Path(each["file"]).name: each["reason"] for each in done.json["skipped"]}
    assert set(reasons) == set(hostile.FILES) - {"deep.html", "endless.pdf"}
    for name in ("bomb.epub", "bomb.jsonl.gz"):
        assert reasons[name] == "given up: took more than 120 MB; remove or repair the file, or raise the limit"
    for name in ("bomb.xlsx", "far.xlsx"):
        assert "SIGABRT, perhaps as it took more than 120 MB" in reasons[name]
    for file in done.json["skipped"]:
        assert f"skipped {file['file']}: {file['reason']}\n" in done.stderr


def test_in_a_preview_too(folder, tmp_path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes((folder / "bomb.jsonl.gz").read_bytes())
    (tmp_path / "b.txt").write_text("behind")
    done = cli("index", "preview", tmp_path, *LIMITS)
    assert done.stdout.splitlines()[0] == "b.txt | b | 0:6 | behind"
    assert "took more than 120 MB" in done.stdout


@pytest.mark.parametrize("command", ["add", "sync", "preview"])
def test_strict_is_an_exit_code_and_loses_nothing(command, tmp_path, encoder) -> None:
    folder, path = tmp_path / "notes", tmp_path / "m.lance"
    folder.mkdir()
    (folder / "a.txt").write_text("before")
    (folder / "b.txt").write_bytes(b"\xff\x00")
    (folder / "c.jsonl").write_text('{"id": "1", "text": "first"}\nno\n')
    (folder / "z.txt").write_text("behind")
    given = (folder,) if command == "preview" else (path, folder, "--encoder", encoder)
    assert cli("index", command, *given).code == 0
    done = cli("index", command, *given, "--strict")
    assert done.code == 1
    if command != "preview":
        expected = {"before", "behind"} | ({"first"} if command == "add" else set())  # a sync takes files whole
        assert {z.text for z in Memory.open(path).passages()} == expected
    (folder / "c.jsonl").unlink()
    assert cli("index", command, *given, "--strict", "--exclude", "b.*").code == 0


@pytest.mark.parametrize("limit", ["1MB", "no", "300"])
def test_a_memory_limit_that_is_none(limit, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("text")
    error = cli("index", "preview", tmp_path, "--memory-limit", limit).error()
    assert "memory_limit" in error
    assert "MB" in error


def test_a_file_that_takes_both_is_given_up(tmp_path) -> None:
    (tmp_path / "endless.pdf").write_bytes(making.endless_pdf())
    (tmp_path / "z.txt").write_text("behind")
    done = cli("index", "preview", tmp_path, "--time-limit", 5, "--memory-limit", "4GB", "--strict")
    assert (done.code, done.stdout.splitlines()[0]) == (1, "z.txt | z | 0:6 | behind")
    assert "given up: a document took more than 5 s" in done.stdout
