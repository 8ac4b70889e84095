"""Whether a memory is as it was written: its files, its versions, its newest passages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentrag.errors import DamagedVersionError, MemoryStoreError
from latentrag.memory import durable, files, lock
from latentrag.memory.table import Table
from latentrag.memory.tags import tags

SHOWN = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked and found.

    Attributes:
        version: the newest that can be opened; None: there is none.
        num_passages: of that version.
        num_versions: those that cannot be opened, too.
        num_files, size_bytes: of the table.
        num_unrecorded: files that a version needs and whose checksums were not recorded when they were written.
        notes: what is worth knowing and no problem.
    """

    version: int | None
    num_passages: int
    num_versions: int
    num_files: int
    size_bytes: int
    num_unrecorded: int
    problems: list[Problem]
    notes: list[str]


def verify(folder: Path) -> Report:
    """Read every file of a memory once and check what can be checked. Nothing is changed.

    Every version: that it opens, and that its files have the checksums of their commit. The newest: that it has as many
    passages as it says, each with an id of its own and a finite vector.

    Raises: MemoryStoreError if this is no memory.
    """
    files.require_table(folder)
    numbers, present, known = files.version_numbers(folder), files.present(folder), durable.recorded(folder)
    needed, problems = _opened(folder, numbers)
    newest = max(needed, default=None)
    table = None if newest is None else Table.open(folder, newest)
    problems += _changed(folder, known, needed)
    problems += [] if table is None else _of_rows(table)
    problems += _of_tags(folder, numbers)
    orphans = present - files.needed(folder) if len(needed) == len(numbers) else set()
    writer = lock.owner(folder)
    if orphans and writer is None:
        problems.append(
            Problem(
                f"{len(orphans)} files belong to no version, {_shown(orphans)}",
                f"a writer must have died; they go with the next `latentrag index compact {folder}`",
            )
        )
    everything = set().union(*needed.values()) if needed else set()
    return Report(
        version=newest,
        num_passages=0 if table is None else len(table),
        num_versions=len(numbers),
        num_files=len(present),
        size_bytes=sum(_size_bytes(folder / name) for name in present),
        num_unrecorded=len(everything - known.keys()),
        problems=problems,
        notes=list(_notes(folder, writer)),
    )


def _opened(folder: Path, numbers: list[int]) -> tuple[dict[int, set[str]], list[Problem]]:
    """The files of each version that opens, and a problem for each that does not."""
    needed: dict[int, set[str]] = {}
    problems = []
    for number in numbers:
        try:
            dataset = files.open_whole(folder, number)
        except DamagedVersionError as error:
            problems.append(
                Problem(
                    str(error).split("; ")[0],
                    f"restore it from a copy, or give it up with `latentrag index repair {folder}`",
                )
            )
            continue
        needed[number] = {*files.sizes(dataset), files.manifest_name(number)}
    return needed, problems


def _changed(folder: Path, known: Mapping[str, durable.Checksum], needed: Mapping[int, set[str]]) -> Iterator[Problem]:
    """Files that are not as they were committed, and which versions suffer."""
    for name in sorted(set().union(*needed.values())):
        if name not in known:
            continue
        try:
            same = durable.Checksum.of(folder / name) == known[name]
        except OSError:
            same = False
        if not same:
            suffer = [version for version in needed if name in needed[version]]
            others = [version for version in needed if name not in needed[version]]
            ask = f", or ask version {others[-1]}: `latentrag index use {folder} {others[-1]}`" if others else ""
            yield Problem(
                f"{name} is not as it was written; versions {suffer[0]} to {suffer[-1]} need it",
                f"restore that file from a copy{ask}",
            )


def _of_rows(table: Table) -> Iterator[Problem]:
    """What is wrong with the passages of a version."""
    again = "restore the memory from a copy or build it again"
    try:
        ids = list(table.ids())
        bad = sum(int((~np.isfinite(vectors).all(axis=1)).sum()) for _, vectors in table.vectors())
    except MemoryStoreError as error:
        yield Problem(str(error).split("; ")[0], again)
        return
    if len(ids) != len(table):
        yield Problem(f"version {table.version} has {len(ids)} passages and says it has {len(table)}", again)
    if len(set(ids)) != len(ids):
        yield Problem(f"{len(ids) - len(set(ids))} ids of version {table.version} come twice", again)
    if bad:
        yield Problem(
            f"{bad} vectors of version {table.version} are not finite", "add these passages again with --upsert"
        )


def _of_tags(folder: Path, numbers: list[int]) -> Iterator[Problem]:
    try:
        named = tags(folder)
    except MemoryStoreError as error:
        what, remedy = str(error).rsplit("; ", 1)
        yield Problem(what, remedy)
        return
    for name, version in named.items():
        if version not in numbers:
            remedy = f"latentrag index use {folder} newest" if name == "served" else f"latentrag index tag {folder}"
            yield Problem(f"the tag {name!r} names version {version}, which is gone", f"`{remedy}`")


def _notes(folder: Path, writer: lock.Owner | None) -> Iterator[str]:
    if writer is not None:
        yield f"the memory is being changed by {writer}, or that writer died; the next one cleans up"
    if (folder / files.DAMAGED).exists():
        yield f"{folder / files.DAMAGED} holds versions that were set aside; delete it if nobody can mend them"


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0  # a writer has removed it meanwhile


def _shown(names: set[str]) -> str:
    first = sorted(names)[:SHOWN]
    return ", ".join(first) + (", …" if len(names) > SHOWN else "")
