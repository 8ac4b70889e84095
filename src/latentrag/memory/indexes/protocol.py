"""What every index is, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from latentrag.types import IndexKind, Passage

if TYPE_CHECKING:
    import numpy.typing as npt


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

    What a query finds, and the scores it finds it with, do not depend on the queries searched with it. Rows are known
    by their row ids, which are never used twice. Mostly they rise in the order of the table; a compaction that leaves
    some files alone puts those that it rewrites behind them.
    """

    @property
    def kind(self) -> IndexKind: ...

    @property
    def num_bytes(self) -> int:
        """What it holds in RAM."""
        ...

    def __len__(self) -> int: ...

    def search(self, q: npt.NDArray[np.float32], k: int) -> Hits:
        """The K rows of largest d·q, or nearly so. q: (B, D) float32, B ≥ 1; 1 ≤ k ≤ len(self)."""
        ...

    def passages(self, row_ids: npt.NDArray[np.int64]) -> dict[int, Passage]:
        """Those of these rows (n,) that it has at hand, by row id; the table has all."""
        ...


class BaseIndex(Index, Protocol):
    """An index as it was built, which can leave out rows that were deleted since."""

    @property
    def row_ids(self) -> npt.NDArray[np.int64]:
        """(N,) int64, of every row that was indexed, by its position; also of those left out."""
        ...

    def without(self, row_ids: npt.NDArray[np.int64]) -> Index:
        """The same index, shared, which never returns these rows. row_ids: some of its own, from a full index."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where rows are, by their ids.

    Attributes:
        row_ids: (N,) int64, all different.
        order: (N,) the positions in the order of the ids; None: as they are.
    """

    row_ids: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, row_ids: npt.NDArray[np.int64]) -> Places:
        """Of the row ids of positions 0 … N−1."""
        return cls(row_ids, None if (row_ids[1:] > row_ids[:-1]).all() else np.argsort(row_ids))

    def known(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """(n,) which of these rows are there."""
        if not len(self.row_ids):
            return np.zeros(len(row_ids), np.bool_)
        places = np.searchsorted(self.row_ids, row_ids, sorter=self.order).clip(max=len(self.row_ids) - 1)
        found: npt.NDArray[np.bool_] = self.row_ids[places if self.order is None else self.order[places]] == row_ids
        return found

    def of_rows(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(n,) the positions of these rows, which must be there."""
        if self.order is None:
            return np.searchsorted(self.row_ids, row_ids)
        places: npt.NDArray[np.int64] = self.order[np.searchsorted(self.row_ids, row_ids, sorter=self.order)]
        return places


@dataclass(frozen=True, slots=True, eq=False)
class LiveRows:
    """Which positions of a faiss index may be returned.

    Attributes:
        mask: (N,) bool.
        count: how many.
        selector: the same as a faiss ``IDSelector``.
    """

    mask: npt.NDArray[np.bool_]
    count: int
    selector: Any

    @classmethod
    def of(cls, num_rows: int, removed: npt.NDArray[np.int64]) -> LiveRows:
        """All positions but these."""
        import faiss

        mask = np.ones(num_rows, np.bool_)
        mask[removed] = False
        bits = np.packbits(mask, bitorder="little")
        return cls(mask, int(np.count_nonzero(mask)), faiss.IDSelectorBitmap(bits))
