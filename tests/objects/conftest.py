"""An object store on this machine: moto's server, from an environment of its own, since it does not go with ours."""

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.memory.conftest import FakePassageEncoder

MOTO = Path(__file__).parents[2] / "build/moto/bin/moto_server"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of an object store."""
    with running() as (address, _):
        yield address


@contextmanager
def running() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of an object store, and the process that is it."""
    if not MOTO.exists():
        pytest.skip("moto is not installed; run make test-s3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [MOTO, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait_for(address)
            yield address, process
        finally:
            process.terminate()


def send(method: str, address: str, path: str = "/") -> None:
    """A request to the server, unsigned."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    connection.request(method, path)
    connection.getresponse().read()
    connection.close()


def _wait_for(address: str) -> None:
    for _ in range(600):
        try:
            send("GET", address)
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(address)


@pytest.fixture
def store(server, home, monkeypatch) -> str:
    """An object store, with the variables for it and nothing else of a user's."""
    set_variables(server, monkeypatch)
    return server


def set_variables(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a user of this object store."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@pytest.fixture
def bucket(store, request) -> str:
    """A bucket of its own."""
    name = f"b{abs(hash(request.node.nodeid)):x}"
    send("PUT", store, f"/{name}")
    return name


@pytest.fixture
def address(bucket) -> str:
    """Where nothing is yet."""
    return f"s3://{bucket}/memories/notes"


@pytest.fixture
def make_encoder() -> type[FakePassageEncoder]:
    return FakePassageEncoder


@pytest.fixture
def encoder() -> FakePassageEncoder:
    return FakePassageEncoder()
