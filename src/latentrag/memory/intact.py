"""What is intact of a version with damaged files, and what is not. Row ids tell equal rows of different versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentrag.errors import MemoryStoreError
from latentrag.memory import files
from latentrag.memory.damage import Damage
from latentrag.memory.recovery import remove_orphans
from latentrag.memory.table import Table

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa
    from lance.fragment import LanceFragment

    RowIds = npt.NDArray[np.int64]


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
    def of_version(cls, folder: Path, version: int, damage: Damage) -> Intact:
        """Raises: MemoryStoreError if its manifest is among the damage."""
        table = Table.open_readable(folder, version)
        parts = table.fragments()
        damaged = {names: parts[names] for names in parts if not damage.files.keys().isdisjoint(names)}
        unclear = {names for names in damaged if any(n in damage.files and not n.startswith("data/") for n in names)}
        wanted = table.row_ids([damaged[names] for names in damaged if names not in unclear])
        return cls(
            table=table,
            damaged=damaged,
            unclear=unclear,
            row_ids=table.row_ids([parts[names] for names in parts if names not in damaged]),
            elsewhere=list(_elsewhere(folder, wanted, damage)),
        )

    def __len__(self) -> int:
        return len(self.row_ids) + self.num_elsewhere

    @property
    def num_elsewhere(self) -> int:
        """How many rows come from files that the version does not need."""
        return sum(len(found) for _, _, found in self.elsewhere)

    def commit(self) -> Table:
        """A version of these rows; those from elsewhere come last, under row ids of their own.

        The damaged version has to be the newest. Raises: MemoryStoreError; what was written is removed then.
        """
        before = files.present(self.table.path)
        change = f"repaired: kept {len(self.row_ids)}, took {self.num_elsewhere} from older versions"
        try:
            staged = self.table.stage(self._batches())
            return self.table.exchange(list(self.damaged.values()), staged, change=change)
        except BaseException:
            remove_orphans(self.table.path, among=files.present(self.table.path) - before)
            raise

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for table, fragment, found in self.elsewhere:
            for passages, vectors in table.rows([fragment], found):
                yield self.table.record_batch(passages, vectors)

    def missing(self, back: Table | None) -> Missing:
        """What is missing if the memory goes on from the version ``back``, or, where that is None, from these rows."""
        if back is None:
            kept = np.concatenate([self.row_ids, *(found for _, _, found in self.elsewhere)])
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
        wanted = set(row_ids.tolist())
        try:
            return (
                {key for key, row_id in self.table.ids_with_row_ids([fragment]) if row_id in wanted}
                if wanted
                else set()
            )
        except MemoryStoreError:
            return set()


def _elsewhere(folder: Path, wanted: RowIds, damage: Damage) -> Iterator[tuple[Table, LanceFragment, RowIds]]:
    """Intact fragments that have some of these rows, the newest version's first; no row twice."""
    seen: set[tuple[str, ...]] = set()
    for version in sorted(damage.needed, reverse=True):
        if not len(wanted):
            return
        table = Table.open_readable(folder, version)
        for names, fragment in table.fragments().items():
            if names in seen or not damage.files.keys().isdisjoint(names):
                continue
            seen.add(names)
            found = np.intersect1d(table.row_ids([fragment]), wanted)
            if len(found):
                yield table, fragment, found
                wanted = np.setdiff1d(wanted, found)
