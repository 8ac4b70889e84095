"""What an index needs of the table: streams of vectors within a memory bound, and what changed between two versions.

A fragment is a data file of the table with the rows deleted from it. Fragments that two versions share hold the same
rows. In the others rows are compared by their ids: these survive compaction, and are never
used twice, not even after an older version was restored. (A test holds the table's library to this.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from latentrag.errors import IndexDamagedError
from latentrag.memory.files import reading
from latentrag.memory.indexes.protocol import Rows
from latentrag.memory.rows import to_passages
from latentrag.types import Passage

if TYPE_CHECKING:
    import numpy.typing as npt

    from latentrag.memory.table import Table

BATCH_BYTES = 4 << 20
"""Vectors read from the table at a time. The library reads a few batches ahead."""
ROWS_PER_LOOKUP = 1_024
SCANNED_SHARE = 0.05
"""Where more of a fragment is wanted than this, reading all of it is faster than looking rows up."""
COMPARED_ROWS = 64


class Fragment(NamedTuple):
    """files: of the columns, named at random, never written twice. deletions: the file that lists deleted rows."""

    files: tuple[str, ...]
    deletions: str
    num_rows: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Rows to leave out of an index, and rows to add to it, so that it serves another version.

    Attributes:
        removed: row ids (n,), rising.
        added: rising.
        moved: those that both have, in files that only the other version has: rewritten by a compaction, or another
            memory's. ``require_same_rows`` can tell.
    """

    removed: npt.NDArray[np.int64]
    added: npt.NDArray[np.int64]
    moved: npt.NDArray[np.int64]

    def share(self, num_rows: int) -> float:
        """How much has changed, of an index of ``num_rows``."""
        return (len(self.removed) + len(self.added)) / max(1, num_rows)


def fragments(table: Table) -> list[Fragment]:
    """Of this version, in the order of the rows."""
    return [_described(found) for found in table.dataset.get_fragments()]


def _described(found: Any) -> Fragment:
    deletions = found.metadata.deletion_file
    named = "" if deletions is None else f"{deletions.read_version}-{deletions.id}-{deletions.num_deleted_rows}"
    files = tuple(file.path for file in found.metadata.files)
    return Fragment(files, named, int(found.metadata.num_rows))


def stream(table: Table) -> Iterator[Rows]:
    """Every row, in the order of the table."""
    for found in table.dataset.get_fragments():
        yield from _rows_of(table, found)


def stream_with_passages(table: Table) -> Iterator[tuple[Rows, list[Passage]]]:
    """The same, and what it is that has these vectors."""
    for found in table.dataset.get_fragments():
        for batch in _batches_of(table, found, [*table.passage_columns, "vector"]):
            yield _to_rows(batch, table.manifest.dimension), to_passages(batch)


def _rows_of(table: Table, found: Any) -> Iterator[Rows]:
    for batch in _batches_of(table, found, ["vector"]):
        yield _to_rows(batch, table.manifest.dimension)


def _batches_of(table: Table, found: Any, columns: list[str]) -> Iterator[Any]:
    dimension = table.manifest.dimension
    with reading(table.path):
        scanner = table.dataset.scanner(
            columns=columns,
            fragments=[found],
            with_row_id=True,
            batch_size=max(256, BATCH_BYTES // (2 * dimension)),
            batch_readahead=2,
            io_buffer_size=8 * BATCH_BYTES,
            scan_in_order=True,
        )
        for batch in scanner.to_batches():
            if len(batch):
                yield batch


def _to_rows(batch: Any, dimension: int) -> Rows:
    flat = batch["vector"].flatten().to_numpy(zero_copy_only=False)
    return Rows(batch["_rowid"].to_numpy().astype(np.int64), flat.reshape(-1, dimension))


def row_ids_of(table: Table, chosen: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Row ids of these fragments."""
    if not chosen:
        return np.empty(0, np.int64)
    with reading(table.path):
        scanner = table.dataset.scanner(columns=[], fragments=list(chosen), with_row_id=True, scan_in_order=True)
        found: npt.NDArray[np.uint64] = scanner.to_table()["_rowid"].to_numpy()
    return found.astype(np.int64)


def difference(table: Table, before: Sequence[Fragment], row_ids: npt.NDArray[np.int64]) -> Difference:
    """What ``table`` has otherwise than the version with the fragments ``before``, whose rows are ``row_ids``."""
    found = list(table.dataset.get_fragments())
    now = [_described(each) for each in found]
    shared, known = set(now) & set(before), {fragment.files for fragment in before}
    ends = np.cumsum([0, *(fragment.num_rows for fragment in before)])
    changed = [row_ids[ends[i] : ends[i + 1]] for i, fragment in enumerate(before) if fragment not in shared]
    old = np.concatenate([np.empty(0, np.int64), *changed])
    each = list(zip(found, now, strict=True))
    rewritten = row_ids_of(table, [place for place, fragment in each if fragment.files not in known])
    thinned = [place for place, fragment in each if fragment.files in known and fragment not in shared]
    new = np.concatenate([row_ids_of(table, thinned), rewritten])
    return Difference(
        removed=np.sort(np.setdiff1d(old, new, assume_unique=True)),
        added=np.sort(np.setdiff1d(new, old, assume_unique=True)),
        moved=np.intersect1d(rewritten, old, assume_unique=True),
    )


def rows_with(table: Table, row_ids: npt.NDArray[np.int64]) -> Rows:
    """The rows with these ids, which must be there, in rising order."""
    parts = [Rows(np.empty(0, np.int64), np.empty((0, table.manifest.dimension), np.float16))]
    for found in table.dataset.get_fragments():
        wanted = np.intersect1d(row_ids_of(table, [found]), row_ids, assume_unique=True) if len(row_ids) else row_ids
        if len(wanted) > SCANNED_SHARE * found.metadata.num_rows:
            parts += [_chosen(rows, wanted) for rows in _rows_of(table, found)]
        else:
            starts = range(0, len(wanted), ROWS_PER_LOOKUP)
            parts += [_looked_up(table, wanted[start : start + ROWS_PER_LOOKUP]) for start in starts]
    gathered = Rows(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    order = np.argsort(gathered.row_ids)
    return Rows(gathered.row_ids[order], gathered.vectors[order])


def _chosen(rows: Rows, wanted: npt.NDArray[np.int64]) -> Rows:
    mask = np.isin(rows.row_ids, wanted, assume_unique=True)
    return Rows(rows.row_ids[mask], rows.vectors[mask])


def _looked_up(table: Table, row_ids: npt.NDArray[np.int64]) -> Rows:
    chosen = f"_rowid IN ({', '.join(map(str, row_ids.tolist()))})"
    with reading(table.path):
        found = table.dataset.scanner(columns=["vector"], filter=chosen, with_row_id=True).to_table()
    return _to_rows(found.combine_chunks().to_batches()[0], table.manifest.dimension)


def some_of(row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Row ids to compare, of one or more: evenly spread, and the last, which tell of a table that was renumbered."""
    spread = np.linspace(0, len(row_ids) - 1, COMPARED_ROWS).astype(np.int64)
    return np.union1d(row_ids[spread], row_ids[-COMPARED_ROWS // 2 :])


def require_same_rows(table: Table, rows: Rows, passages: dict[int, Passage], *, file: Path) -> None:
    """Compare rows of an index with those that the table has under the same ids.

    Args:
        passages: by row id, those that the index has.
        file: of the index.
    Raises: IndexDamagedError if they differ: it is another memory's index.
    """
    theirs = rows_with(table, rows.row_ids)
    if not np.array_equal(theirs.row_ids, rows.row_ids) or not np.array_equal(theirs.vectors, rows.vectors):
        raise IndexDamagedError(file, "belongs to another memory")
    if passages and table.take(list(passages)) != passages:
        raise IndexDamagedError(file, "belongs to another memory")
