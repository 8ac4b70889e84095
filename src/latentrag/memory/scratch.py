"""Files that are needed while a memory is changed, and never longer: in the memory's local folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from latentrag import io
from latentrag.errors import MemoryStoreError

FOLDER = "_scratch"
TRIES = 20
"""How often a folder is made again that another process swept away before it had its lock."""


@contextmanager
def scratch_folder(local: Path) -> Iterator[Path]:
    """An empty folder, which is removed with what is in it when the block ends; what a killed process left goes first.

    Args:
        local: the memory's folder on this machine.
    Raises: MemoryStoreError if the memory cannot be written.
    """
    sweep(local)
    with ExitStack() as locks:
        try:
            folder = _locked(local, locks)
        except OSError as error:
            raise MemoryStoreError(
                f"{local} cannot be written ({error.strerror or error}); make room or check its permissions"
            ) from error
        try:
            yield folder
        finally:
            _remove(folder)


def _locked(local: Path, locks: ExitStack) -> Path:
    """A new folder with a lock, so that others know that it is in use. Raises: OSError."""
    for _ in range(TRIES):
        with suppress(FileNotFoundError):
            (local / FOLDER).mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=local / FOLDER))
            if locks.enter_context(io.exclusive(folder)):
                return folder
    raise OSError(f"{local / FOLDER} is removed again and again")


def sweep(local: Path) -> None:
    """Remove what killed processes left behind; what is in use stays. Where that fails, it stays for the next time."""
    with suppress(OSError):
        for folder in (local / FOLDER).iterdir():
            with io.exclusive(folder) as alone:
                if alone:
                    _remove(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # others have one in it
        folder.parent.rmdir()
