"""An index made because somebody asked for it, and how good it is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentrag.errors import MemoryStoreError
from latentrag.memory.indexes import files
from latentrag.memory.indexes.building import build, kind_by_size, opened, plan, shown
from latentrag.memory.indexes.effort import read_effort
from latentrag.memory.indexes.recall import recall_at
from latentrag.types import IndexChoice, IndexKind

if TYPE_CHECKING:
    from latentrag.memory.table import Table

NUM_QUESTIONS = 100
MEASURED_K = 5


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """What a build gave.

    Attributes:
        ram_bytes: what it takes while it is searched, without the libraries; for flat 4·N·D.
        disk_bytes: of its files.
        recall: the share of the five best passages that it finds, with passages' own vectors as questions.
        effort: how many times as far as usual it is searched, since its vectors need it; 1 for all but ivf-rabitq.
        wall_s: what it took; with ivf-rabitq the measuring of recall is a part of it.
    """

    kind: IndexKind
    version: int
    num_passages: int
    ram_bytes: int
    disk_bytes: int
    recall: float
    effort: float
    wall_s: float


def build_index(table: Table, choice: IndexChoice, *, max_memory: int | None, progress: bool) -> BuiltIndex:
    """See ``Memory.build_index``."""
    if not len(table):
        raise MemoryStoreError(f"{table.path} has no passages at version {table.version}; add some first")
    kind, dimension, started = kind_by_size(choice, len(table)), table.manifest.dimension, time.perf_counter()
    planned = plan(kind, len(table), dimension, max_memory=max_memory)
    if kind == "flat":
        files.discard_all(table.path)
        ram = 4 * len(table) * dimension
        return BuiltIndex(kind, table.version, len(table), ram, 0, 1.0, 1.0, time.perf_counter() - started)
    with shown(progress) as show:
        published = build(table, planned, progress=show)
        took = time.perf_counter() - started
        index, k = opened(published), min(MEASURED_K, len(table))
        if kind == "ivf-rabitq":  # its build ended with that
            effort, of_k = read_effort(published.folder)
            recall = of_k[k]
        else:
            show("measuring recall", 0, 1)
            chosen = np.unique(np.linspace(0, len(index) - 1, NUM_QUESTIONS).astype(np.int64))
            effort, recall = 1.0, recall_at(index, index.vectors.blocks(), index.vectors.read(chosen), k)
            show("measuring recall", 1, 1)
    return BuiltIndex(kind, table.version, len(table), index.num_bytes, published.num_bytes, recall, effort, took)
