"""The paper's index (§2.2) as an example of how a kind of index is added: one class, one row in the table of kinds.

    INDEX_KINDS.add("hnsw", "tests.memory.hnsw_index:HNSW")

A graph of near neighbours (Malkov and Yashunin 2016) over fp16 vectors. It is a graph of distances, and inner products
are no distances: where norms vary, faiss's own inner-product graph finds less. One more dimension turns them into
distances (Bachrach et al. 2014, as in DPR's code):

    d' = (d/Φ, √(1 − |d/Φ|²)),  q' = (q/|q|, 0),  |q' − d'|² = 2 − 2 d·q/(Φ|q|),  Φ = max |d|
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from latentrag.memory.indexes.index import Kind, LiveRows, Plan, Progress
from latentrag.memory.indexes.ivf_rabitq import FAISS, read_faiss, write_faiss
from latentrag.memory.indexes.stored import VectorFile

LINKS = 32
"""M: links of a node on every level above the lowest, which has twice as many."""
CONSTRUCTION_BREADTH, SEARCH_BREADTH = 200, 256
"""efConstruction and efSearch."""


def plan(num_rows: int, dimension: int, room_bytes: int) -> Plan:
    """RAM doubles while arrays grow."""
    num_bytes = num_rows * (2 * (dimension + 1) + 8 * LINKS + 16)
    return Plan(ram_bytes=2 * num_bytes, disk_bytes=num_bytes, parameters={"links": LINKS})


@dataclass
class Hnsw:
    """Attributes: effort: multiplies the breadth of the search."""

    graph: faiss.IndexHNSWSQ
    effort: float = 1.0

    @classmethod
    def build(cls, vectors: VectorFile, plan: Plan, folder: Path, progress: Progress) -> None:
        norms = [np.linalg.norm(block.vectors.astype(np.float32), axis=1).max() for block in vectors.blocks()]
        largest_norm = np.float32(max(norms)) or np.float32(1)
        bits, links = faiss.ScalarQuantizer.QT_fp16, plan.parameters["links"]
        graph = faiss.IndexHNSWSQ(vectors.dimension + 1, bits, links, faiss.METRIC_L2)
        graph.hnsw.efConstruction = CONSTRUCTION_BREADTH
        graph.train(np.zeros((1, vectors.dimension + 1), np.float32))  # fp16 has nothing to learn
        for block in vectors.blocks():
            scaled = block.vectors.astype(np.float32) / largest_norm
            rest = np.sqrt(np.maximum(0.0, 1.0 - (scaled.astype(np.float64) ** 2).sum(axis=1)))
            graph.add(np.column_stack([scaled, rest]).astype(np.float32))  # (n, D + 1)
            progress("adding vectors", graph.ntotal, len(vectors))
        write_faiss(graph, folder / FAISS)

    @classmethod
    def read(cls, folder: Path, *, num_rows: int, dimension: int, parameters: Mapping[str, int]) -> Hnsw:
        return cls(read_faiss(folder / FAISS, faiss.IndexHNSWSQ, num_rows=num_rows, dimension=dimension + 1))

    def num_rescored(self, k: int) -> int:
        return k + 20  # fp16 distances are wrong in the last digits only

    def propose(self, q: npt.NDArray[np.float32], num: int, live: LiveRows | None) -> npt.NDArray[np.int64]:
        turned = np.append(q / (np.linalg.norm(q) or 1.0), 0.0).astype(np.float32)
        breadth = max(round(self.effort * SEARCH_BREADTH), num)
        options = faiss.SearchParametersHNSW(efSearch=breadth, sel=live.selector if live else None)
        positions: npt.NDArray[np.int64] = self.graph.search(turned[None], num, params=options)[1][0]
        return positions[positions >= 0]


HNSW = Kind(plan, Hnsw)
