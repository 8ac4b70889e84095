"""Names, arguments and standard input are UTF-8, whatever the locale and Python's settings say."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from latentrag.memory import Memory
from tests.cli.conftest import cli, program

PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NAMES = ("café.txt", "한국 😀.txt", "plain.txt")


@pytest.fixture(scope="session")
def latin(tmp_path_factory) -> dict[str, str]:
    """An environment in ISO-8859-1, as many have not installed."""
    localedef = shutil.which("localedef")
    if localedef is None:
        pytest.skip("no localedef, which makes a locale in ISO-8859-1")
    folder = tmp_path_factory.mktemp("locales")
    name = "en_US.ISO-8859-1"
    made = subprocess.run(
        [localedef, "-i", "en_US", "-f", "ISO-8859-1", folder / name], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"localedef does not make a locale in ISO-8859-1: {made.stderr.strip()}")
    return {"LOCPATH": str(folder), "LC_ALL": name, "PYTHONUTF8": "0"}


@pytest.fixture(params=["C", "C.UTF-8", "ISO-8859-1"])
def locale(request) -> dict[str, str]:
    if request.param == "ISO-8859-1":
        return request.getfixturevalue("latin")
    return {**PLAIN, "LC_ALL": request.param}


@pytest.fixture
def own(tmp_path, encoder) -> Path:
    """A memory with passages whose ids are the names of files that the test's own locale has read."""
    folder = tmp_path / "notés 한"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text(f"About {name}.")
    assert cli("index", "sync", tmp_path / "m.lance", folder, "--encoder", encoder).code == 0
    return tmp_path / "m.lance"


def test_a_folder_is_the_same_in_every_locale(own, encoder, locale) -> None:
    """Nothing is new, nothing is gone."""
    sync = ("index", "sync", own, own.with_name("notés 한"), "--delete-missing", "--json")
    done = program(*sync, "--encoder", encoder, env=locale)
    assert (done.returncode, done.stderr) == (0, b"")
    record = json.loads(done.stdout)
    assert record["files"] == {"added": 0, "changed": 0, "removed": 0, "missing": 0, "unchanged": 3, "skipped": 0}
    assert (record["version"], record["name"]) == (2, "notés 한")


def test_arguments_are_utf8(own, locale) -> None:
    done = program("index", "delete", own, "notés 한/한국 😀.txt", env=locale)
    assert (done.returncode, done.stderr) == (0, b"")
    assert {passage.id for passage in Memory.open(own).passages()} == {"notés 한/café.txt", "notés 한/plain.txt"}


def test_output_is_in_the_locale_s_encoding(memory, latin) -> None:
    done = program("index", "log", memory.with_name("é한"), env=latin)
    assert done.returncode == 2
    assert "é\\ud55c".encode("iso-8859-1") in done.stderr


READ = "from latentrag.corpus import read; import sys; print(ascii([(d.id, d.source) for d in read(sys.argv[1])]))"


def test_the_library_names_files_in_utf8(tmp_path, locale) -> None:
    folder = tmp_path / "notés"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text("One.")
    command = [sys.executable, "-c", READ, folder]
    done = subprocess.run(command, capture_output=True, check=True, env=os.environ | locale)
    expected = sorted((name, str(Path(folder, name))) for name in NAMES)
    assert done.stdout.decode().strip() == ascii(expected)
