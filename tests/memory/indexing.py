"""Indexes and memories for the tests of indexes, and the oracle of all searches."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from latentrag.memory import EncoderCard, Memory
from latentrag.memory.indexes import IndexFolder, building
from latentrag.memory.indexes.building import opened, plan
from latentrag.memory.indexes.folder import DESCRIPTION, Published, _canonical
from latentrag.memory.indexes.index import Index, LiveRows, Progress, Proposer, Rows, exact_best, recalls
from latentrag.memory.indexes.stored import StoredIndex
from latentrag.memory.table import Table
from latentrag.types import Passage

STORED_KINDS = ["ivf-rabitq"]


def oracle(rows: Rows, q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Row ids and scores of the K best, equal scores in the order of the rows."""
    scores = (rows.vectors.astype(np.float64) * q[:, None, :]).sum(axis=2).astype(np.float32)  # (B, N)
    order = np.stack([np.lexsort((rows.row_ids, -row))[:k] for row in scores])
    return rows.row_ids[order], np.take_along_axis(scores, order, axis=1)


def assert_found(index: Index, rows: Rows, q: np.ndarray, k: int) -> None:
    """The index finds what the oracle finds, with the same scores to the last bit, and brings the right vectors."""
    row_ids, scores = oracle(rows, q, k)
    hits = index.search(q, k)
    assert np.array_equal(hits.row_ids, row_ids)
    assert np.array_equal(hits.scores, scores)
    assert np.array_equal(hits.vectors, rows.vectors[np.searchsorted(rows.row_ids, row_ids)].astype(np.float32))
    assert len(index) == len(rows.row_ids)


def drawn(num: int, dimension: int, seed: int = 0) -> np.ndarray:
    """(num, dimension) fp16 vectors in clusters, of varying norm."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, num // 20), dimension))
    vectors = centres[rng.integers(len(centres), size=num)] + 0.5 * rng.standard_normal((num, dimension))
    return (vectors * np.exp(0.2 * rng.standard_normal((num, 1)))).astype(np.float16)


def append(table: Table, vectors: np.ndarray, prefix: str = "p") -> Table:
    """A version with these vectors added, as passages prefix0, prefix1, …"""
    passages = [Passage(f"{prefix}{i}", f"text {prefix}{i}") for i in range(len(vectors))]
    return table.commit(table.stage([table.record_batch(passages, vectors)]), removed_ids=(), change="added")


def make_table(path: Path, vectors: np.ndarray) -> Table:
    dimension = vectors.shape[1]
    table = Table.create(path, EncoderCard("fake", "f1", dimension=dimension, max_tokens=8, scale=1.0))
    return append(table, vectors) if len(vectors) else table


def rows_of(table: Table) -> Rows:
    """Every row of the version."""
    parts = [Rows(np.empty(0, np.int64), np.empty((0, table.card.dimension), np.float16)), *table.vectors()]
    return Rows(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def build(table: Table, kind: str, *, folder: Path | None = None, progress: Progress = lambda *_: None) -> Published:
    """An index in the memory, or in a folder elsewhere."""
    planned = plan(kind, len(table), table.card.dimension)
    place = IndexFolder.of(table.storage.local) if folder is None else IndexFolder(folder)
    return building.build(table, kind, planned, folder=place, progress=progress)


def built(table: Table, kind: str) -> StoredIndex:
    return opened(build(table, kind))


def forge(folder: Path, *, without: str = "", **changes: object) -> None:
    """Change the description of an index and sign it again. without: a file that is to be missing from it."""
    record = json.loads((folder / DESCRIPTION).read_bytes())
    del record["checksum"]
    record["files"].pop(without, None)
    record.update(changes)
    record["checksum"] = hashlib.sha256(_canonical(record)).hexdigest()
    (folder / DESCRIPTION).write_bytes(_canonical(record))


def recall_at(index: Index, rows: Iterable[Rows], q: np.ndarray, k: int) -> float:
    """The share of the K best that is found, over all queries."""
    return float(recalls(index, exact_best(rows, q, k), q, [k])[k].mean())


def thorough(memory: Memory) -> Memory:
    """Let a memory's index look at every row, whatever its kind: it is exact then."""
    index = memory.index
    for part in (index, getattr(index, "kept", index)):
        if isinstance(part, StoredIndex):
            look_everywhere(part)
    return memory


def look_everywhere(index: StoredIndex) -> StoredIndex:
    object.__setattr__(index, "proposer", _Everything(index.proposer))
    return index


class _Everything:
    """A proposer that is asked for every row."""

    def __init__(self, proposer: Proposer) -> None:
        self.proposer = getattr(proposer, "proposer", proposer)

    def num_rescored(self, k: int) -> int:
        return 1 << 40

    def propose(self, q: np.ndarray, num: int, live: LiveRows | None) -> np.ndarray:
        return self.proposer.propose(q, num, live)
