"""Passages out of a memory for good: out of its files and its history, not only out of its newest version."""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from latentrag.errors import DataError, MemoryStoreError
from latentrag.memory import files, tags
from latentrag.memory.data_files import ids_of_file, passages_of_file
from latentrag.memory.recovery import changing, remove_orphans, writing
from latentrag.memory.table import Table
from latentrag.memory.upkeep import drop
from latentrag.types import Passage

CHANCE_BYTES = 8
"""Texts shorter than this are looked for in the passages, not in the raw bytes, where they would turn up by chance."""


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


def forget(folder: Path, ids: Iterable[str]) -> Forgotten:
    """Delete passages from the newest version and remove every older one, and every file, that holds them.

    Passages are found wherever they are: in the newest version, in an older one, or deleted long ago in a file that
    another passage keeps. What must stay is written anew. Other versions that share a file with a forgotten passage are
    gone with it, and with them what only they held. The indexes are removed, they are built again from the table, and
    so is what ``repair`` had set aside. At the end all files are searched for the texts.

    Files are removed, not overwritten: what a disk, its snapshots or a copy still hold is beyond this.

    Raises: DataError if an id is nowhere or none is given; MemoryStoreError. Killed in between, it can be repeated.
    """
    unwanted = dict.fromkeys(ids)
    if not unwanted:
        raise DataError("no ids to forget; give at least one")
    with writing(folder):
        remove_orphans(folder)
        before = _size_bytes(folder)
        found = dict(_holders(folder, unwanted))
        passages = sorted({z for of_file in found.values() for z in of_file}, key=lambda z: (z.id, z.text))
        _require_found(unwanted, passages, folder)
        for disposable in (files.INDEXES, files.DAMAGED):
            with changing(folder):
                _remove_whole(folder / disposable)
        newest = _without(Table.open(folder), unwanted, set(found))
        dropped = [version for version in files.version_numbers(folder) if _shares(folder, version, set(found))]
        named = [name for name, version in tags.tags(folder).items() if version in dropped]
        tags.remove(folder, named)
        drop(folder, dropped)
        with changing(folder):
            _remove_whole(folder / files.INDEXES)  # somebody may have built one of a version that was still there
        freed = before - _size_bytes(folder)
        same_text, left = _search(folder, passages)
    return Forgotten(passages, newest.version, dropped, named, freed, same_text, left)


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
    here = table.find(unwanted)
    change = f"forgot {len(unwanted)}"
    if here:
        table = table.commit([], removed_ids=here.keys(), change=change)
    fragments = table.fragments()
    clean = [fragment.fragment_id for names, fragment in fragments.items() if not holders & set(names)]
    if len(clean) < len(fragments):
        table = table.compact(deleted_share=0.0, keep=clean, change=change)
    if any(holders & set(names) for names in table.fragments()):
        raise MemoryStoreError(f"the files of {table.path} that hold the passages were not written anew; run it again")
    return table


def _holders(folder: Path, ids: Collection[str]) -> Iterator[tuple[str, set[Passage]]]:
    """Files with rows of these ids, deleted or not, and what the rows say."""
    for name in sorted(files.present(folder)):
        if name.startswith("data/") and not ids_of_file(folder, name).isdisjoint(ids):
            yield name, {passage for passage in passages_of_file(folder, name) if passage.id in ids}


def _shares(folder: Path, version: int, holders: set[str]) -> bool:
    return not holders.isdisjoint(files.sizes(files.open_whole(folder, version)))


def _require_found(ids: Collection[str], passages: Iterable[Passage], folder: Path) -> None:
    unknown = sorted(set(ids) - {passage.id for passage in passages})
    if unknown:
        shown = ", ".join(map(repr, unknown[:3])) + (", …" if len(unknown) > 3 else "")
        raise DataError(f"{len(unknown)} ids are in no version of {folder}: {shown}; leave them out")


def _search(folder: Path, passages: Collection[Passage]) -> tuple[dict[str, list[str]], list[str]]:
    """Which passages that stay have a forgotten text, and which files hold one that no such passage explains."""
    same: dict[str, list[str]] = {}
    left = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        held = {z for z in passages if len(z.text.encode()) >= CHANCE_BYTES and _holds(path, z.text.encode())}
        if name.startswith("data/"):
            for stays in passages_of_file(folder, name):
                within = [z for z in passages if z.text and z.text in stays.text]
                held.difference_update(within)
                for z in within:
                    same.setdefault(z.id, []).append(stays.id)
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
