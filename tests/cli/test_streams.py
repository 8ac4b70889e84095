"""Standard streams that are closed, full or gone."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import QUESTION, cli, program

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


@pytest.mark.environment
@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_server_starts_though_it_cannot_say_so(model, memory) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "latentrag", "serve", "-m", model, "-i", memory, "--port", str(port)]
    with FULL.open("wb") as full, subprocess.Popen(command, stderr=full) as server:
        try:
            transport = httpx.HTTPTransport(retries=0)
            with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{port}", verify=False) as client:  # noqa: S501
                for _ in range(600):
                    with suppress(httpx.TransportError):
                        assert client.get("/healthz").status_code == 200
                        break
                    assert server.poll() is None
                    time.sleep(0.2)
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


@pytest.mark.environment
@pytest.mark.parametrize("stream", [1, 2])
def test_an_answer_to_nobody(model, memory, stream) -> None:
    """What loads torch prints its own way; a closed or full stream ends as for every command."""
    asked = ("ask", QUESTION, "-m", model, "-i", memory)
    assert closed(stream, *asked).returncode == 0
    with FULL.open("wb") as full:
        done = program(*asked, **{"stdout" if stream == 1 else "stderr": full})
    assert done.returncode == (2 if stream == 1 else 0)


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = program("--version", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
