"""Exact maximum inner product search in RAM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from latentrag.memory.indexes.protocol import Hits, LiveRows, Places
from latentrag.memory.indexes.scoring import best, exact_scores, stacked
from latentrag.types import IndexKind, Passage

if TYPE_CHECKING:
    import numpy.typing as npt

SPARE_CANDIDATES = 8
"""How many candidates beyond K are rescored, so that near ties at place K rarely need a second search."""


@dataclass(frozen=True, slots=True)
class FlatIndex:
    """Every vector as float32 in a faiss ``IndexFlatIP``; 4·N·D bytes.

    faiss scores large searches by a matrix product, whose last bits depend on the number of queries and on a row's
    place. Its scores therefore only propose candidates; the scores and the order returned are float64 sums rounded
    to float32, so that a question finds the same passages with the same scores alone and in any batch.
    """

    kind: ClassVar[IndexKind] = "flat"

    flat: Any
    row_ids: npt.NDArray[np.int64]
    largest_norm: float
    live: LiveRows | None = None

    @classmethod
    def build(
        cls, batches: Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]], dimension: int
    ) -> FlatIndex:
        """Index a stream of (row ids (n,), vectors (n, D)); no row id comes twice."""
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

    @property
    def num_bytes(self) -> int:
        return int(4 * self.flat.ntotal * self.flat.d + self.row_ids.nbytes)

    def __len__(self) -> int:
        return int(self.flat.ntotal) if self.live is None else self.live.count

    def without(self, row_ids: npt.NDArray[np.int64]) -> FlatIndex:
        return replace(self, live=LiveRows.of(len(self.row_ids), Places.of(self.row_ids).of_rows(row_ids)))

    def search(self, q: npt.NDArray[np.float32], k: int) -> Hits:
        """The K rows of largest d·q, exactly. q: (B, D) float32, B ≥ 1; 1 ≤ k ≤ len(self)."""
        q = np.ascontiguousarray(q, dtype=np.float32)
        rough, rows = self._propose(q, k + SPARE_CANDIDATES)
        return stacked([self._settle(q[b], k, rough[b], rows[b]) for b in range(len(q))])

    def passages(self, row_ids: npt.NDArray[np.int64]) -> dict[int, Passage]:  # noqa: ARG002
        """None: it holds vectors alone."""
        return {}

    def _propose(self, q: npt.NDArray[np.float32], num: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """faiss's scores and positions of the best ``num``, or of all."""
        import faiss

        wanted = None if self.live is None else faiss.SearchParameters(sel=self.live.selector)
        rough, rows = self.flat.search(q, min(num, len(self)), params=wanted)
        return rough, rows

    def _settle(
        self, q: npt.NDArray[np.float32], k: int, rough: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]
    ) -> Hits:
        """Of one query's candidates, best first with faiss's scores: the K that are truly best."""
        # A float32 sum of D products errs by at most D·ε/2·|d|·|q|. A row that faiss puts further than twice
        # that below place K cannot belong above it; the rest of the margin is for rounding the exact scores.
        largest = float(np.linalg.norm(q.astype(np.float64))) * self.largest_norm
        margin = 2 * (self.flat.d + 1) * np.finfo(np.float32).eps * largest
        while len(rows) < len(self) and rough[-1] >= rough[k - 1] - margin:
            wider = self._propose(q[None], 4 * len(rows))
            rough, rows = wider[0][0], wider[1][0]
        vectors = self.flat.reconstruct_batch(rows)  # (candidates, D)
        return best(self.row_ids[rows], vectors, exact_scores(vectors, q), k)
