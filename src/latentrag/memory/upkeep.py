"""Room on the disk: versions that nobody needs any more, files that are too small or half deleted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from latentrag.errors import DamagedVersionError, InputError, MemoryStoreError
from latentrag.memory import durable, files, tags
from latentrag.memory.lock import writer_lock
from latentrag.memory.recovery import changing, recover, remove_orphans, writing
from latentrag.memory.table import Table


@dataclass(frozen=True, slots=True)
class Pruned:
    """Versions that are gone, older ones that stay because they have a name, and what that freed."""

    removed: list[int]
    kept: list[int]
    freed_bytes: int


def prune(folder: Path, *, keep: int | None = None, older_than_days: float | None = None) -> Pruned:
    """Remove old versions for good, with the files that no other needs. The newest always stays, and so does every
    version with a tag and the one that is served.

    Somebody who searches one of these versions at this moment gets an error for the passages that he has yet to read.

    Args:
        keep: so many of the newest.
        older_than_days: versions that were committed earlier.
    Raises: InputError unless exactly one is given, and it is 1 or more days or versions; MemoryStoreError, also if a
        file of the newest version is not as it was written: the older ones may be all that can be read.
    """
    if (keep is None) == (older_than_days is None):
        raise InputError("got both or neither of a number of versions and an age in days; give one of them")
    if keep is not None and keep < 1:
        raise InputError(f"keep={keep} versions cannot be; the newest always stays, give 1 or more")
    if older_than_days is not None and not 0 <= older_than_days <= 1_000_000:
        raise InputError(f"older_than_days={older_than_days} is no age; give 0 or more days")
    with writing(folder):
        files.needed(folder)  # raises before anything is removed
        newest = Table.open(folder)
        log = newest.log()
        if keep is not None:
            old = [version.number for version in log[:-keep]]
        else:
            limit = datetime.now(UTC) - timedelta(days=older_than_days or 0)
            old = [version.number for version in log[:-1] if version.time < limit]
        named = set(tags.tags(folder).values())
        doomed = [number for number in old if number not in named]
        if doomed:
            _check_as_written(newest)
        freed = drop(folder, doomed)
    return Pruned(doomed, [number for number in old if number in named], freed)


def _check_as_written(table: Table) -> None:
    """Raises: MemoryStoreError if a file with the table's rows has another checksum than when it was committed."""
    known = durable.recorded(table.path)
    for name in files.sizes(table.dataset):
        if name in known and durable.Checksum.of(table.path / name) != known[name]:
            raise MemoryStoreError(
                f"{name} of the newest version of {table.path} is not as it was written; nothing is removed, see "
                f"`latentrag index verify {table.path}`"
            )


def drop(folder: Path, versions: Collection[int]) -> int:
    """Remove versions and then what no version needs: under the lock only. Returns: the bytes that this frees.

    Killed in between, it leaves files that no version needs, which the next writer removes.
    """
    with changing(folder):
        freed = files.remove(folder, [files.manifest_name(version) for version in versions])
        freed += remove_orphans(folder)
        durable.keep_records(folder, files.present(folder))
    return freed


@dataclass(frozen=True, slots=True)
class Compacted:
    """The version that has the rows in fewer files, and in how many they were before. Unless ``changed`` there was
    nothing to do, and the version is the one from before."""

    version: int
    changed: bool
    files_before: int
    files_after: int


def compact(folder: Path) -> Compacted:
    """Commit a version with the same passages in fewer files, and without the rows that were deleted.

    Older versions keep theirs, so this needs room until they are pruned. Raises: MemoryStoreError.
    """
    with writing(folder):
        before = Table.open(folder)
        after = before.compact()
    return Compacted(after.version, after.version != before.version, len(before.fragments()), len(after.fragments()))


@dataclass(frozen=True, slots=True)
class Repaired:
    """Versions that were set aside, names that they had, and the newest version since."""

    set_aside: list[int]
    tags: list[str]
    newest: int


def repair(folder: Path) -> Repaired:
    """Give up the versions that cannot be opened: they move to ``_damaged`` with the files that no other needs.

    Nothing is deleted. Names of those versions are taken away.

    Raises: MemoryStoreError if no other version is left.
    """
    files.require_table(folder)
    with writer_lock(folder) as lock:
        damaged = [version for version in files.version_numbers(folder) if not _opens(folder, version)]
        if len(damaged) == len(files.version_numbers(folder)):
            raise MemoryStoreError(
                f"no version of the memory at {folder} can be read; restore it from a copy or build it again"
            )
        named = [name for name, version in tags.tags(folder).items() if version in damaged]
        if damaged:
            with changing(folder):
                files.set_aside(folder, damaged)
            tags.remove(folder, named)
        recover(folder, killed=True)
        lock.done()
    return Repaired(damaged, named, files.newest_version(folder))


def _opens(folder: Path, version: int) -> bool:
    try:
        files.open_whole(folder, version)
    except DamagedVersionError:
        return False
    return True
