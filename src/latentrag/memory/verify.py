"""Whether a memory is as it was written: its files, its versions, its newest passages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentrag.errors import (
    DamagedVersionError,
    IndexDamagedError,
    InputError,
    MemoryStoreError,
    UnknownVersionError,
    command,
)
from latentrag.memory import version_files
from latentrag.memory.history import SERVED, tags
from latentrag.memory.indexes import words
from latentrag.memory.indexes.building import is_stored, opened
from latentrag.memory.indexes.changes import Difference, difference, require_same_rows, rows_with, stream
from latentrag.memory.indexes.folder import IndexFolder, Published
from latentrag.memory.indexes.index import exact_best, recalls
from latentrag.memory.indexes.stored import StoredIndex
from latentrag.memory.indexes.supply import DRIFT_TO_REFUSE, serving
from latentrag.memory.object_path import Folder
from latentrag.memory.repair import Damage, find_damage
from latentrag.memory.storage import Owner, Place, Storage, storage_of
from latentrag.memory.table import Table
from latentrag.memory.upkeep import KEPT

if TYPE_CHECKING:
    import numpy.typing as npt

SHOWN = 3
NUM_QUESTIONS = 200
"""Of which recall's standard error is about a hundredth."""
ACCEPTED = {5: 0.98, 100: 0.95}
"""Recall at K below which an index is a finding. Indexes are built to find more of passages' own vectors, since they
find fewer of people's questions (ADR 6)."""
ERRORS_ALLOWED = 2.0
"""So many standard errors a measured recall may lie below that, because the sample may be an unlucky one."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Recall:
    """The share of the K best passages that an index finds, over questions that are passages' own vectors.

    Attributes:
        standard_error: of ``share``, from the spread between the questions.
        needed: below which, by more than two standard errors, it is a finding.
    """

    k: int
    share: float
    standard_error: float
    num_questions: int
    needed: float

    @property
    def is_low(self) -> bool:
        return self.share + ERRORS_ALLOWED * self.standard_error < self.needed


@dataclass(frozen=True, slots=True)
class CheckedIndex:
    """What was found out about an index.

    Attributes:
        folder: its name in the folder of indexes.
        built_version: the version it was built of; ``version`` is the one it was compared with.
        faults: why it must not be used.
        unused: why it does not serve this version, and was not compared; empty if it does.
    """

    folder: str
    kind: str
    built_version: int
    version: int
    recall: list[Recall] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unused: str = ""


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
    present = storage.files()
    damage = find_damage(storage)
    numbers = sorted(damage.manifests.keys() | damage.needed.keys())
    table = _newest(storage, damage)
    of_files = [*_of_files(folder, damage), *([] if table is None else _of_rows(table))]
    of_indexes = IndexFolder.of(storage.local, index_folder)
    published, unreadable = of_indexes.indexes()
    # Damaged passages are no measure of an index.
    asked = None if of_files else _asked(storage, table)
    indexes = [] if asked is None else _checked(published, asked, num_questions=num_questions, seed=seed)
    problems = [
        *_of_manifests(folder, damage),
        *of_files,
        *_of_indexes(folder, of_indexes, indexes, unreadable),
        *_of_tags(folder, numbers),
    ]
    orphans = set() if damage.manifests else present - version_files.needed(storage)
    abandoned = orphans & storage.abandoned()
    writer = storage.owner()
    if abandoned and writer is None:
        removing = ("repair", folder) if storage.is_exclusive else ("prune", folder, "--keep", KEPT)
        problems.append(
            Problem(
                f"{len(abandoned)} files belong to no version, {_shown(abandoned)}",
                f"a writer must have died; {command('index', *removing)} removes them",
            )
        )
    needed = set(map(version_files.manifest_name, damage.needed)).union(*damage.needed.values())
    return Report(
        version=None if table is None else table.version,
        num_passages=0 if table is None else len(table),
        num_versions=len(numbers),
        num_files=len(present),
        size_bytes=sum(_size_bytes(folder / name) for name in present),
        num_unrecorded=len(needed - (storage.checksums() or {}).keys()),
        indexes=indexes,
        problems=problems,
        notes=[*_index_notes(published, indexes, asked), *_notes(folder, writer, orphans - abandoned)],
    )


def _newest(storage: Storage, damage: Damage) -> Table | None:
    """The newest version that can be opened."""
    for version in sorted(damage.needed, reverse=True):
        with contextlib.suppress(DamagedVersionError, UnknownVersionError):  # it may be pruned at this moment
            return Table.open(storage, version)
    return None


def _of_manifests(folder: Folder, damage: Damage) -> Iterator[Problem]:
    for version, what in damage.manifests.items():
        yield Problem(
            f"version {version} of the memory at {folder} cannot be read ({what})",
            f"restore it from a copy, or give it up with {command('index', 'repair', folder)}",
        )


def _of_files(folder: Folder, damage: Damage) -> Iterator[Problem]:
    """Files that are missing or not as they were committed, and which versions suffer."""
    for name, what in damage.files.items():
        suffer = [version for version in damage.needed if name in damage.needed[version]]
        others = [version for version in damage.needed if name not in damage.needed[version]]
        ask = f", ask version {others[-1]}: {command('index', 'use', folder, others[-1])}," if others else ""
        yield Problem(
            f"{what}; versions {suffer[0]} to {suffer[-1]} need it",
            f"restore that file from a copy{ask} or go on with what is intact: {command('index', 'repair', folder)}",
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
            indexes.append(_check(index, asked, num_questions=num_questions, seed=seed))
    return indexes


def _asked(storage: Storage, newest: Table | None) -> Table | None:
    """The version that is asked where nobody says which, as far as that can be told."""
    try:
        number = tags(storage.folder).get(SERVED)
        return newest if number is None else Table.open(storage, number)
    except MemoryStoreError:  # the tag, or its version, is a problem of its own
        return newest


def _of_indexes(
    folder: Folder, index_folder: IndexFolder, indexes: Iterable[CheckedIndex], unreadable: Iterable[IndexDamagedError]
) -> Iterator[Problem]:
    for path in words.damaged(index_folder):
        yield Problem(
            f"{path} is damaged", "delete it, the words of its passages are indexed again when they are needed"
        )
    for error in unreadable:
        yield Problem(str(error), f"delete {error.file.parent}, the passages are all there without it")
    for index in indexes:
        place = index_folder.path / index.folder
        again = f"delete {place} and build it again with {command('index', 'build', folder, '--index', index.kind)}"
        for fault in index.faults:
            yield Problem(f"the index {index.folder} {fault}", again)
        for recall in index.recall:
            if recall.is_low:
                yield Problem(
                    f"the index {index.folder} finds {recall.share:.1%} (±{recall.standard_error:.1%}) of the "
                    f"{recall.k} best passages, needed {recall.needed:.0%}",
                    f"{again}; if it stays so, use the index flat",
                )


def _of_tags(folder: Folder, numbers: list[int]) -> Iterator[Problem]:
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


def _notes(folder: Folder, writer: Owner | None, pending: set[str]) -> Iterator[str]:
    if writer is not None:
        yield f"the memory is being changed by {writer}, or that writer died; the next one cleans up"
    if pending:
        yield f"{len(pending)} files belong to no version; a writer may be about to commit them, {_shown(pending)}"
    if (folder / version_files.DAMAGED).exists():
        yield f"{folder / version_files.DAMAGED} holds versions that were set aside; delete it if nobody can mend them"


def _size_bytes(file: Folder) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0  # a writer has removed it meanwhile


def _shown(names: set[str]) -> str:
    first = sorted(names)[:SHOWN]
    return ", ".join(first) + (", …" if len(names) > SHOWN else "")


# Indexes


def _check(published: Published, table: Table, *, num_questions: int, seed: int) -> CheckedIndex:
    """Compare an index with a version of the table, which must be whole. Reads both.

    Every row of the version must be in it once, and no other row; every record must be as it was written. Rows drawn
    at random are compared with the table's, and searched for.

    Args:
        num_questions: how many rows are drawn; 0: recall is not measured.
    Raises: FileNotFoundError if it was thrown away meanwhile.
    """
    of = published.description
    result = CheckedIndex(of.name, of.kind, of.version, table.version)
    if not is_stored(of.kind):
        return replace(result, unused=f"is of the kind {of.kind}, which is no longer supported")
    if of.fingerprint != table.card.fingerprint:
        return replace(result, unused="has the vectors of another encoder")
    try:
        return _compared(result, published, table, num_questions=num_questions, seed=seed)
    except IndexDamagedError as error:
        return replace(result, faults=[f"is damaged: {error}"])


def _compared(
    result: CheckedIndex, published: Published, table: Table, *, num_questions: int, seed: int
) -> CheckedIndex:
    """The same result with what reading the index shows. Raises: IndexDamagedError."""
    of, index = published.description, opened(published)
    if len(np.unique(index.row_ids)) < len(index.row_ids):
        return replace(result, faults=["has a row twice"])
    changes = difference(table, of.fragments, index.row_ids)
    if changes.share(of.num_rows) > DRIFT_TO_REFUSE:
        return replace(result, unused=f"is of version {of.version}, from which too much has changed")
    index.verify_records()
    row_ids = table.row_ids(table.dataset.get_fragments())
    faults = _wrong_rows(index, changes, row_ids, version=table.version)
    num_drawn = min(num_questions, len(row_ids))
    if faults or not num_drawn:
        return replace(result, faults=faults)
    drawn = row_ids[np.random.default_rng(seed).choice(len(row_ids), num_drawn, replace=False)]
    return replace(result, recall=_measured(index, changes, table, drawn))


def _wrong_rows(index: StoredIndex, changes: Difference, row_ids: npt.NDArray[np.int64], *, version: int) -> list[str]:
    """What is wrong with the ids of an index's rows. row_ids: (N,) of the table."""
    kept = np.setdiff1d(index.row_ids, changes.removed)
    num_lacking = len(np.setdiff1d(row_ids, np.union1d(kept, changes.added)))
    num_strange = len(np.setdiff1d(kept, row_ids))
    faults = []
    if num_lacking:
        faults.append(f"lacks {num_lacking} passages of version {version}")
    if num_strange:
        faults.append(f"holds {num_strange} passages that version {version} has not")
    return faults


def _measured(index: StoredIndex, changes: Difference, table: Table, drawn: npt.NDArray[np.int64]) -> list[Recall]:
    """Recall for the vectors of these rows of the table. Raises: IndexDamagedError if they differ in the index."""
    common = np.sort(drawn[index.places.known(drawn) & ~np.isin(drawn, changes.removed)])
    require_same_rows(table, index.rows(common), index.passages(common), file=index.vectors.path)
    q = rows_with(table, np.sort(drawn)).vectors.astype(np.float32)
    whole = serving(index, changes, table)
    needed = {min(k, len(whole)): share for k, share in sorted(ACCEPTED.items(), reverse=True)}  # the stricter of few
    best_scores = exact_best(stream(table), q, max(needed))
    return [
        Recall(
            k=k,
            share=float(shares.mean()),
            standard_error=float(shares.std() / np.sqrt(len(shares))),
            num_questions=len(shares),
            needed=needed[k],
        )
        for k, shares in recalls(whole, best_scores, q, sorted(needed)).items()
    ]
