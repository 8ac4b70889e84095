"""index push, index pull."""

import json
import shutil
from pathlib import Path

import pytest

from latentrag.memory import Memory
from tests.cli.conftest import QUESTION, cli


@pytest.fixture
def own(memory, tmp_path) -> Path:
    """A memory that the test may change."""
    return shutil.copytree(memory, tmp_path / "own.lance")


def test_a_memory_is_pushed_pulled_and_asked(own, model, tmp_path) -> None:
    done = cli("index", "push", own, tmp_path / "out")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{own} version 2: pushed 4 passages to {tmp_path}/out, 1 files and memory.json, 0.0")
    done = cli("index", "pull", tmp_path / "out", tmp_path / "in.lance")
    assert done.stdout == f"{tmp_path}/in.lance version 2: pulled 4 passages from {tmp_path}/out, encoded by encoder\n"
    asked = [
        cli("ask", QUESTION, "-m", model, "-i", path, "--max-tokens", 3, "--json").json
        for path in (own, tmp_path / "in.lance")
    ]
    assert asked[0] == asked[1]


def test_json_and_an_older_version(own, tmp_path) -> None:
    assert cli("index", "delete", own, "emma.txt").code == 0
    done = cli("index", "push", own, tmp_path / "out", "--as-of", 2, "--json").json
    listing = json.loads((tmp_path / "out" / "memory.json").read_text())
    assert (done["memory"], done["destination"]) == (str(own), str(tmp_path / "out"))
    assert (done["version"], done["passages"], done["listing"]) == (2, 4, "memory.json")
    assert done["files"] == [{key: file[key] for key in ("name", "size_bytes", "sha256")} for file in listing["files"]]
    done = cli("index", "pull", tmp_path / "out", tmp_path / "in.lance", "--json").json
    assert done == {
        "memory": str(tmp_path / "in.lance"),
        "source": str(tmp_path / "out"),
        "version": 2,
        "passages": 4,
        "encoder": "encoder",
    }


def test_what_is_pushed_is_what_is_asked(own, tmp_path) -> None:
    assert cli("index", "delete", own, "emma.txt").code == 0
    assert cli("index", "use", own, 2).code == 0
    assert cli("index", "push", own, tmp_path / "served", "--json").json["version"] == 2
    assert cli("index", "push", own, tmp_path / "newest", "--as-of", "newest", "--json").json["version"] == 3


def test_a_pulled_memory_is_synced_on_without_encoding_again(tmp_path, files, encoder) -> None:
    folder = shutil.copytree(files, tmp_path / "notes")
    common = ["--encoder", encoder, "--json"]
    assert cli("index", "sync", tmp_path / "m.lance", folder, *common).code == 0
    assert cli("index", "push", tmp_path / "m.lance", tmp_path / "out").code == 0
    assert cli("index", "pull", tmp_path / "out", tmp_path / "in.lance").code == 0
    (folder / "emma.txt").write_text("Emma is a book.")
    done = cli("index", "sync", tmp_path / "in.lance", folder, *common).json
    assert (done["files"]["changed"], done["files"]["unchanged"], done["passages"]["encoded"]) == (1, 3, 1)


def test_mistakes_cost_one_line_and_change_nothing(own, files, tmp_path) -> None:
    assert "exists and is not empty" in cli("index", "push", own, files).error()
    assert "needed a folder or hf://datasets/USER/NAME" in cli("index", "push", own, "hf://models/a/b").error()
    assert "has no version 9" in cli("index", "push", own, tmp_path / "out", "--as-of", 9).error()
    assert "there is no memory" in cli("index", "push", tmp_path / "none", tmp_path / "out").error()
    assert "memory.json cannot be copied" in cli("index", "pull", files, tmp_path / "in.lance").error()
    assert "exists already" in cli("index", "pull", files, own).error()
    assert [each.name for each in tmp_path.iterdir()] == ["own.lance"]
    assert len(Memory.open(own)) == 4
