"""How much of what exact search finds an index finds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from latentrag.memory.indexes.protocol import Index, Rows

if TYPE_CHECKING:
    import numpy.typing as npt

TOLERANCE = 1e-5
"""Relative to the largest score: what a float32 product may be wrong by."""


def exact_thresholds(rows: Iterable[Rows], q: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
    """(B,) the score of each query's K-th best row, from a stream of all rows."""
    top = np.full((len(q), k), -np.inf, np.float32)
    for block in rows:
        scores = q @ block.vectors.astype(np.float32).T  # (B, n)
        both = np.concatenate([top, scores], axis=1)
        top = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]
    thresholds: npt.NDArray[np.float32] = top.min(axis=1)
    return thresholds


def recall_at(index: Index, rows: Iterable[Rows], q: npt.NDArray[np.float32], k: int) -> float:
    """The share of the K best that ``index`` finds, over B queries; a row that ties with the K-th best counts.

    Args:
        rows: all rows of the version that the index serves.
    """
    needed = exact_thresholds(rows, q, k)
    found = index.search(q, k).scores
    slack = TOLERANCE * np.abs(found).max(axis=1)
    return float((found >= (needed - slack)[:, None]).mean())
