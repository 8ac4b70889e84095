"""How far an ivf-rabitq index is searched: as far as its vectors need, which is measured when it is built."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from latentrag.errors import IndexDamagedError
from latentrag.memory.indexes.ivf_rabitq import IvfRabitq
from latentrag.memory.indexes.protocol import Rows
from latentrag.memory.indexes.recall import exact_best, shares_found
from latentrag.memory.indexes.stored import StoredIndex
from latentrag.memory.indexes.vector_file import VectorFile

EFFORT = "effort.json"
EFFORTS = (1.0, 1.5, 2.0, 3.0, 4.0)
"""Of lists looked at and of candidates, as multiples of what is usual."""
NEEDED = {5: 0.995, 100: 0.985}
"""Recall at K of passages' own vectors. Questions are harder: theirs was 0.98 and 0.95 where it was this (ADR 6)."""
NUM_QUESTIONS = 200


def choose_effort(
    proposer: IvfRabitq, vectors: VectorFile, progress: Callable[[str, int, int], None]
) -> dict[int, float]:
    """Set the least effort with which an index finds what is needed. If none does it is the greatest, with a warning.

    Args:
        vectors: of its rows; read once.
        progress: see ``building.Progress``.
    Returns: recall at K with that effort, by K.
    """
    num_rows = len(vectors)
    needed = {min(k, num_rows): share for k, share in NEEDED.items()}
    chosen = np.unique(np.linspace(0, num_rows - 1, NUM_QUESTIONS).astype(np.int64))
    q = vectors.read(chosen)

    def blocks() -> Iterator[Rows]:
        done = 0
        for rows in vectors.blocks():
            yield rows
            done += len(rows.row_ids)
            progress("measuring", done, num_rows)

    best = exact_best(blocks(), q, max(needed))
    index = StoredIndex(proposer, vectors, faiss_bytes=0)
    for effort in EFFORTS:
        proposer.effort = effort
        recall = {k: float(share.mean()) for k, share in shares_found(index, best, q, list(needed)).items()}
        if all(recall[k] >= share for k, share in needed.items()):
            return recall
    found = " and ".join(f"{share:.1%} of the {k} best" for k, share in recall.items())
    warnings.warn(
        f"the index ivf-rabitq finds {found} passages, meant to find "
        f"{' and '.join(f'{share:.1%}' for share in needed.values())}; the indexes hnsw, sq8 and flat find more",
        stacklevel=2,
    )
    return recall


def write_effort(folder: Path, effort: float, recall: dict[int, float]) -> None:
    """To a file that is there for nothing else, with the recall that was measured."""
    (folder / EFFORT).write_text(json.dumps({"effort": effort, "recall": recall}), "utf-8")


def read_effort(folder: Path) -> tuple[float, dict[int, float]]:
    """And the recall that was measured. Raises: IndexDamagedError."""
    try:
        content = json.loads((folder / EFFORT).read_bytes())
        effort, recall = float(content["effort"]), {int(k): float(share) for k, share in content["recall"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IndexDamagedError(folder / EFFORT, "is damaged, or of another format") from error
    if not EFFORTS[0] <= effort <= EFFORTS[-1]:
        raise IndexDamagedError(folder / EFFORT, f"says {effort}, needed {EFFORTS[0]} to {EFFORTS[-1]}")
    return effort, recall
