"""Files and folders forced to the disk, for a power failure must not take them away; locks; and hashes of files.

Who publishes a folder by renaming it forces its content to the disk first (``sync_content``) and the folder that lists
it afterwards (``sync_folder``).
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath


def sync_handle(handle: int) -> None:
    """Force the content of a file that is open to the disk."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)  # fsync there stops at the disk's own cache
    else:
        os.fsync(handle)


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        sync_handle(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Force a folder's list of names to the disk: files made, renamed or removed in it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path, names: Iterable[str]) -> None:
    """Force these files to the disk, then the folders that list them, up to ``folder``.

    Args:
        names: relative to ``folder``, with slashes.
    """
    parents: set[str] = set()
    for name in names:
        sync_file(folder / name)
        parents.update(map(str, PurePosixPath(name).parents))
    for parent in sorted(parents, reverse=True):  # "." is last
        sync_folder(folder / parent)


def sync_content(folder: Path) -> None:
    """Force every file in a folder, which has no folders in it, and its list of names to the disk."""
    for file in folder.iterdir():
        sync_file(file)
    sync_folder(folder)


def write_file(path: Path, content: bytes) -> None:
    """A file with this content in place of any other, whole or not at all, on the disk when this returns."""
    scratch = path.with_name(f"{path.name}.new")
    with scratch.open("wb") as stream:
        stream.write(content)
        stream.flush()
        sync_handle(stream.fileno())
    scratch.replace(path)
    sync_folder(path.parent)


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether nobody else is in such a block about this file or folder, which must exist.

    The lock ends with the block or with its process, however that ends. Where a system has no locks on files,
    everybody is alone. Raises: OSError.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield True
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = True
        except BlockingIOError:
            taken = False
        yield taken  # not in the handler: what the block raises has nothing to do with the lock
    finally:
        os.close(handle)


def sha256_of_file(path: Path) -> str:
    """Of the file's bytes, as hexadecimal digits. Raises: OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
