"""A damaged memory made usable again: from its newest version that is whole, or from what is intact of a newer one."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from latentrag.errors import DamagedVersionError, MemoryStoreError
from latentrag.memory import history, version_files
from latentrag.memory.indexes.folder import IndexFolder, discard
from latentrag.memory.schema import with_all_columns
from latentrag.memory.storage import Place, Storage, storage_of
from latentrag.memory.table import Table
from latentrag.memory.version_files import changing, passages_of_file, recover, remove_orphans, unacknowledged
from latentrag.types import Passage

if TYPE_CHECKING:
    import numpy.typing as npt
    from lance.fragment import LanceFragment

    RowIds = npt.NDArray[np.int64]


# Damage


@dataclass(frozen=True, slots=True)
class Damage:
    """What of a memory cannot be trusted.

    Attributes:
        manifests: versions that cannot be read at all, and why.
        files: files with passages or deletions that are missing or not as they were written, and what is wrong.
        needed: the files with passages and deletions of every version that is not among ``manifests``.
    """

    manifests: dict[int, str]
    files: dict[str, str]
    needed: dict[int, set[str]]

    def of_version(self, version: int) -> str | None:
        """What is wrong with a version, in words; None: nothing."""
        if version in self.manifests:
            return self.manifests[version]
        return ", ".join(self.files[name] for name in sorted(self.needed[version] & self.files.keys())) or None


def find_damage(storage: Storage) -> Damage:
    """Open every version and read every file that one needs. Files without a recorded checksum: their length only."""
    manifests: dict[int, str] = {}
    needed: dict[int, set[str]] = {}
    lengths: dict[str, int | None] = {}
    for version in version_files.version_numbers(storage.folder):
        try:
            of_version = version_files.sizes(version_files.open_readable(storage, version))
        except DamagedVersionError as error:
            manifests[version] = error.what
            continue
        needed[version] = set(of_version)
        lengths |= of_version
    checksums = storage.checksums() or {}
    of_files = {
        name: version_files.damage_of_file(storage.folder, name, size_bytes=size, committed=checksums.get(name))
        for name, size in sorted(lengths.items())
    }
    return Damage(manifests, {name: what for name, what in of_files.items() if what is not None}, needed)


# What is intact


@dataclass(frozen=True, slots=True)
class Missing:
    """What a memory that goes on from ``Intact``, or from an older version, has no longer of the damaged version.

    Attributes:
        ids: as far as they can be read, in part from damaged files.
        num_unnamed: passages whose ids cannot be read.
        num_returned: passages that the damaged version had not, and that are back.
    """

    ids: set[str]
    num_unnamed: int
    num_returned: int


@dataclass(frozen=True, slots=True)
class Intact:
    """What can be taken over.

    Attributes:
        table: the damaged version.
        damaged: its fragments with a damaged file, by their files' names.
        unclear: the names of those of which the deletions are damaged: nobody knows which rows they have.
        row_ids: of its other fragments.
        elsewhere: intact fragments of other versions, and which of the damaged rows each has.
    """

    table: Table
    damaged: dict[tuple[str, ...], LanceFragment]
    unclear: set[tuple[str, ...]]
    row_ids: RowIds
    elsewhere: list[tuple[Table, LanceFragment, RowIds]]

    @classmethod
    def of_version(cls, storage: Storage, version: int, damage: Damage) -> Intact:
        """Raises: MemoryStoreError if its manifest is among the damage."""
        table = Table.open_readable(storage, version)
        parts = table.fragments()
        damaged = {names: parts[names] for names in parts if not damage.files.keys().isdisjoint(names)}
        unclear = {names for names in damaged if any(n in damage.files and not n.startswith("data/") for n in names)}
        wanted = table.row_ids([damaged[names] for names in damaged if names not in unclear])
        return cls(
            table=table,
            damaged=damaged,
            unclear=unclear,
            row_ids=table.row_ids([parts[names] for names in parts if names not in damaged]),
            elsewhere=list(_elsewhere(storage, wanted, damage)),
        )

    def __len__(self) -> int:
        return len(self.row_ids) + self.num_elsewhere

    @property
    def num_elsewhere(self) -> int:
        """How many rows come from files that the version does not need."""
        return sum(len(rows) for _, _, rows in self.elsewhere)

    def commit(self) -> Table:
        """A version of these rows; those from elsewhere come last, under row ids of their own.

        The damaged version has to be the newest. Raises: MemoryStoreError; what was written is removed then.
        """
        before = self.table.storage.files()
        change = f"repaired: kept {len(self.row_ids)}, took {self.num_elsewhere} from older versions"
        try:
            batches = chain.from_iterable(table.rows([fragment], ids) for table, fragment, ids in self.elsewhere)
            staged = self.table.stage(with_all_columns(rows, self.table.columns) for rows in batches if len(rows))
            return self.table.exchange(list(self.damaged.values()), staged, change=change)
        except BaseException:
            remove_orphans(self.table.storage, among=self.table.storage.written(before))
            raise

    def missing(self, back: Table | None) -> Missing:
        """What is missing if the memory goes on from the version ``back``, or, where that is None, from these rows."""
        if back is None:
            kept = np.concatenate([self.row_ids, *(rows for _, _, rows in self.elsewhere)])
            files_kept: dict[str, int] = {}
        else:
            kept = back.row_ids(list(back.fragments().values()))
            files_kept = {names[0]: fragment.count_rows() for names, fragment in back.fragments().items()}
        ids: set[str] = set()
        num_unnamed = num_returned = num_unclear = 0
        had = [np.empty(0, np.int64)]
        for names, fragment in self.table.fragments().items():
            if names in self.unclear:
                num_rows = fragment.metadata.num_rows
                num_unclear += files_kept.get(names[0], 0)
                num_returned += files_kept.get(names[0], num_rows) - num_rows
                num_unnamed += 0 if names[0] in files_kept else num_rows
                continue
            had.append(self.table.row_ids([fragment]))
            gone = np.setdiff1d(had[-1], kept)
            named = self._ids(fragment, gone)
            ids |= named
            num_unnamed += len(gone) - len(named)
        num_returned += len(np.setdiff1d(kept, np.concatenate(had))) - num_unclear
        return Missing(ids, num_unnamed, num_returned)

    def _ids(self, fragment: LanceFragment, row_ids: RowIds) -> set[str]:
        """Of these rows, which may be damaged; none if they cannot be read."""
        wanted, ids = set(row_ids.tolist()), set()
        try:
            for keys, of_keys in self.table.id_batches([fragment]) if wanted else ():
                ids |= {key for key, row_id in zip(keys, of_keys.tolist(), strict=True) if row_id in wanted}
        except MemoryStoreError:
            return set()
        return ids


def _elsewhere(storage: Storage, wanted: RowIds, damage: Damage) -> Iterator[tuple[Table, LanceFragment, RowIds]]:
    """Intact fragments that have some of these rows, the newest version's first; no row twice."""
    seen: set[tuple[str, ...]] = set()
    for version in sorted(damage.needed, reverse=True):
        if not len(wanted):
            return
        table = Table.open_readable(storage, version)
        for names, fragment in table.fragments().items():
            if names in seen or not damage.files.keys().isdisjoint(names):
                continue
            seen.add(names)
            rows = np.intersect1d(table.row_ids([fragment]), wanted)
            if len(rows):
                yield table, fragment, rows
                wanted = np.setdiff1d(wanted, rows)


# Repair


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was given up, what is left, and what is missing of what the newest version had.

    Attributes:
        set_aside: versions, oldest first.
        why: what was wrong with each.
        tags: names that they had.
        newest: the newest version since.
        num_passages: of that version.
        num_rescued: where ``newest`` was made of what is intact: how many of its passages come from files of older
            versions; None: nothing had to be made.
        older: missing ids, and the newest version that has another, older passage under that id.
        lost: missing ids that no version has.
        num_unnamed: missing passages whose ids cannot be read.
        num_returned: passages that the newest version had deleted or replaced, and that are back.
    """

    set_aside: list[int]
    why: dict[int, str]
    tags: list[str]
    newest: int
    num_passages: int
    num_rescued: int | None
    older: dict[str, int]
    lost: list[str]
    num_unnamed: int
    num_returned: int


def repair(place: Place) -> Repaired:
    """Give up the versions that are damaged: they move to ``_damaged`` with the files that no other needs.

    Every file is compared with its recorded checksum, as ``verify`` does. If the newest version is damaged, the memory
    goes on from the newest that is whole; or, if that holds more passages, from a new version of what is intact: the
    newest version's files that are as they were written and, of its other rows, those that an older version has in
    such a file. Nothing is deleted. Names of damaged versions are taken away.

    Killed at any moment, it can be repeated. Raises: MemoryStoreError if nothing that is left can be read.
    """
    storage = storage_of(place)
    folder = storage.folder
    version_files.require_table(folder)
    version_files.require_exclusive(storage, "repaired")
    with storage.lock() as lock:
        damage = find_damage(storage)
        why = {v: what for v in version_files.version_numbers(folder) if (what := damage.of_version(v))}
        unfinished = set(unacknowledged(storage)) & why.keys()
        intact, missing = _choose(storage, damage, damaged=why.keys(), unfinished=unfinished)
        named = [name for name, version in history.tags(folder).items() if version in why]
        # Lance commits on top of the newest version only, and reads all manifests to know what is needed.
        first = unfinished | damage.manifests.keys()
        unlisted = set(_in_no_other(storage, damage, among=damage.manifests.keys() - unfinished))
        with changing(folder):
            version_files.set_aside(storage, first)
            if intact is not None:
                intact.commit()
            version_files.set_aside(storage, why.keys() - first)
        history.remove_tags(storage, named)
        _discard_indexes(storage, why.keys())
        recover(storage, killed=True)
        lock.done()
    now = Table.open(storage)
    unlisted.difference_update(now.passages() if unlisted else ())
    older, lost = _still_somewhere(storage, missing.ids | {passage.id for passage in unlisted})
    return Repaired(
        set_aside=list(why),
        why=why,
        tags=named,
        newest=now.version,
        num_passages=len(now),
        num_rescued=None if intact is None else intact.num_elsewhere,
        older=older,
        lost=lost,
        num_unnamed=missing.num_unnamed,
        num_returned=missing.num_returned,
    )


def _discard_indexes(storage: Storage, versions: Collection[int]) -> None:
    """Those of versions that were set aside, whose numbers will be used again for other rows."""
    published, _ = IndexFolder.of(storage.local).indexes()
    for index in published:
        if index.description.version in versions:
            discard(index.folder)


def _choose(
    storage: Storage, damage: Damage, *, damaged: Collection[int], unfinished: Collection[int]
) -> tuple[Intact | None, Missing]:
    """What to make a version of, None if the newest that is whole will do; and what is missing then.

    Raises: MemoryStoreError if there is neither.
    """
    whole = max(damage.needed.keys() - damaged, default=None)
    newest = max(damage.needed.keys() - unfinished, default=None)
    if whole is not None and newest == whole:
        return None, Missing(set(), 0, 0)
    back = None if whole is None else Table.open(storage, whole)
    intact = None if newest is None else Intact.of_version(storage, newest, damage)
    if intact is not None and len(intact) > (0 if back is None else len(back)):
        return intact, intact.missing(None)
    if back is None or intact is None:
        raise MemoryStoreError(
            f"no version of the memory at {storage.folder} can be read; restore it from a copy or build it again"
        )
    return None, intact.missing(back)


def _in_no_other(storage: Storage, damage: Damage, *, among: Collection[int]) -> Iterator[Passage]:
    """Passages in data files that only these versions can have, whose manifests, which say so, cannot be read.

    Nothing if they are not the newest: such files hold what was deleted or replaced since, too.
    """
    if max(among, default=0) <= max(damage.needed, default=0):
        return
    known = set().union(*damage.needed.values())
    for name in sorted(storage.files() - known):
        if name.startswith("data/"):
            with contextlib.suppress(MemoryStoreError):  # a dead writer's, perhaps: half a file
                yield from passages_of_file(storage, name)


def _still_somewhere(storage: Storage, ids: set[str]) -> tuple[dict[str, int], list[str]]:
    """The newest version that has each of these ids, and the ids that none has."""
    versions: dict[str, int] = {}
    seen: set[tuple[str, ...]] = set()
    for version in reversed(version_files.version_numbers(storage.folder)):
        wanted = ids - versions.keys()
        if not wanted:
            break
        table = Table.open(storage, version)
        new = {names: fragment for names, fragment in table.fragments().items() if names not in seen}
        if new:
            for keys, _ in table.id_batches(list(new.values())):
                versions |= dict.fromkeys(wanted.intersection(keys), version)
        seen |= new.keys()
    return versions, sorted(ids - versions.keys())
