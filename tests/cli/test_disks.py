"""Disks that are full or read-only, and files of a memory that are damaged, as one meets them on the command line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from latentrag.memory import Memory
from tests.cli.conftest import QUESTION, Ran, cli

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def own(memory, tmp_path) -> Path:
    """A memory that the test may change: version 2 has four passages, 3 lacks emma.txt."""
    own = shutil.copytree(memory, tmp_path / "place" / "own.lance")
    assert cli("index", "delete", own, "emma.txt").code == 0
    return own


@pytest.fixture
def more(tmp_path) -> Path:
    (tmp_path / "more.txt").write_text("The moon is blue.")
    return tmp_path / "more.txt"


def contents(place: Path) -> dict[str, bytes]:
    """Every file but the locks, which stay behind empty, and the notes of a sync, which may be lost."""
    files = (file for file in place.rglob("*") if file.is_file() and file.name not in {"_writer.lock", ".lock"})
    return {str(file.relative_to(place)): file.read_bytes() for file in files if file.parent.name != "_sync"}


# Full


@pytest.fixture
def room():
    """No file may grow beyond so many bytes, as on a disk that is full: Lance's own writes fail too."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def run(num_bytes: int, *arguments: object) -> Ran:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
        try:
            return cli(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return run


FULL: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "add": lambda own, more, encoder: ["add", own, more, "--encoder", encoder],
    "a new memory": lambda own, more, encoder: ["add", own.with_name("n.lance"), more, "--encoder", encoder],
    "sync": lambda own, more, encoder: ["sync", own, more.parent / "notes", "--encoder", encoder],
    "sync of a new memory": lambda own, more, encoder: [
        *("sync", own.with_name("n.lance"), more.parent / "notes", "--encoder", encoder)
    ],
    "delete": lambda own, *_: ["delete", own, "rome.txt"],
    "compact": lambda own, *_: ["compact", own],
    "reindex": lambda own, *_: ["build", own, "--index", "ivf-rabitq"],
    "push": lambda own, *_: ["push", own, own.with_name("pushed")],
    "forget": lambda own, *_: ["forget", own, "rome.txt"],
    "tag": lambda own, *_: ["tag", own, "before", "2"],
    "use": lambda own, *_: ["use", own, "2"],
    "prune": lambda own, *_: ["prune", own, "--keep", "1"],
    "repair": lambda own, *_: ["repair", own],
}


@pytest.mark.parametrize(
    ("command", "num_bytes"),
    [*((command, 0) for command in FULL), *((command, 250) for command in list(FULL)[:8])],
)
def test_a_full_disk_costs_one_line_and_leaves_everything_as_it_was(
    own, more, encoder, files, room, command, num_bytes
) -> None:
    """0: not even the lock can say who writes. 250: small files can be written, those of a version cannot."""
    shutil.copytree(files, more.parent / "notes")
    arguments = FULL[command](own, more, encoder)
    before = contents(own.parent)
    error = room(num_bytes, "index", *arguments).error()
    assert "cannot be written" in error
    assert f"{own.parent}/." not in error  # no scratch folder that the user has never heard of
    assert contents(own.parent) == before
    assert cli("index", *arguments).code == 0


def test_a_full_disk_can_be_asked(own, model, room) -> None:
    asked = ["ask", QUESTION, "-m", model, "-i", own, "--json"]
    expected = cli(*asked).json
    done = room(0, *asked)
    assert (done.code, done.stderr, done.json) == (0, "", expected)


# Read-only


def without_rights(commands: list[list[str]]) -> list[Ran]:
    """Run in a process that keeps to the permissions of files, which root's do not."""
    start = [sys.executable, "-m", "tests.cli.several_run"]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and there is no setpriv")
        start = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *start]
    done = subprocess.run(start, cwd=ROOT, input=json.dumps(commands), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [Ran(**each) for each in json.loads(done.stdout)]


@pytest.mark.filterwarnings("default")  # the command shows that the index is of an older version
@pytest.mark.parametrize("of_files", [False, True])
def test_a_read_only_folder_can_be_asked_and_not_changed(own, more, encoder, model, files, of_files) -> None:
    Memory.open(own, version=2).build_index("ivf-rabitq")  # so that there is another one to build
    reading = [
        ["ask", QUESTION, "-m", str(model), "-i", str(own), "--json"],
        *(["index", *command] for command in (["log", str(own)], ["verify", str(own)], ["diff", str(own), "2", "3"])),
    ]
    expected = [cli(*command) for command in reading]
    # Where files can be written and folders cannot, repair finds nothing to do.
    names = [name for name in FULL if of_files or name != "repair"]
    changing = [["index", *map(str, FULL[name](own, more, encoder))] for name in names]
    shutil.copytree(files, more.parent / "notes")
    before = contents(own.parent)
    chosen = [each for each in [own.parent, *own.parent.rglob("*")] if of_files or each.is_dir()]
    for each in chosen:
        each.chmod(0o555)
    try:
        done = without_rights([*reading, *changing])
    finally:
        for each in chosen:
            each.chmod(0o755)
    assert done[: len(reading)] == expected
    for each in done[len(reading) :]:
        assert "cannot be written (" in each.error()
        assert "ermission denied" in each.error()
    assert contents(own.parent) == before


# Damaged


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.filterwarnings("default")  # the command shows it as a line
def test_a_corrupt_index_is_said_and_done_without(own, model) -> None:
    asked = ["ask", QUESTION, "-m", model, "-i", own, "--json"]
    expected = cli(*asked).json
    assert cli("index", "build", own, "--index", "ivf-rabitq").code == 0
    (file,) = own.glob("_indexes/ivf-rabitq-3-*/index.faiss")
    flip(file, file.stat().st_size // 2)
    done = cli(*asked)
    assert done.json == expected
    assert done.stderr == f"warning: {file} has the wrong checksum; this index is thrown away\n"
    assert not file.exists()
    assert cli(*asked).stderr == ""
    assert cli("index", "build", own, "--index", "ivf-rabitq", "--json").json["kind"] == "ivf-rabitq"
    assert file.exists()
    assert (cli(*asked).json, cli(*asked).stderr) == (expected, "")


@pytest.fixture
def newest(own, more, encoder) -> Path:
    """The file that only version 4 needs."""
    before = set((own / "data").iterdir())
    assert cli("index", "add", own, more, "--encoder", encoder).code == 0
    (file,) = set((own / "data").iterdir()) - before
    return file


@pytest.mark.filterwarnings("default")
def test_a_table_file_that_is_cut_off_means_an_older_version(own, newest, model) -> None:
    newest.write_bytes(newest.read_bytes()[:-1])
    done = cli("ask", QUESTION, "-m", model, "-i", own, "--json")
    assert (done.code, done.json["memory_version"]) == (0, 3)
    (warning,) = done.stderr.splitlines()
    assert warning.startswith(f"warning: version 4 of the memory at {own} cannot be read (data/{newest.name} has ")
    assert warning.endswith("; opened version 3, the newest that can")
    assert f"index repair {own}`" in cli("index", "compact", own).error()


def test_a_table_file_that_is_corrupt_is_said_and_an_older_version_offered(own, newest, model) -> None:
    """Its length is as it was, so that only reading it shows the damage."""
    flip(newest, 10)
    asked = ["ask", QUESTION, "-m", model, "-i", own, "-k", "3", "--json"]
    for command in (asked, ["index", "delete", own, "rome.txt"], ["index", "compact", own]):
        assert f"`latentrag index verify {own}`" in cli(*command).error()
    found = cli("index", "verify", own)
    assert found.code == 1
    assert f"data/{newest.name} is not as it was written; versions 4 to 4 need it" in found.stdout
    assert f"ask version 3: `latentrag index use {own} 3`" in found.stdout
    # The older versions are not removed in favour of one that nobody can read.
    assert f"data/{newest.name} is not as it was written" in cli("index", "prune", own, "--keep", 1).error()
    assert cli("index", "use", own, "3").code == 0
    assert cli(*asked).json["memory_version"] == 3
    assert [version.number for version in Memory.open(own).log()] == [1, 2, 3, 4]


# Versions and writers


@pytest.mark.parametrize(
    "command",
    [["use", "MEMORY", "9"], ["diff", "MEMORY", "2", "9"], ["diff", "MEMORY", "9", "2"], ["tag", "MEMORY", "x", "9"]],
)
def test_a_version_that_does_not_exist(own, command) -> None:
    before = contents(own)
    error = cli("index", *(own if each == "MEMORY" else each for each in command)).error()
    assert "has no version 9; choose one of 1, 2, 3" in error
    assert contents(own) == before


@pytest.mark.parametrize("command", [name for name in FULL if "new" not in name and name not in {"reindex", "push"}])
def test_a_second_writer_gets_one_line_from_every_command(own, more, encoder, files, command) -> None:
    from latentrag.memory import LocalDisk

    shutil.copytree(files, more.parent / "notes")
    before = contents(own)
    with LocalDisk(own).lock() as held:
        error = cli("index", *FULL[command](own, more, encoder)).error()
        held.done()
    assert f"{own} is being changed by process {os.getpid()} on " in error
    assert contents(own) == before
