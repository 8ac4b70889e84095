"""How much of what exact search finds an index finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from latentrag.memory.indexes.protocol import Index, Rows

if TYPE_CHECKING:
    import numpy.typing as npt

TOLERANCE = 1e-5
"""Relative to the largest score: what a float32 product may be wrong by."""


def exact_best(rows: Iterable[Rows], q: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
    """(B, K) the scores of each query's K best rows, best first, from a stream of all rows."""
    top = np.full((len(q), k), -np.inf, np.float32)
    for block in rows:
        scores = q @ block.vectors.astype(np.float32).T  # (B, n)
        both = np.concatenate([top, scores], axis=1)
        top = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]
    ordered: npt.NDArray[np.float32] = -np.sort(-top, axis=1)
    return ordered


def recalls_at(
    index: Index, rows: Iterable[Rows], q: npt.NDArray[np.float32], ks: Sequence[int]
) -> dict[int, npt.NDArray[np.float64]]:
    """K → (B,) the share of the K best that ``index`` finds for each query; a row that ties with the K-th best counts.

    Args:
        rows: all rows of the version that the index serves; read once.
        ks: at most the index's number of rows.
    """
    return shares_found(index, exact_best(rows, q, max(ks)), q, ks)


def shares_found(
    index: Index, best: npt.NDArray[np.float32], q: npt.NDArray[np.float32], ks: Sequence[int]
) -> dict[int, npt.NDArray[np.float64]]:
    """The same. best: (B, K ≥ max(ks)) the scores of each query's best rows, best first."""
    shares = {}
    for k in ks:
        found = index.search(q, k).scores
        needed = best[:, k - 1] - TOLERANCE * np.abs(found).max(axis=1)
        shares[k] = (found >= needed[:, None]).mean(axis=1)
    return shares


def recall_at(index: Index, rows: Iterable[Rows], q: npt.NDArray[np.float32], k: int) -> float:
    """As ``recalls_at``, at one K, over all queries."""
    return float(recalls_at(index, rows, q, [k])[k].mean())
