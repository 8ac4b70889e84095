"""What takes room on the disk and is needed no more: old versions, small files, passages that have to go for good."""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from latentrag.errors import InputError, MemoryStoreError, command
from latentrag.memory import history, version_files
from latentrag.memory.schema import require_known
from latentrag.memory.scratch import sweep
from latentrag.memory.storage import Place, Storage, storage_of
from latentrag.memory.table import ROWS_PER_FRAGMENT, Table
from latentrag.memory.version_files import (
    changing,
    ids_of_file,
    passages_of_file,
    remove_orphans,
    require_as_written,
    writing,
)
from latentrag.types import Passage

CHANCE_BYTES = 8
"""Texts shorter than this are looked for in the passages, not in the raw bytes, where they would turn up by chance."""


MANY_VERSIONS = 100
MANY_FILES = 50
"""From so many on, of fewer rows than SMALL_FILE, every commit takes noticeably longer."""
SMALL_FILE = ROWS_PER_FRAGMENT // 16
KEPT = 10


def advice(table: Table) -> str | None:
    """What would make a memory smaller and its commits quicker, in words; None where nothing would."""
    num_versions = len(version_files.version_numbers(table.path))
    num_files = sum(fragment.count_rows() < SMALL_FILE for fragment in table.fragments().values())
    remedies = []
    if num_files >= MANY_FILES:
        remedies.append(f"join {num_files} small files with {command('index', 'compact', table.path)}")
    if num_versions >= MANY_VERSIONS:
        prune = f"{command('index', 'prune', table.path, '--keep', KEPT)}"
        remedies.append(f"remove the oldest of {num_versions} versions with {prune}")
    return f"every commit gets slower; {', then '.join(remedies)}" if remedies else None


@dataclass(frozen=True, slots=True)
class Pruned:
    """Versions that are gone, older ones that stay because they have a name, and what that freed."""

    removed: list[int]
    kept: list[int]
    freed_bytes: int


def prune(place: Place, *, keep: int | None = None, older_than_days: float | None = None) -> Pruned:
    """Remove old versions for good, with the files that no other needs. The newest always stays, and so does every
    version with a tag and the one that is served.

    A process that searches one of these versions at this moment gets an error at its next read.

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
    storage = storage_of(place)
    with writing(storage):
        version_files.needed(storage)  # raises before anything is removed
        newest = Table.open(storage)
        log = history.log(newest)
        if keep is not None:
            old = [version.number for version in log[:-keep]]
        else:
            limit = datetime.now(UTC) - timedelta(days=older_than_days or 0)
            old = [version.number for version in log[:-1] if version.time < limit]
        named = set(history.tags(storage.folder).values())
        unneeded = [number for number in old if number not in named]
        if unneeded:
            sizes = version_files.sizes(newest.dataset)
            require_as_written(storage.folder, sizes, storage.checksums() or {})
        freed = _drop(storage, unneeded)
    return Pruned(unneeded, [number for number in old if number in named], freed)


def _drop(storage: Storage, versions: Collection[int]) -> int:
    """Remove versions and then what no version needs: under the lock only. Returns: the bytes that this frees.

    Killed in between, it leaves files that no version needs, which the next writer removes.
    """
    folder = storage.folder
    with changing(folder):
        before = version_files.needed(storage)
        freed = storage.remove([version_files.manifest_name(version) for version in versions])
        freed += remove_orphans(storage, among=(before & storage.files()) | storage.abandoned())
        storage.keep_checksums(storage.files())
    return freed


@dataclass(frozen=True, slots=True)
class Compacted:
    """The version that has the rows in fewer files, and in how many they were before. Unless ``changed`` there was
    nothing to do, and the version is the one from before."""

    version: int
    changed: bool
    files_before: int
    files_after: int


def compact(place: Place) -> Compacted:
    """Commit a version with the same passages in fewer files, and without the rows that were deleted.

    Older versions keep theirs, so this needs room until they are pruned. Raises: MemoryStoreError, also if a file that
    would be written anew is not as it was written.
    """
    storage = storage_of(place)
    with writing(storage):
        before = Table.open(storage)
        after = before.compact()
    return Compacted(after.version, after.version != before.version, len(before.fragments()), len(after.fragments()))


# Forgetting


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What is gone, and what is left of it.

    Attributes:
        passages: each as it was; one that had been replaced comes several times.
        version: the newest, which has the other passages.
        dropped: versions that are gone because one of their files held a passage.
        tags: names of those versions.
        freed_bytes: on the disk, the versions written instead already subtracted.
        same_text: of the forgotten ids, the ids of passages that stay and hold the same text.
        left: files that still hold a text, and no passage that stays explains it.
    """

    passages: list[Passage]
    version: int
    dropped: list[int]
    tags: list[str]
    freed_bytes: int
    same_text: dict[str, list[str]]
    left: list[str]


def forget(place: Place, ids: Iterable[str]) -> Forgotten:
    """Delete passages from the newest version and remove every older one, and every file, that holds them.

    Passages are found wherever they are: in the newest version, in an older one, or deleted long ago in a file that
    another passage keeps. What must stay is written anew. Other versions that share a file with a forgotten passage are
    gone with it, and with them what only they held. The indexes are removed, they are built again from the table, and
    so is what ``repair`` had set aside. At the end all files are searched for the texts.

    Files are removed, not overwritten: what a disk, its snapshots or a copy still hold is beyond this.

    Raises: InputError if an id is nowhere or none is given; MemoryStoreError. Killed in between, it can be repeated.
    """
    unwanted = dict.fromkeys(ids)
    if not unwanted:
        raise InputError("no ids to forget; give at least one")
    storage = storage_of(place)
    folder = storage.folder
    version_files.require_table(folder)
    version_files.require_exclusive(storage, "forgotten from")
    assert isinstance(folder, Path)
    with writing(storage):
        remove_orphans(storage)
        sweep(folder)
        before = _size_bytes(folder)
        holders = dict(_holders(storage, unwanted))
        passages = sorted({z for of_file in holders.values() for z in of_file}, key=lambda z: (z.id, z.text))
        require_known(unwanted, {passage.id for passage in passages}, f"in no version of {folder}")
        for disposable in (version_files.INDEXES, version_files.DAMAGED):
            with changing(folder):
                _remove_whole(folder / disposable)
        dropped: dict[int, list[str]] = {}
        try:
            newest = _without(Table.open(storage), unwanted, set(holders))
        except MemoryStoreError as error:
            if not version_files.is_full(error):
                raise
            dropped |= _drop_holders(storage, holders)  # which makes room
            newest = _without(Table.open(storage), unwanted, set(holders))
        dropped |= _drop_holders(storage, holders)
        with changing(folder):
            _remove_whole(folder / version_files.INDEXES)  # one may have been built of a version still there
        freed = before - _size_bytes(folder)
        same_text, left = _search(storage, folder, passages)
    named = [name for names in dropped.values() for name in names]
    return Forgotten(passages, newest.version, list(dropped), named, freed, same_text, left)


def _drop_holders(storage: Storage, holders: Collection[str]) -> dict[int, list[str]]:
    """Remove every version but the newest that needs one of these files. Returns: the tags of each."""
    *older, _ = version_files.version_numbers(storage.folder)
    dropped: dict[int, list[str]] = {
        version: []
        for version in older
        if not set(holders).isdisjoint(version_files.sizes(version_files.open_whole(storage, version)))
    }
    for name, version in history.tags(storage.folder).items():
        if version in dropped:
            dropped[version].append(name)
    history.remove_tags(storage, [name for names in dropped.values() for name in names])
    _drop(storage, dropped)
    return dropped


def _remove_whole(place: Path) -> None:
    """Remove a folder at once for all who look into it: who is building an index there fails, and leaves nothing."""
    gone = place.with_name(f"{place.name}-gone")
    if gone.exists():  # a forgetting was killed here
        shutil.rmtree(gone)
    if place.exists():
        place.rename(gone)
        shutil.rmtree(gone)


def _without(table: Table, unwanted: Collection[str], holders: set[str]) -> Table:
    """Commit a version without the passages and without the files that hold them."""
    here = [key for key in table.ids() if key in unwanted]
    change = f"forgot {len(unwanted)}"
    if here:
        table = table.commit(removed_ids=here, change=change)
    fragments = table.fragments()
    clean = [fragment.fragment_id for names, fragment in fragments.items() if not holders & set(names)]
    if len(clean) < len(fragments):
        table = table.compact(deleted_share=0.0, keep=clean, change=change)
    if any(holders & set(names) for names in table.fragments()):
        raise MemoryStoreError(f"the files of {table.path} that hold the passages were not written anew; run it again")
    return table


def _holders(storage: Storage, ids: Collection[str]) -> Iterator[tuple[str, set[Passage]]]:
    """Files with rows of these ids, deleted or not, and what the rows say."""
    for name in sorted(storage.files()):
        if name.startswith("data/") and not ids_of_file(storage, name).isdisjoint(ids):
            yield name, {passage for passage in passages_of_file(storage, name) if passage.id in ids}


def _search(storage: Storage, folder: Path, passages: Collection[Passage]) -> tuple[dict[str, list[str]], list[str]]:
    """Which passages that stay have a forgotten text, and which files hold one that no such passage explains."""
    same: dict[str, list[str]] = {}
    left = []
    texts = {z.text for z in passages if z.text}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        held = {text for text in texts if len(text.encode()) >= CHANCE_BYTES and _holds(path, text.encode())}
        if name.startswith("data/"):
            for stays in passages_of_file(storage, name):
                within = {text for text in texts if text in stays.text}
                held -= within
                for key in (z.id for z in passages if z.text in within):
                    same.setdefault(key, []).append(stays.id)
        if held:
            left.append(name)
    return same, left


def _holds(path: Path, text: bytes) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def _size_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
