"""What an index is, what a kind of index has to bring, and the scores and recall by which all kinds are judged.

A kind only proposes rows. The scores that count are float64 sums over the stored fp16 vectors, rounded once to float32,
so a passage has the same score whichever index found it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import numpy as np

from latentrag.types import Passage

if TYPE_CHECKING:
    import numpy.typing as npt

    from latentrag.memory.indexes.stored import VectorFile

TOLERANCE = 1e-5
"""Possible error of a float32 matrix product, relative to the largest score."""

ROWS_SCORED = 4_096
"""Where no more rows than this satisfy a condition, all are scored."""

Progress = Callable[[str, int, int], None]
"""Gets the name of the step, how much of it is done and how much there is. May raise to stop the build."""


class Hits(NamedTuple):
    """The K best rows for B queries, best first; equal scores in the order of the row ids.

    Attributes:
        row_ids: (B, K) int64.
        vectors: (B, K, D) float32.
        scores: (B, K) float32, d·q summed in float64 and rounded once.
    """

    row_ids: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]


class Rows(NamedTuple):
    """Rows of the table. row_ids: (n,) int64; vectors: (n, D) float16."""

    row_ids: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float16]


class Index(Protocol):
    """Maximum inner product search over the rows of one version. It never changes; safe for concurrent searches.

    What a query finds, and with which scores, does not depend on the other queries of its batch. Rows are named by
    their row ids, which are never used twice. They mostly rise in the order of the table; a compaction that rewrites
    only some files puts the rewritten rows last.
    """

    @property
    def kind(self) -> str:
        """Its name in the table of kinds."""
        ...

    def __len__(self) -> int: ...

    def search(self, q: npt.NDArray[np.float32], k: int) -> Hits:
        """The K rows of largest d·q, or nearly so. q: (B, D) float32, B ≥ 1; 1 ≤ k ≤ len(self)."""
        ...

    def passages(self, row_ids: npt.NDArray[np.int64]) -> dict[int, Passage]:
        """The passages of these rows (n,) that are stored with the index, by row id; the table has all."""
        ...

    def vectors_of(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(n, D) of these rows (n,), all of which it has, as ``search`` returns them."""
        ...

    def only(self, row_ids: npt.NDArray[np.int64]) -> Index:
        """The same index, sharing its data, that returns these rows of it alone, one or more, ascending; others are
        passed over."""
        ...


class BaseIndex(Index, Protocol):
    """An index as it was built, which can leave out rows that were deleted since."""

    @property
    def row_ids(self) -> npt.NDArray[np.int64]:
        """(N,) int64 of every indexed row by position, including rows left out."""
        ...

    def without(self, row_ids: npt.NDArray[np.int64]) -> Index:
        """The same index, sharing its data, that never returns these rows of it."""
        ...


# Kinds


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build will do, and the most it needs while it runs.

    Attributes:
        ram_bytes, disk_bytes: upper bounds.
        parameters: of the kind; stored with the index and part of its name.
        num_sampled: rows that training holds in RAM.
    """

    ram_bytes: int
    disk_bytes: int = 0
    parameters: Mapping[str, int] = field(default_factory=dict)
    num_sampled: int = 0


class Proposer(Protocol):
    """The part of a stored index that lies in RAM. It proposes positions 0 … N−1; their vectors are read from disk.

    Attributes:
        effort: how thoroughly it searches, as a multiple of what is usual; a build sets the least that finds enough.
    """

    effort: float

    @classmethod
    def build(cls, vectors: VectorFile, plan: Plan, folder: Path, progress: Progress) -> None:
        """Index all vectors, position by position, and write the files of the index into the folder."""
        ...

    @classmethod
    def read(cls, folder: Path, *, num_rows: int, dimension: int, parameters: Mapping[str, int]) -> Self:
        """The index in a folder whose checksums were verified. Raises: IndexDamagedError."""
        ...

    def num_rescored(self, k: int) -> int:
        """How many candidates the K best are chosen from."""
        ...

    def propose(self, q: npt.NDArray[np.float32], num: int, live: LiveRows | None) -> npt.NDArray[np.int64]:
        """Positions of ``num`` live rows with a large d·q; q: (D,). Fewer if it does not find so many."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table of kinds: one of ``proposer`` and ``in_ram`` is given.

    Attributes:
        plan: from the number of rows, the dimension and the RAM available, in bytes.
        proposer: of indexes that are built once and stored.
        in_ram: makes an index from all rows, their dimension and their number whenever a memory is searched; nothing is
            stored.
    """

    plan: Callable[[int, int, int], Plan]
    proposer: type[Proposer] | None = None
    in_ram: Callable[[Iterable[Rows], int, int], BaseIndex] | None = None


# Rows by id and by position


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Positions of rows by their ids.

    Attributes:
        row_ids: (N,) int64, all different.
        order: (N,) the positions in ascending order of the ids; None: the ids ascend already.
    """

    row_ids: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, row_ids: npt.NDArray[np.int64]) -> Places:
        """For the row ids of positions 0 … N−1."""
        return cls(row_ids, None if (row_ids[1:] > row_ids[:-1]).all() else np.argsort(row_ids))

    def known(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """(n,) True for each of these rows that has a position."""
        if not len(self.row_ids):
            return np.zeros(len(row_ids), np.bool_)
        ranks = np.searchsorted(self.row_ids, row_ids, sorter=self.order).clip(max=len(self.row_ids) - 1)
        same: npt.NDArray[np.bool_] = self.row_ids[ranks if self.order is None else self.order[ranks]] == row_ids
        return same

    def of_rows(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(n,) the positions of these rows, each of which must have one."""
        ranks = np.searchsorted(self.row_ids, row_ids, sorter=self.order)
        return ranks if self.order is None else self.order[ranks]


@dataclass(frozen=True, slots=True, eq=False)
class LiveRows:
    """Positions of a faiss index that may be returned.

    Attributes:
        mask: (N,) bool.
        count: the number of True in ``mask``.
        selector: the mask as a faiss ``IDSelector``.
        scatter: how many rows of the index there are for each that satisfies a condition: as much further the best of
            these lie apart. 1 where there is none.
    """

    mask: npt.NDArray[np.bool_]
    count: int
    selector: object
    scatter: float = 1.0

    @classmethod
    def of(cls, num_rows: int, removed: npt.NDArray[np.int64]) -> LiveRows:
        """All positions but those removed."""
        mask = np.ones(num_rows, np.bool_)
        mask[removed] = False
        return cls._of_mask(mask, 1.0)

    @classmethod
    def alone(cls, num_rows: int, kept: npt.NDArray[np.int64]) -> LiveRows:
        """These positions, which satisfy a condition."""
        mask = np.zeros(num_rows, np.bool_)
        mask[kept] = True
        return cls._of_mask(mask, num_rows / max(1, len(kept)))

    @property
    def are_few(self) -> bool:
        """Whether scoring all of them is faster than a search that passes the others over."""
        return self.scatter > 1 and self.count <= ROWS_SCORED

    @classmethod
    def _of_mask(cls, mask: npt.NDArray[np.bool_], scatter: float) -> LiveRows:
        import faiss

        bits = np.packbits(mask, bitorder="little")
        return cls(mask, int(np.count_nonzero(mask)), faiss.IDSelectorBitmap(bits), scatter)


# Scores


def exact_scores(vectors: npt.NDArray[np.float32], q: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """d·q of (n, D) vectors, in C order, with q (D,): (n,) float32.

    Each row is summed by itself in one fixed order. A matrix product would be faster, but its last bits depend on
    the number of rows and on a row's place among them.
    """
    sums: npt.NDArray[np.float64] = (vectors.astype(np.float64) * q).sum(axis=1)
    return sums.astype(np.float32)


def best(
    row_ids: npt.NDArray[np.int64], vectors: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], k: int
) -> Hits:
    """The K best of one query's candidates (n,), (n, D), (n,): hits without the dimension B."""
    order = np.lexsort((row_ids, -scores))[:k]
    return Hits(row_ids[order], vectors[order], scores[order])


def stacked(hits: Sequence[Hits]) -> Hits:
    """Hits of B queries from the hits of each."""
    return Hits(*(np.stack(part) for part in zip(*hits, strict=True)))


def merged(parts: Sequence[Hits], k: int) -> Hits:
    """The K best of what several indexes found for the same B queries."""
    row_ids, vectors, scores = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return stacked([best(row_ids[b], vectors[b], scores[b], k) for b in range(len(row_ids))])


# Recall


def exact_best(rows: Iterable[Rows], q: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
    """(B, K) the scores of each query's K best rows, best first, from a stream of all rows."""
    top = np.full((len(q), k), -np.inf, np.float32)
    for block in rows:
        scores = q @ block.vectors.astype(np.float32).T  # (B, n)
        both = np.concatenate([top, scores], axis=1)
        top = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]
    ordered: npt.NDArray[np.float32] = -np.sort(-top, axis=1)
    return ordered


def recalls(
    index: Index, best_scores: npt.NDArray[np.float32], q: npt.NDArray[np.float32], ks: Iterable[int]
) -> dict[int, npt.NDArray[np.float64]]:
    """K → (B,) the share of the K best that the index finds for each query; a row that ties with the K-th best counts.

    Args:
        best_scores: (B, ≥ max(ks)) of ``exact_best``.
        ks: each at most the index's number of rows.
    """
    shares = {}
    for k in ks:
        scores = index.search(q, k).scores
        needed = best_scores[:, k - 1] - TOLERANCE * np.abs(scores).max(axis=1)
        shares[k] = (scores >= needed[:, None]).mean(axis=1)
    return shares
