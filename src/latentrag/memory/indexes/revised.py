"""An index of one version that serves another: without the rows deleted since, with the rows added since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentrag.memory.indexes.flat import FlatIndex
from latentrag.memory.indexes.protocol import BaseIndex, Hits, Index, Rows
from latentrag.memory.indexes.scoring import merged
from latentrag.types import IndexKind, Passage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def revised(base: BaseIndex, removed: npt.NDArray[np.int64], added: Rows) -> Index:
    """``base`` without the rows ``removed`` (row ids) and with those ``added``, which are searched exactly in RAM.

    Args:
        added: of row ids that are not in ``base``, rising.
    """
    kept = base.without(removed) if len(removed) else base
    if not len(added.row_ids):
        return kept
    return RevisedIndex(kept, FlatIndex.build([added], added.vectors.shape[1]))


@dataclass(frozen=True, slots=True)
class RevisedIndex:
    """Two indexes as one. Scores of both are exact, so that their hits can be merged as they are."""

    kept: Index
    added: FlatIndex

    @property
    def kind(self) -> IndexKind:
        return self.kept.kind

    @property
    def num_bytes(self) -> int:
        return self.kept.num_bytes + self.added.num_bytes

    def __len__(self) -> int:
        return len(self.kept) + len(self.added)

    def search(self, q: npt.NDArray[np.float32], k: int) -> Hits:
        parts = [part.search(q, min(k, len(part))) for part in (self.kept, self.added) if len(part)]
        return merged(parts, k)

    def passages(self, row_ids: npt.NDArray[np.int64]) -> dict[int, Passage]:
        return self.kept.passages(row_ids)
