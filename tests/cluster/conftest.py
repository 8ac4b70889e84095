"""Ray on this machine for the tests of a worker: a head, and further nodes where a test needs them."""

import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from latentrag.cluster import ShardedMemory, names, stop
from latentrag.errors import MemoryStoreError

ROOT = Path(__file__).parent.parent.parent
OBJECTS_BYTES = 100 << 20
CHECKED_S, LIMIT_S = 0.1, 120.0


BEHIND_TMPFS = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
"""Before a folder and a command, which finds the folder empty."""


class Node:
    """A node of a cluster, which ends with its process.

    Args:
        hides: a folder of which this node sees nothing.
    """

    def __init__(self, *options: str, num_cpus: int, hides: Path | None = None) -> None:
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--num-cpus={num_cpus}"]
        words += [f"--object-store-memory={OBJECTS_BYTES}", *options]
        if hides is not None:
            words = [*BEHIND_TMPFS, str(hides), *words]
        self.process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def kill(self) -> None:
        """With all of Ray on this node; workers end when they miss it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    """Not among those that Ray gives its workers."""
    for port in range(20_000 + os.getpid() % 5_000, 32_000):
        with socket.socket() as each:
            try:
                each.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


@pytest.fixture(scope="session")
def head() -> Iterator[str]:
    """The address of a cluster of one node."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs latentrag[cluster]")
    with a_cluster(num_cpus=8) as address:
        yield address


@contextmanager
def a_cluster(*, num_cpus: int) -> Iterator[str]:
    """The address of a new cluster of one node, to which this process is connected."""
    from latentrag.cluster.connection import connect

    port = free_port()
    folders = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    with pytest.MonkeyPatch.context() as patch, folders as folder:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *(each for each in sys.path if each)]))
        of_head = ("--head", "--include-dashboard=false", f"--port={port}", f"--temp-dir={folder}")
        node = Node(*of_head, num_cpus=num_cpus)
        patch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        try:
            wait_for(connect)
            yield f"127.0.0.1:{port}"
        finally:
            import ray

            ray.shutdown()
            node.kill()


def wait_for(does: object, limit_s: float = LIMIT_S) -> None:
    """Until it raises no MemoryStoreError and no AssertionError any more."""
    end = time.monotonic() + limit_s
    while True:
        try:
            return does()  # type: ignore[operator]
        except (MemoryStoreError, AssertionError):
            if time.monotonic() > end:
                raise
        time.sleep(CHECKED_S)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "wiki.lance"


@pytest.fixture
def cluster(head) -> Iterator[str]:
    """The address of a cluster without any memory."""
    yield head
    for name in names():
        stop(name)


@pytest.fixture
def start(cluster, tmp_path):
    """``ShardedMemory.start`` with a folder for indexes that is the test's own."""

    def started(memory: Path, **options) -> ShardedMemory:
        folder = {} if options.get("index") == "flat" else {"index_folder": tmp_path / "indexes"}
        return ShardedMemory.start(memory, **{"timeout_s": 20, **folder, **options})

    return started
