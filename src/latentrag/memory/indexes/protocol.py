"""What every index is, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from latentrag.types import IndexKind

if TYPE_CHECKING:
    import numpy.typing as npt


class Hits(NamedTuple):
    """The K best rows for B queries, best first; equal scores in the order of the rows.

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
    by their row ids, which rise in the order of the table and are never used twice.
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


class BaseIndex(Index, Protocol):
    """An index as it was built, which can leave out rows that were deleted since."""

    @property
    def row_ids(self) -> npt.NDArray[np.int64]:
        """(N,) int64, of every row that was indexed, rising; also of those left out."""
        ...

    def without(self, row_ids: npt.NDArray[np.int64]) -> Index:
        """The same index, shared, which never returns these rows. row_ids: some of its own, from a full index."""
        ...


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
    def of(cls, all_row_ids: npt.NDArray[np.int64], removed: npt.NDArray[np.int64]) -> LiveRows:
        """All positions but those of the removed rows."""
        import faiss

        mask = np.ones(len(all_row_ids), np.bool_)
        mask[np.searchsorted(all_row_ids, removed)] = False
        bits = np.packbits(mask, bitorder="little")
        return cls(mask, int(np.count_nonzero(mask)), faiss.IDSelectorBitmap(bits))
