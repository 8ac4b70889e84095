"""What proposes candidates from RAM: eight bits a number (SQ8), or a graph (HNSW). One bit: see ivf_rabitq.py.

Their own scores are never shown to anybody; they only choose which rows are rescored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from latentrag.errors import IndexDamagedError
from latentrag.memory.indexes.protocol import LiveRows
from latentrag.types import IndexKind

if TYPE_CHECKING:
    import numpy.typing as npt

FAISS = "index.faiss"
LINKS = 32
"""M of HNSW: links of a node on every level above the lowest, which has twice as many."""
CONSTRUCTION_BREADTH = 200
SEARCH_BREADTH = 256
"""efConstruction and efSearch."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a first pass over the vectors learns.

    Attributes:
        num_rows, dimension: N, D.
        lowest, highest: (D,) float32, of each number.
        largest_norm: max |d|.
        sample: (n, D) float32 rows at random; none where an index learns nothing from them.
    """

    num_rows: int
    dimension: int
    lowest: npt.NDArray[np.float32]
    highest: npt.NDArray[np.float32]
    largest_norm: float
    sample: npt.NDArray[np.float32]


class Proposer(Protocol):
    """A faiss index over positions 0 … N−1, built by ``add`` from first to last, then only read."""

    kind: ClassVar[IndexKind]

    def add(self, vectors: npt.NDArray[np.float16]) -> None:
        """The next rows, (n, D)."""
        ...

    def write(self, folder: Path) -> None:
        """Its file or files."""
        ...

    def positions(self) -> npt.NDArray[np.int64]:
        """Every position that it holds, in any order: 0 … N−1 if all is well. No way in a graph need lead to each."""
        ...

    def num_rescored(self, k: int) -> int:
        """How many candidates the K best are chosen from."""
        ...

    def propose(self, q: npt.NDArray[np.float32], num: int, live: LiveRows | None) -> npt.NDArray[np.int64]:
        """Positions of ``num`` live rows with a large d·q; q: (D,). Fewer if it cannot find so many."""
        ...


def write_faiss(index: Any, path: Path) -> None:
    """Raises: OSError."""
    import faiss

    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written by faiss") from error


def read_faiss(path: Path, kind: Any, *, num_rows: int, dimension: int) -> Any:
    """faiss's index in a file whose checksum has been verified. Raises: IndexDamagedError."""
    import faiss

    try:
        index: Any = faiss.read_index(str(path))
    except RuntimeError as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        raise IndexDamagedError(path, "cannot be read by faiss") from error
    if not isinstance(index, kind) or (index.ntotal, index.d) != (num_rows, dimension):
        raise IndexDamagedError(
            path,
            f"holds {index.ntotal} rows of {index.d} in {type(index).__name__}, "
            f"needed {num_rows} of {dimension} in {kind.__name__}",
        )
    return index


def real_positions(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """faiss fills up with −1."""
    return positions[positions >= 0]


@dataclass(frozen=True, slots=True)
class Sq8:
    """Every number in eight bits, linearly between the least and the greatest of its dimension; N·D bytes."""

    kind: ClassVar[IndexKind] = "sq8"

    index: Any

    @classmethod
    def train(cls, statistics: Statistics) -> Self:
        import faiss

        inner_product, bits = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexScalarQuantizer(statistics.dimension, bits, inner_product)
        index.train(np.stack([statistics.lowest, statistics.highest]))  # the range, so that nothing is clipped
        return cls(index)

    @classmethod
    def read(cls, folder: Path, *, num_rows: int, dimension: int) -> Self:
        """An index to search. Raises: IndexDamagedError."""
        import faiss

        return cls(read_faiss(folder / FAISS, faiss.IndexScalarQuantizer, num_rows=num_rows, dimension=dimension))

    def add(self, vectors: npt.NDArray[np.float16]) -> None:
        self.index.add(vectors.astype(np.float32))

    def write(self, folder: Path) -> None:
        write_faiss(self.index, folder / FAISS)

    def positions(self) -> npt.NDArray[np.int64]:
        return np.arange(self.index.ntotal)

    def num_rescored(self, k: int) -> int:
        return 2 * k + 20

    def propose(self, q: npt.NDArray[np.float32], num: int, live: LiveRows | None) -> npt.NDArray[np.int64]:
        import faiss

        wanted = None if live is None else faiss.SearchParameters(sel=live.selector)
        return real_positions(self.index.search(q[None], num, params=wanted)[1][0])


@dataclass(frozen=True, slots=True)
class Hnsw:
    """A graph of near neighbours (Malkov and Yashunin 2016) over fp16 vectors, as the paper searched its memory.

    The graph is one of distances, and inner products are none: where norms vary, faiss's own inner-product graph finds
    less. A dimension more makes them distances (Bachrach et al. 2014, as DPR's code did it):

        d' = (d/Φ, √(1 − |d/Φ|²)),  q' = (q/|q|, 0),  |q' − d'|² = 2 − 2 d·q/(Φ|q|),  Φ = max |d|
    """

    kind: ClassVar[IndexKind] = "hnsw"

    index: Any
    largest_norm: float
    breadth: int = SEARCH_BREADTH

    @classmethod
    def train(cls, statistics: Statistics) -> Self:
        import faiss

        bits = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexHNSWSQ(statistics.dimension + 1, bits, LINKS, faiss.METRIC_L2)
        index.hnsw.efConstruction = CONSTRUCTION_BREADTH
        index.train(np.zeros((1, statistics.dimension + 1), np.float32))  # fp16 has nothing to learn
        return cls(index, statistics.largest_norm or 1.0)

    @classmethod
    def read(cls, folder: Path, *, num_rows: int, dimension: int) -> Self:
        """An index to search: Φ plays no part in that. Raises: IndexDamagedError."""
        import faiss

        return cls(read_faiss(folder / FAISS, faiss.IndexHNSWSQ, num_rows=num_rows, dimension=dimension + 1), 1.0)

    def add(self, vectors: npt.NDArray[np.float16]) -> None:
        scaled = vectors.astype(np.float32) / np.float32(self.largest_norm)
        rest = np.sqrt(np.maximum(0.0, 1.0 - (scaled.astype(np.float64) ** 2).sum(axis=1)))
        self.index.add(np.column_stack([scaled, rest]).astype(np.float32))  # (n, D + 1)

    def write(self, folder: Path) -> None:
        write_faiss(self.index, folder / FAISS)

    def positions(self) -> npt.NDArray[np.int64]:
        return np.arange(self.index.ntotal)

    def num_rescored(self, k: int) -> int:
        return k + 20  # fp16 distances are wrong in the last digits only

    def propose(self, q: npt.NDArray[np.float32], num: int, live: LiveRows | None) -> npt.NDArray[np.int64]:
        import faiss

        turned = np.append(q / (np.linalg.norm(q) or 1.0), 0.0).astype(np.float32)
        breadth = max(self.breadth, num)
        while True:
            wanted = faiss.SearchParametersHNSW(efSearch=breadth, sel=live.selector if live else None)
            found = real_positions(self.index.search(turned[None], num, params=wanted)[1][0])
            if len(found) == num or breadth >= self.index.ntotal:
                return found
            breadth = min(4 * breadth, self.index.ntotal)
