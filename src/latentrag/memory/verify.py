"""Whether a memory is as it was written: its files, its versions, its newest passages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentrag.errors import DamagedVersionError, IndexDamagedError, InputError, MemoryStoreError
from latentrag.memory import version_files
from latentrag.memory.history import SERVED, tags
from latentrag.memory.indexes.checking import CheckedIndex, check
from latentrag.memory.indexes.folder import IndexFolder, Published
from latentrag.memory.storage import Checksum, Owner, Place, Storage, storage_of
from latentrag.memory.table import Table

SHOWN = 3
NUM_QUESTIONS = 200
"""Of which recall's standard error is about a hundredth."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked, and what is wrong.

    Attributes:
        version: the newest that can be opened; None: there is none.
        num_passages: of that version.
        num_versions: those that cannot be opened, too.
        num_files, size_bytes: of the table.
        num_unrecorded: files that a version needs and whose checksums were not recorded when they were written.
        indexes: of the memory, each with its recall.
        notes: what is worth knowing and no problem.
    """

    version: int | None
    num_passages: int
    num_versions: int
    num_files: int
    size_bytes: int
    num_unrecorded: int
    indexes: list[CheckedIndex]
    problems: list[Problem]
    notes: list[str]


def verify(
    place: Place, *, num_questions: int = NUM_QUESTIONS, seed: int = 0, index_folder: Path | None = None
) -> Report:
    """Read every file of a memory and check what can be checked. Nothing is changed.

    Every version: that it opens, and that its files have the checksums of their commit. The newest: that it has as many
    passages as it says, each with an id of its own and a finite vector. Every index, against the version that is asked
    (the served one, or the newest): that it holds each passage once and nothing else, that its records are as they were
    written, and that it finds what exact search finds.

    Args:
        num_questions: passages whose vectors are searched for to measure an index's recall; 0: it is not measured.
        seed: random seed of that sample.
        index_folder: where the indexes lie, if not in the memory.
    Raises: MemoryStoreError if this is no memory; InputError if ``num_questions`` is negative.
    """
    if num_questions < 0:
        raise InputError(f"num_questions={num_questions} cannot be asked; give 0 or more")
    storage = storage_of(place)
    folder = storage.folder
    version_files.require_table(folder)
    numbers, present = version_files.version_numbers(folder), version_files.present(folder)
    checksums = storage.checksums() or {}
    needed, problems = _opened(storage, numbers)
    newest = max(needed, default=None)
    table = None if newest is None else Table.open(storage, newest)
    of_files = [*_changed(folder, checksums, needed), *([] if table is None else _of_rows(table))]
    of_indexes = IndexFolder.of(folder) if index_folder is None else IndexFolder(index_folder)
    published, unreadable = of_indexes.indexes()
    # Damaged passages are no measure of an index.
    asked = None if of_files else _asked(storage, table)
    indexes = [] if asked is None else _checked(published, asked, num_questions=num_questions, seed=seed)
    problems += [*of_files, *_of_indexes(folder, of_indexes, indexes, unreadable), *_of_tags(folder, numbers)]
    orphans = present - version_files.needed(storage) if len(needed) == len(numbers) else set()
    writer = storage.owner()
    if orphans and writer is None:
        problems.append(
            Problem(
                f"{len(orphans)} files belong to no version, {_shown(orphans)}",
                f"a writer must have died; `latentrag index repair {folder}` removes them",
            )
        )
    everything = set().union(*needed.values()) if needed else set()
    return Report(
        version=newest,
        num_passages=0 if table is None else len(table),
        num_versions=len(numbers),
        num_files=len(present),
        size_bytes=sum(_size_bytes(folder / name) for name in present),
        num_unrecorded=len(everything - checksums.keys()),
        indexes=indexes,
        problems=problems,
        notes=[*_index_notes(published, indexes, asked), *_notes(folder, writer)],
    )


def _opened(storage: Storage, numbers: list[int]) -> tuple[dict[int, set[str]], list[Problem]]:
    """The files of each version that opens, and a problem for each that does not."""
    needed: dict[int, set[str]] = {}
    problems = []
    for number in numbers:
        try:
            dataset = version_files.open_whole(storage, number)
        except DamagedVersionError as error:
            problems.append(
                Problem(
                    str(error).split("; ")[0],
                    f"restore it from a copy, or give it up with `latentrag index repair {storage.folder}`",
                )
            )
            continue
        needed[number] = {*version_files.sizes(dataset), version_files.manifest_name(number)}
    return needed, problems


def _changed(folder: Path, checksums: Mapping[str, Checksum], needed: Mapping[int, set[str]]) -> Iterator[Problem]:
    """Files that are not as they were committed, and which versions suffer."""
    for name, what in version_files.changed_files(folder, sorted(set().union(*needed.values())), checksums).items():
        suffer = [version for version in needed if name in needed[version]]
        others = [version for version in needed if name not in needed[version]]
        ask = f", ask version {others[-1]}: `latentrag index use {folder} {others[-1]}`," if others else ""
        yield Problem(
            f"{what}; versions {suffer[0]} to {suffer[-1]} need it",
            f"restore that file from a copy{ask} or go on with what is intact: `latentrag index repair {folder}`",
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


def _checked(published: Iterable[Published], asked: Table, *, num_questions: int, seed: int) -> list[CheckedIndex]:
    indexes = []
    for index in published if len(asked) else ():
        with contextlib.suppress(FileNotFoundError):  # thrown away at this moment
            indexes.append(check(index, asked, num_questions=num_questions, seed=seed))
    return indexes


def _asked(storage: Storage, newest: Table | None) -> Table | None:
    """The version that is asked where nobody says which, as far as that can be told."""
    try:
        number = tags(storage.folder).get(SERVED)
        return newest if number is None else Table.open(storage, number)
    except MemoryStoreError:  # the tag, or its version, is a problem of its own
        return newest


def _of_indexes(
    folder: Path, index_folder: IndexFolder, indexes: Iterable[CheckedIndex], unreadable: Iterable[IndexDamagedError]
) -> Iterator[Problem]:
    for error in unreadable:
        yield Problem(str(error), f"delete {error.file.parent}, the passages are all there without it")
    for index in indexes:
        place = index_folder.path / index.folder
        again = f"delete {place} and build it again with `latentrag index build {folder} --index {index.kind}`"
        for fault in index.faults:
            yield Problem(f"the index {index.folder} {fault}", again)
        for recall in index.recall:
            if recall.is_low:
                yield Problem(
                    f"the index {index.folder} finds {recall.share:.1%} (±{recall.standard_error:.1%}) of the "
                    f"{recall.k} best passages, needed {recall.needed:.0%}",
                    f"{again}; if it stays so, use the index flat",
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


def _index_notes(published: Sequence[Published], indexes: Iterable[CheckedIndex], asked: Table | None) -> Iterator[str]:
    if published and asked is None:
        yield f"{len(published)} indexes were not compared with the passages, which have problems of their own"
    for index in indexes:
        if index.unused:
            yield f"the index {index.folder} {index.unused}; version {index.version} does without"


def _notes(folder: Path, writer: Owner | None) -> Iterator[str]:
    if writer is not None:
        yield f"the memory is being changed by {writer}, or that writer died; the next one cleans up"
    if (folder / version_files.DAMAGED).exists():
        yield f"{folder / version_files.DAMAGED} holds versions that were set aside; delete it if nobody can mend them"


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0  # a writer has removed it meanwhile


def _shown(names: set[str]) -> str:
    first = sorted(names)[:SHOWN]
    return ", ".join(first) + (", …" if len(names) > SHOWN else "")
