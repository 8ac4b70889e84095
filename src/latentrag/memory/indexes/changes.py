"""What an index needs of the table: streams of rows within a memory bound, and what changed between two versions.

A fragment is a data file of the table with the rows deleted from it. Fragments that two versions share hold the same
rows. In the others rows are compared by their ids: these survive compaction, and are never used twice, not even after
an older version was restored. (A test holds the table's library to this.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from latentrag.errors import IndexDamagedError
from latentrag.memory.indexes.index import Rows
from latentrag.memory.schema import to_passages, to_vectors
from latentrag.types import Passage

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa
    from lance.fragment import LanceFragment

    from latentrag.memory.table import Table

BATCH_BYTES = 4 << 20
"""Vectors read from the table at a time. The library reads a few batches ahead."""
SCANNED_SHARE = 0.05
"""Where more of a fragment is wanted than this, reading all of it is faster than looking rows up."""
COMPARED_ROWS = 64


class Fragment(NamedTuple):
    """files: of the columns, named at random, never written twice; for a part of a fragment also which rows it has.
    deletions: the file that lists deleted rows."""

    files: tuple[str, ...]
    deletions: str
    num_rows: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Rows to leave out of an index, and rows to add to it, so that it serves another version.

    Attributes:
        removed: row ids (n,), ascending.
        added: ascending.
        moved: rows of both, in files that only the other version has: rewritten by a compaction, or another memory's.
            ``require_same_rows`` can tell.
    """

    removed: npt.NDArray[np.int64]
    added: npt.NDArray[np.int64]
    moved: npt.NDArray[np.int64]

    def share(self, num_rows: int) -> float:
        """Share of an index of ``num_rows`` that has changed."""
        return (len(self.removed) + len(self.added)) / max(1, num_rows)


def fragments(table: Table) -> list[Fragment]:
    """Of this version, in the order of the rows."""
    return [_described(table, fragment) for fragment in table.lance_fragments()]


def _described(table: Table, fragment: LanceFragment) -> Fragment:
    deletions = fragment.metadata.deletion_file
    named = "" if deletions is None else f"{deletions.read_version}-{deletions.id}-{deletions.num_deleted_rows}"
    files = tuple(file.path for file in fragment.metadata.files)
    cuts = tuple(f"rows {first}-{stop}" for first, stop in table.cuts(fragment))
    return Fragment((*files, *cuts), named, table.num_rows_of(fragment))


def stream(table: Table) -> Iterator[Rows]:
    """Every row, in the order of the table."""
    for fragment in table.lance_fragments():
        yield from _rows_of(table, fragment)


def stream_with_passages(table: Table) -> Iterator[tuple[Rows, list[Passage]]]:
    """The same, with the passages that have these vectors."""
    for fragment in table.lance_fragments():
        for rows, batch in _batches_of(table, fragment, [*table.passage_columns, "vector"]):
            yield rows, to_passages(batch)


def _rows_of(table: Table, fragment: LanceFragment) -> Iterator[Rows]:
    return (rows for rows, _ in _batches_of(table, fragment, ["vector"]))


def _batches_of(table: Table, fragment: LanceFragment, columns: list[str]) -> Iterator[tuple[Rows, pa.RecordBatch]]:
    for batch in table.scan(
        columns,
        fragments=[fragment],
        with_row_id=True,
        batch_size=max(256, BATCH_BYTES // (2 * table.card.dimension)),
        batch_readahead=2,
        io_buffer_size=8 * BATCH_BYTES,
    ):
        if len(batch):
            row_ids = batch["_rowid"].to_numpy().astype(np.int64)
            yield Rows(row_ids, to_vectors(batch, table.card.dimension)), batch


def difference(table: Table, before: Sequence[Fragment], row_ids: npt.NDArray[np.int64]) -> Difference:
    """How ``table`` differs from the version with the fragments ``before``, whose rows are ``row_ids``."""
    now = {_described(table, fragment): fragment for fragment in table.lance_fragments()}
    shared, known_files = now.keys() & set(before), {fragment.files for fragment in before}
    ends = np.cumsum([0, *(fragment.num_rows for fragment in before)])
    changed = [row_ids[ends[i] : ends[i + 1]] for i, fragment in enumerate(before) if fragment not in shared]
    old = np.concatenate([np.empty(0, np.int64), *changed])
    unshared = [described for described in now if described not in shared]
    rewritten = table.row_ids([now[described] for described in unshared if described.files not in known_files])
    thinned = table.row_ids([now[described] for described in unshared if described.files in known_files])
    new = np.concatenate([thinned, rewritten])
    return Difference(
        removed=np.sort(np.setdiff1d(old, new, assume_unique=True)),
        added=np.sort(np.setdiff1d(new, old, assume_unique=True)),
        moved=np.intersect1d(rewritten, old, assume_unique=True),
    )


def rows_with(table: Table, row_ids: npt.NDArray[np.int64]) -> Rows:
    """The rows with these ids, in ascending order; ids that are not there are left out."""
    parts = [Rows(np.empty(0, np.int64), np.empty((0, table.card.dimension), np.float16))]
    for fragment in table.lance_fragments() if len(row_ids) else ():
        wanted = np.intersect1d(table.row_ids([fragment]), row_ids, assume_unique=True)
        if len(wanted) > SCANNED_SHARE * table.num_rows_of(fragment):
            parts += [_chosen(rows, wanted) for rows in _rows_of(table, fragment)]
        else:
            parts.append(Rows(wanted, table.vectors_of(wanted)))
    gathered = Rows(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    order = np.argsort(gathered.row_ids)
    return Rows(gathered.row_ids[order], gathered.vectors[order])


def _chosen(rows: Rows, wanted: npt.NDArray[np.int64]) -> Rows:
    mask = np.isin(rows.row_ids, wanted, assume_unique=True)
    return Rows(rows.row_ids[mask], rows.vectors[mask])


def some_of(row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Row ids to compare, of one or more: evenly spread, and the last, which tell of a table that was renumbered."""
    spread = np.linspace(0, len(row_ids) - 1, COMPARED_ROWS).astype(np.int64)
    return np.union1d(row_ids[spread], row_ids[-COMPARED_ROWS // 2 :])


def require_same_rows(table: Table, rows: Rows, passages: dict[int, Passage], *, file: Path) -> None:
    """Compare rows of an index with the table's rows of the same ids.

    Args:
        passages: of these rows in the index, by row id.
        file: of the index.
    Raises: IndexDamagedError if they differ: it is another memory's index.
    """
    theirs = rows_with(table, rows.row_ids)
    same = np.array_equal(theirs.row_ids, rows.row_ids) and np.array_equal(theirs.vectors, rows.vectors)
    if not same or (passages and table.take(list(passages)) != passages):
        raise IndexDamagedError(file, "belongs to another memory")
