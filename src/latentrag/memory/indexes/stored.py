"""An index in three parts: a faiss index in RAM that proposes rows, and on disk their vectors, which decide, and the
passages that are handed out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from latentrag.memory.indexes.passage_file import PassageFile
from latentrag.memory.indexes.proposers import Proposer
from latentrag.memory.indexes.protocol import Hits, LiveRows, Rows
from latentrag.memory.indexes.scoring import best, exact_scores, stacked
from latentrag.memory.indexes.vector_file import VectorFile
from latentrag.types import IndexKind, Passage

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class StoredIndex:
    """Candidates from ``proposer``, rescored from ``vectors``.

    Queries are proposed for one by one: in a batch faiss may multiply matrices, whose last bits would let the
    neighbours in a batch decide between near ties.

    Attributes:
        faiss_bytes: what the proposer takes in RAM.
        texts: of the same rows; None: the table alone has them.
    """

    proposer: Proposer
    vectors: VectorFile
    faiss_bytes: int
    texts: PassageFile | None = None
    live: LiveRows | None = None

    @property
    def kind(self) -> IndexKind:
        return self.proposer.kind

    @property
    def num_bytes(self) -> int:
        return self.faiss_bytes

    @property
    def row_ids(self) -> npt.NDArray[np.int64]:
        return self.vectors.row_ids

    def __len__(self) -> int:
        return len(self.vectors) if self.live is None else self.live.count

    def without(self, row_ids: npt.NDArray[np.int64]) -> StoredIndex:
        return replace(self, live=LiveRows.of(len(self.row_ids), self.vectors.places.of_rows(row_ids)))

    def rows(self, row_ids: npt.NDArray[np.int64]) -> Rows:
        """Some of its rows, by their ids. Raises: IndexDamagedError."""
        vectors = self.vectors.read(self.vectors.places.of_rows(row_ids))
        return Rows(row_ids, vectors.astype(np.float16))

    def passages(self, row_ids: npt.NDArray[np.int64]) -> dict[int, Passage]:
        """Raises: IndexDamagedError if one is not what was written."""
        if self.texts is None:
            return {}
        held = row_ids[self.vectors.places.known(row_ids)]
        return self.texts.read(self.vectors.places.of_rows(held), held)

    def search(self, q: npt.NDArray[np.float32], k: int) -> Hits:
        """The K rows of largest d·q among those proposed. q: (B, D) float32, B ≥ 1; 1 ≤ k ≤ len(self).

        Raises: IndexDamagedError if a vector read is not what was written.
        """
        q = np.ascontiguousarray(q, dtype=np.float32)
        return stacked([self._search_one(each, k) for each in q])

    def _search_one(self, q: npt.NDArray[np.float32], k: int) -> Hits:
        num = min(self.proposer.num_rescored(k), len(self))
        scaled = q / (np.abs(q).max() or 1.0)  # which rows are best is the same, and squares stay finite
        positions = np.sort(self.proposer.propose(scaled, num, self.live))
        if len(positions) < k:  # a graph may hold rows that no way leads to
            positions = self._scan(q, k)
        vectors = self.vectors.read(positions)  # (candidates, D)
        return best(self.row_ids[positions], vectors, exact_scores(vectors, q), k)

    def _scan(self, q: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
        """Positions of the K best, from every vector on disk."""
        blocks = [exact_scores(block.vectors.astype(np.float32), q) for block in self.vectors.blocks()]
        scores = np.concatenate(blocks)  # (N,)
        if self.live is not None:
            scores[~self.live.mask] = -np.inf
        return np.lexsort((np.arange(len(scores)), -scores))[:k]
