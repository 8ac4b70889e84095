"""Standard streams that are closed, full or gone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import cli, program

FULL = Path("/dev/full")
COMMANDS: dict[str, tuple[object, ...]] = {
    "help": ("--help",),
    "log": ("index", "log", "MEMORY"),
    "delete": ("index", "delete", "MEMORY", "emma.txt"),
}


@pytest.fixture
def commands(memory, tmp_path) -> dict[str, list[object]]:
    """With a memory that the test may change."""
    own = shutil.copytree(memory, tmp_path / "own.lance")
    return {name: [own if each == "MEMORY" else each for each in words] for name, words in COMMANDS.items()}


def closed(number: int, *arguments: object) -> "subprocess.CompletedProcess[bytes]":
    """Run with one of the descriptors 0 to 2 closed."""
    command = [sys.executable, "-m", "latentrag", *map(str, arguments)]
    return subprocess.run(["/bin/sh", "-c", f'exec "$@" {number}>&-', "sh", *command], check=False, capture_output=True)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_stream_is_as_if_nobody_looked(commands, name, number) -> None:
    done = closed(number, *commands[name])
    assert (done.returncode, done.stderr) == (0, b"")
    assert (done.stdout == b"") == (number == 1)


def test_a_mistake_is_a_mistake_without_standard_error(tmp_path) -> None:
    done = closed(2, "index", "log", tmp_path / "nope")
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", COMMANDS)
def test_output_that_cannot_be_written_costs_one_line(commands, name) -> None:
    with FULL.open("wb") as full:
        done = program(*commands[name], stdout=full)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(b"error: standard output cannot be written (No space left on device); what was done stays")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", COMMANDS)
def test_messages_that_cannot_be_written_decide_nothing(commands, name) -> None:
    with FULL.open("wb") as full:
        done = program(*commands[name], stderr=full)
    assert done.returncode == 0
    assert done.stdout != b""


def test_what_was_committed_is_so_although_nobody_heard_of_it(commands, memory) -> None:
    with FULL.open("wb") as full:
        program(*commands["delete"], stdout=full)
    own = commands["delete"][2]
    assert len(cli("index", "log", own, "--json").json["versions"]) == 3


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = program("--version", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
