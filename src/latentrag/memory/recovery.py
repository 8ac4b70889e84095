"""Changing a memory: alone, on top of what a killed writer left, and all or nothing."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from errno import EACCES, EPERM, EROFS
from pathlib import Path

from latentrag.errors import DamagedVersionError, MemoryStoreError
from latentrag.memory import version_files
from latentrag.memory.storage import Checksum, Storage


@contextmanager
def writing(storage: Storage) -> Iterator[None]:
    """Be the only writer. If the body fails, the files that it made and that no version needs are removed.

    Raises: MemoryStoreError if somebody else writes, the folder cannot be written, or the newest version is damaged.
    """
    folder = storage.folder
    version_files.require_table(folder)
    with storage.lock() as lock:
        recover(storage, killed=lock.died is not None)
        before = version_files.present(folder)
        try:
            yield
        except BaseException:
            remove_orphans(storage, among=version_files.present(folder) - before)
            lock.done()
            raise
        lock.done()


def recover(storage: Storage, *, killed: bool) -> None:
    """Finish or undo what the last writer did not: under the lock only.

    A version that was published but not yet acknowledged is kept if it is whole and set aside if it is not. Files that
    a killed writer left are removed.

    Raises: MemoryStoreError if the newest version had been acknowledged and is damaged: nobody may build on an older
        one, or move its files, without having been asked.
    """
    for version in unacknowledged(storage):
        _keep_or_set_aside(storage, version)
    folder = storage.folder
    try:
        version_files.open_whole(storage, version_files.newest_version(folder))
    except DamagedVersionError as error:
        raise MemoryStoreError(
            f"{str(error).split('; ')[0]}; restore it from a copy, "
            f"or give it up and go on from an older one with `latentrag index repair {folder}`"
        ) from error
    if killed:
        remove_orphans(storage)


def remove_orphans(storage: Storage, *, among: set[str] | None = None) -> int:
    """Remove files of the table that no version needs: under the lock only, since they look like a writer's.

    Args:
        among: only these.
    Returns: the bytes that this frees.
    """
    names = version_files.present(storage.folder) if among is None else among
    return version_files.remove(storage.folder, names - version_files.needed(storage)) if names else 0


def unacknowledged(storage: Storage) -> list[int]:
    """Versions newer than the newest that was acknowledged, ascending. Of a memory without records none is known."""
    numbers = version_files.version_numbers(storage.folder)
    if storage.checksums() is None:
        return []
    newest = next((n for n in reversed(numbers) if storage.checksum(version_files.manifest_name(n)) is not None), 0)
    return [number for number in numbers if number > newest]


def _keep_or_set_aside(storage: Storage, version: int) -> None:
    folder = storage.folder
    try:
        dataset = version_files.open_whole(storage, version)
    except DamagedVersionError as error:
        version_files.set_aside(storage, [version])
        warnings.warn(
            f"{str(error).split('; ')[0]}; it was never acknowledged and is now in {folder / version_files.DAMAGED}",
            stacklevel=2,
        )
        return
    recorded = storage.checksums() or {}
    names = [
        *(name for name in version_files.sizes(dataset) if name not in recorded),
        version_files.manifest_name(version),
    ]
    storage.force(names)
    storage.record({name: Checksum.of(folder / name) for name in names})


def changing(folder: Path) -> AbstractContextManager[None]:
    """Failures to write as one line."""
    return version_files.lance_errors_as(
        lambda error: MemoryStoreError(
            f"{folder} cannot be written ({version_files.reason(error)}); {_remedy(folder, error)}"
        )
    )


def _remedy(folder: Path, error: BaseException) -> str:
    """Lance gives the system's errors in words, and reads too when it changes a table."""
    said = re.search(r"\(os error (\d+)\)", str(error))
    number = int(said[1]) if said else getattr(error, "errno", None)
    if number in {EACCES, EPERM, EROFS}:
        return "check its permissions or copy it elsewhere"
    if number is None:
        return f"see whether it is damaged with `latentrag index verify {folder}`"
    return "make room or mend the disk, and try again"
