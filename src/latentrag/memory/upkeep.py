"""Room on the disk: versions that nobody needs any more, files that are too small or half deleted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from latentrag.errors import InputError
from latentrag.memory import durable, files, tags
from latentrag.memory.damage import require_as_written
from latentrag.memory.recovery import changing, remove_orphans, writing
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
            require_as_written(folder, files.sizes(newest.dataset), durable.recorded(folder))
        freed = drop(folder, doomed)
    return Pruned(doomed, [number for number in old if number in named], freed)


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

    Older versions keep theirs, so this needs room until they are pruned. Raises: MemoryStoreError, also if a file that
    would be written anew is not as it was written.
    """
    with writing(folder):
        before = Table.open(folder)
        after = before.compact()
    return Compacted(after.version, after.version != before.version, len(before.fragments()), len(after.fragments()))
