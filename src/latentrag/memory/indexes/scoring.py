"""The scores that count, whichever index proposed the rows: float64 sums of the stored numbers, rounded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from latentrag.memory.indexes.protocol import Hits

if TYPE_CHECKING:
    import numpy.typing as npt


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
    """Of one query's candidates (n,), (n, D), (n,) the K best: hits without the dimension B."""
    order = np.lexsort((row_ids, -scores))[:k]
    return Hits(row_ids[order], vectors[order], scores[order])


def stacked(found: Sequence[Hits]) -> Hits:
    """Hits of B queries from those of each."""
    return Hits(*(np.stack(part) for part in zip(*found, strict=True)))


def merged(parts: Sequence[Hits], k: int) -> Hits:
    """The K best of what several indexes found for the same B queries."""
    row_ids, vectors, scores = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return stacked([best(row_ids[b], vectors[b], scores[b], k) for b in range(len(row_ids))])
