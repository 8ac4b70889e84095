"""One writer at a time. Readers take no lock."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from latentrag import io
from latentrag.errors import MemoryStoreError

LOCK_FILE = "_writer.lock"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who writes, or died while writing. ``since`` is UTC, ISO 8601."""

    host: str
    pid: int
    since: str

    @classmethod
    def this_process(cls) -> Owner:
        """This process, as from now."""
        return cls(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} for {self._age()}"

    def _age(self) -> timedelta:
        return max(datetime.now(UTC).replace(microsecond=0) - datetime.fromisoformat(self.since), timedelta(0))


@dataclass(frozen=True, slots=True)
class WriterLock:
    """The lock while it is held.

    The operating system's lock on the file decides who writes: it ends with its process, however that ends. The
    file's content says who, and stays where a writer died.
    """

    handle: int
    died: Owner | None

    def done(self) -> None:
        """Nothing is left half-written. Without this call the next writer looks for what is to be cleaned up."""
        os.ftruncate(self.handle, 0)


@contextmanager
def writer_lock(folder: Path) -> Iterator[WriterLock]:
    """Be the only writer of a memory.

    Raises: MemoryStoreError if somebody else writes, or if the folder cannot be written.
    """
    path = folder / LOCK_FILE
    with _refused_in_one_line(folder):
        handle = _locked(path)
    try:
        died = _owner(handle)
        if died is not None and died.host != socket.gethostname():
            raise MemoryStoreError(
                f"{folder} is being changed by {died}, or was left so; wait, or delete {path} if that process is gone"
            )
        with _refused_in_one_line(folder):
            _write_owner(handle)
        yield WriterLock(handle, died)
    finally:
        os.close(handle)


@contextmanager
def _refused_in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MemoryStoreError(
            f"{folder} cannot be written ({error.strerror or error}); make room, check its permissions or copy it "
            "elsewhere"
        ) from error


def owner(folder: Path) -> Owner | None:
    """Who writes at this moment, or died while writing; None if nobody does."""
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return _owner(handle)
    finally:
        os.close(handle)


def _locked(path: Path) -> int:
    try:
        import fcntl
    except ModuleNotFoundError as error:
        raise MemoryStoreError(
            "this system has no locks on files that latentrag knows; change memories on Linux or macOS"
        ) from error
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            by = _owner(handle) or "another process"
            os.close(handle)
            raise MemoryStoreError(f"{path.parent} is being changed by {by}; try again when that is done") from error
        except BaseException:
            os.close(handle)
            raise
        if _is_at(handle, path):
            return handle
        os.close(handle)  # somebody has deleted the file meanwhile; what is locked is no longer there


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _owner(handle: int) -> Owner | None:
    """Whom the file names; None if it is empty or cannot be read."""
    content = os.pread(handle, 4_096, 0)
    try:
        found = Owner(**json.loads(content))
        str(found)
    except (ValueError, TypeError):
        # What cannot be read was being written when the machine stopped.
        return Owner(socket.gethostname(), 0, datetime.now(UTC).isoformat()) if content else None
    return found


def _write_owner(handle: int) -> None:
    content = json.dumps(asdict(Owner.this_process())).encode()
    # Cut to length afterwards: where this fails, the file still says that a writer died, if one did.
    os.pwrite(handle, content, 0)
    os.ftruncate(handle, len(content))
    io.sync_handle(handle)
