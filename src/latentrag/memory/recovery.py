"""Writing to a memory: alone, on top of what a killed writer left, and all or nothing."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EPERM, EROFS
from pathlib import Path

from latentrag import io
from latentrag.errors import DamagedVersionError, LatentRagError, MemoryStoreError
from latentrag.memory import durable, files
from latentrag.memory.lock import writer_lock


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the only writer. If the body fails, the files that it made and that no version needs are removed.

    Raises: MemoryStoreError if somebody else writes, the folder cannot be written, or the newest version is damaged.
    """
    files.require_table(folder)
    with writer_lock(folder) as lock:
        recover(folder, killed=lock.died is not None)
        before = files.present(folder)
        try:
            yield
        except BaseException:
            remove_orphans(folder, among=files.present(folder) - before)
            lock.done()
            raise
        lock.done()


def recover(folder: Path, *, killed: bool) -> None:
    """Finish or undo what the last writer did not: under the lock only.

    A version that was published but not yet acknowledged is kept if it is whole and set aside if it is not. Files that
    a killed writer left are removed.

    Raises: MemoryStoreError if the newest version had been acknowledged and is damaged: nobody may build on an older
        one, or move its files, without having been asked.
    """
    for version in unacknowledged(folder):
        _keep_or_set_aside(folder, version)
    newest = files.newest_version(folder)
    try:
        files.open_whole(folder, newest)
    except DamagedVersionError as error:
        raise MemoryStoreError(
            f"{str(error).split('; ')[0]}; restore it from a copy, "
            f"or give it up and go on from an older one with `latentrag index repair {folder}`"
        ) from error
    if killed:
        remove_orphans(folder)


def remove_orphans(folder: Path, *, among: set[str] | None = None) -> int:
    """Remove files of the table that no version needs: under the lock only, since they look like a writer's.

    Args:
        among: only these.
    Returns: the bytes that this frees.
    """
    names = files.present(folder) if among is None else among
    return files.remove(folder, names - files.needed(folder)) if names else 0


def unacknowledged(folder: Path) -> list[int]:
    """Versions newer than the newest that was acknowledged, ascending. Of a memory without records none is known."""
    found: list[int] = []
    if not durable.has_records(folder):
        return found
    for version in reversed(files.version_numbers(folder)):
        if durable.recorded_of(folder, files.manifest_name(version)) is not None:
            break
        found.insert(0, version)
    return found


def _keep_or_set_aside(folder: Path, version: int) -> None:
    try:
        dataset = files.open_whole(folder, version)
    except DamagedVersionError as error:
        files.set_aside(folder, [version])
        warnings.warn(
            f"{str(error).split('; ')[0]}; it was never acknowledged and is now in {folder / files.DAMAGED}",
            stacklevel=2,
        )
        return
    known = durable.recorded(folder)
    names = [name for name in files.sizes(dataset) if name not in known]
    io.sync_all(folder, [*names, files.manifest_name(version)])
    durable.record(folder, [*names, files.manifest_name(version)])


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Lance's and the system's failures to write as one line."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, LatentRagError) or not files.is_lances(error):
            raise
        raise MemoryStoreError(
            f"{folder} cannot be written ({files.reason(error)}); {_remedy(folder, error)}"
        ) from error


def _remedy(folder: Path, error: BaseException) -> str:
    """Lance gives the system's errors in words, and reads too when it changes a table."""
    said = re.search(r"\(os error (\d+)\)", str(error))
    number = int(said[1]) if said else getattr(error, "errno", None)
    if number in {EACCES, EPERM, EROFS}:
        return "check its permissions or copy it elsewhere"
    if number is None:
        return f"see whether it is damaged with `latentrag index verify {folder}`"
    return "make room or mend the disk, and try again"
