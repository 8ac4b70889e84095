"""Exact maximum inner product search in RAM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

SPARE_CANDIDATES = 8
"""How many candidates beyond K are rescored, so that near ties at place K rarely need a second search."""


class Hits(NamedTuple):
    """The K best rows for B queries, best first; equal scores in the order of the rows.

    Attributes:
        row_ids: (B, K) int64.
        vectors: (B, K, D) float32.
        scores: (B, K) float32.
    """

    row_ids: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FlatIndex:
    """Every vector as float32 in a faiss ``IndexFlatIP``; 4·N·D bytes. Safe for concurrent searches.

    faiss scores large searches by a matrix product, whose last bits depend on the number of queries and on a row's
    place. Its scores therefore only propose candidates; the scores and the order returned are float64 sums rounded
    to float32, so that a question finds the same passages with the same scores alone and in any batch.
    """

    flat: Any
    row_ids: npt.NDArray[np.int64]
    largest_norm: float

    @classmethod
    def build(
        cls, batches: Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]], dimension: int
    ) -> FlatIndex:
        """Index a stream of (row ids (n,), vectors (n, D)); rows keep the order of the stream."""
        import faiss

        flat = faiss.IndexFlatIP(dimension)
        row_ids = [np.empty(0, np.int64)]
        largest_norm = 0.0
        for ids, vectors in batches:
            block = np.ascontiguousarray(vectors, dtype=np.float32)
            flat.add(block)
            row_ids.append(ids)
            largest_norm = max(largest_norm, float(np.linalg.norm(block, axis=1).max(initial=0.0)))
        return cls(flat, np.concatenate(row_ids), largest_norm)

    def search(self, q: npt.NDArray[np.float32], k: int) -> Hits:
        """The K rows of largest d·q. q: (B, D) float32, B ≥ 1; 1 ≤ k ≤ N."""
        q = np.ascontiguousarray(q, dtype=np.float32)
        rough, rows = self.flat.search(q, min(k + SPARE_CANDIDATES, self.flat.ntotal))
        found = [self._settle(q[b], k, rough[b], rows[b]) for b in range(len(q))]
        return Hits(*(np.stack(part) for part in zip(*found, strict=True)))

    def _settle(
        self, q: npt.NDArray[np.float32], k: int, rough: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]
    ) -> Hits:
        """Of one query's candidates, best first with faiss's scores: the K that are truly best."""
        # A float32 sum of D products errs by at most D·ε/2·|d|·|q|. A row that faiss puts further than twice
        # that below place K cannot belong above it; the rest of the margin is for rounding the exact scores.
        margin = 2 * (self.flat.d + 1) * np.finfo(np.float32).eps * float(np.linalg.norm(q)) * self.largest_norm
        while len(rows) < self.flat.ntotal and rough[-1] >= rough[k - 1] - margin:
            wider = self.flat.search(q[None], min(4 * len(rows), self.flat.ntotal))
            rough, rows = wider[0][0], wider[1][0]
        vectors = self.flat.reconstruct_batch(rows)  # (candidates, D)
        scores = (vectors.astype(np.float64) * q).sum(axis=1).astype(np.float32)
        best = np.lexsort((rows, -scores))[:k]
        return Hits(self.row_ids[rows[best]], vectors[best], scores[best])
