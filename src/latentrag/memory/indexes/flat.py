"""Exact search over vectors in RAM, and with it an index of one version that serves another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import faiss
import numpy as np

from latentrag.memory.indexes.index import (
    BaseIndex,
    Hits,
    Index,
    Kind,
    LiveRows,
    Places,
    Plan,
    Rows,
    best,
    exact_scores,
    merged,
    stacked,
)
from latentrag.types import Passage

if TYPE_CHECKING:
    import numpy.typing as npt

WORK_BYTES = 16 << 20
"""A batch of vectors, in three forms at a time."""
SPARE_CANDIDATES = 8
"""How many candidates beyond K are rescored, so that near ties at place K rarely need a second search."""


@dataclass(frozen=True, slots=True)
class FlatIndex:
    """Every vector as float32 in a faiss ``IndexFlatIP``; 4·N·D bytes.

    faiss scores large searches by a matrix product, whose last bits depend on the number of queries and on a row's
    place. Its scores therefore only propose candidates; the scores and the order returned are float64 sums rounded
    to float32, so that a question finds the same passages with the same scores alone and in any batch.
    """

    kind: ClassVar[str] = "flat"

    flat: faiss.IndexFlatIP
    row_ids: npt.NDArray[np.int64]
    largest_norm: float
    live: LiveRows | None = None

    @classmethod
    def build(cls, batches: Iterable[Rows], dimension: int, num_rows: int = 0) -> FlatIndex:
        """Index a stream of rows; no row id comes twice.

        Args:
            num_rows: how many will come, for which room is made at once; growing would take up to twice as much.
        """
        flat = faiss.IndexFlatIP(dimension)
        flat.codes.resize(num_rows * flat.code_size)
        flat.codes.resize(0)
        row_ids = [np.empty(0, np.int64)]
        largest_norm = 0.0
        for rows in batches:
            block = np.ascontiguousarray(rows.vectors, dtype=np.float32)
            flat.add(block)
            row_ids.append(rows.row_ids)
            largest_norm = max(largest_norm, float(np.linalg.norm(block, axis=1).max(initial=0.0)))
        return cls(flat, np.concatenate(row_ids), largest_norm)

    def __len__(self) -> int:
        return int(self.flat.ntotal) if self.live is None else self.live.count

    def without(self, row_ids: npt.NDArray[np.int64]) -> FlatIndex:
        return replace(self, live=LiveRows.of(len(self.row_ids), Places.of(self.row_ids).of_rows(row_ids)))

    def only(self, row_ids: npt.NDArray[np.int64]) -> FlatIndex:
        places = Places.of(self.row_ids)
        kept = places.of_rows(row_ids[places.known(row_ids)])
        return replace(self, live=LiveRows.alone(len(self.row_ids), kept))

    def search(self, q: npt.NDArray[np.float32], k: int) -> Hits:
        """The K rows of largest d·q, exactly. q: (B, D) float32, B ≥ 1; 1 ≤ k ≤ len(self)."""
        q = np.ascontiguousarray(q, dtype=np.float32)
        if self.live is not None and self.live.are_few:
            few = np.flatnonzero(self.live.mask)
            vectors = self.flat.reconstruct_batch(few)
            return stacked([best(self.row_ids[few], vectors, exact_scores(vectors, one), k) for one in q])
        rough, positions = self._propose(q, k + SPARE_CANDIDATES)
        return stacked([self._rescored(q[b], k, rough[b], positions[b]) for b in range(len(q))])

    def passages(self, row_ids: npt.NDArray[np.int64]) -> dict[int, Passage]:  # noqa: ARG002
        """None: only vectors are in RAM."""
        return {}

    def vectors_of(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        vectors: npt.NDArray[np.float32] = self.flat.reconstruct_batch(Places.of(self.row_ids).of_rows(row_ids))
        return vectors

    def _propose(self, q: npt.NDArray[np.float32], num: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """faiss's scores and positions of the best ``num``, or of all."""
        live = None if self.live is None else faiss.SearchParameters(sel=self.live.selector)
        rough, positions = self.flat.search(q, min(num, len(self)), params=live)
        return rough, positions

    def _rescored(
        self, q: npt.NDArray[np.float32], k: int, rough: npt.NDArray[np.float32], positions: npt.NDArray[np.int64]
    ) -> Hits:
        """The K that are truly best, of one query's candidates, which come best first with faiss's scores."""
        # A float32 sum of D products errs by at most D·ε/2·|d|·|q|. A row that faiss puts further than twice
        # that below place K cannot belong above it; the rest of the margin is for rounding the exact scores.
        largest = float(np.linalg.norm(q.astype(np.float64))) * self.largest_norm
        margin = 2 * (self.flat.d + 1) * np.finfo(np.float32).eps * largest
        while len(positions) < len(self) and rough[-1] >= rough[k - 1] - margin:
            more_scores, more_positions = self._propose(q[None], 4 * len(positions))
            rough, positions = more_scores[0], more_positions[0]
        vectors = self.flat.reconstruct_batch(positions)  # (candidates, D)
        return best(self.row_ids[positions], vectors, exact_scores(vectors, q), k)


def plan(num_rows: int, dimension: int, room_bytes: int) -> Plan:  # noqa: ARG001
    """What it takes to hold all vectors and row ids, and a batch in float32."""
    return Plan(ram_bytes=num_rows * (4 * dimension + 16) + WORK_BYTES)


FLAT = Kind(plan, in_ram=FlatIndex.build)


@dataclass(frozen=True, slots=True)
class RevisedIndex:
    """An index of an earlier or later version with the rows it lacks. Scores of both are exact and can be merged."""

    kept: Index
    added: FlatIndex

    @property
    def kind(self) -> str:
        return self.kept.kind

    def __len__(self) -> int:
        return len(self.kept) + len(self.added)

    def search(self, q: npt.NDArray[np.float32], k: int) -> Hits:
        parts = [part.search(q, min(k, len(part))) for part in (self.kept, self.added) if len(part)]
        return merged(parts, k)

    def passages(self, row_ids: npt.NDArray[np.int64]) -> dict[int, Passage]:
        return self.kept.passages(row_ids)

    def vectors_of(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        is_added = np.isin(row_ids, self.added.row_ids)
        vectors = np.empty((len(row_ids), self.added.flat.d), np.float32)
        for index, chosen in ((self.kept, ~is_added), (self.added, is_added)):
            if chosen.any():
                vectors[chosen] = index.vectors_of(row_ids[chosen])
        return vectors

    def only(self, row_ids: npt.NDArray[np.int64]) -> RevisedIndex:
        return RevisedIndex(self.kept.only(row_ids), self.added.only(row_ids))


def revised(base: BaseIndex, removed: npt.NDArray[np.int64], added: Rows) -> Index:
    """``base`` without the rows ``removed`` (row ids) and with those ``added``, which are searched exactly in RAM.

    Args:
        added: ascending row ids, none of which is in ``base``.
    """
    kept = base.without(removed) if len(removed) else base
    if not len(added.row_ids):
        return kept
    return RevisedIndex(kept, FlatIndex.build([added], added.vectors.shape[1]))
