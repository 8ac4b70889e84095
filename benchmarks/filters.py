"""Search under conditions that leave half, one in a hundred, and twenty of all passages.

    python -m benchmarks.filters [--size 1000000] [--dimension 384] [--flat] [--words] [--work DIR] [--json FILE]

Made-up vectors (``memory_vectors``), short texts, three fields. Times are medians over queries, one thread, of searches
that return passages; the condition has been asked once before. Recall is against an exact scan of the passages left.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np

from benchmarks.memory_vectors import SEED, WORDS, Vectors
from latentrag.memory import EncoderCard, Memory
from latentrag.memory.table import Table
from latentrag.types import Passage

FEW = 20
WHERE = {"all": None, "50 %": "share < 50", "1 %": "share = 7", f"{FEW}": "few = true"}
QUERIES = 30


def make(path: Path, vectors: Vectors) -> None:
    """The memory, in one commit."""
    table = Table.create(path, EncoderCard("made", "benchmark", vectors.dimension, max_tokens=256, scale=1.0))
    few = set(np.linspace(0, vectors.size - 1, FEW).astype(int).tolist())
    words = np.array(WORDS.split())
    rng = np.random.default_rng(SEED)

    def batches() -> Iterator[Any]:
        number = 0
        for block in vectors.blocks():
            texts = [" ".join(each) for each in words[rng.integers(len(words), size=(len(block), 8))].tolist()]
            shares = rng.integers(100, size=len(block)).tolist()
            passages = []
            for text, share in zip(texts, shares, strict=True):
                fields = {"share": share, "few": number in few, "date": f"20{share % 30:02}-01-{1 + share % 28:02}"}
                passages.append(Passage(str(number), text, f"title {number // 5}", fields=fields))
                number += 1
            yield table.record_batch(passages, block)

    table.commit(table.stage(batches()), change="added")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measured(path: Path, vectors: Vectors, *, words: bool, only_flat: bool) -> dict[str, Any]:
    """Everything, by what was measured."""
    queries = vectors.queries[:QUERIES]
    found: dict[str, Any] = {}
    flat, stored = Memory.open(path, index="flat"), Memory.open(path, index="ivf-rabitq")
    flat.warm_up()
    if not only_flat:
        found["build_index_s"] = seconds(lambda: stored.build_index("ivf-rabitq"))
        stored.warm_up()
    found["first_condition_s"] = seconds(lambda: len(flat.where("share < 10")))
    found["another_condition_s"] = seconds(lambda: len(flat.where("share < 20 and date >= '2010-01-01'")))
    if words:
        found["build_words_s"] = seconds(flat.words)
    row_ids, of_all = np.concatenate([each for each, _ in flat.table.vectors()]), vectors.stored
    for name, where in WHERE.items():
        exact, near = (each if where is None else each.where(where) for each in (flat, stored))
        row = found[name] = {"passages": len(exact)}
        for kind, memory in (("flat", exact), ("ivf-rabitq", near))[: 1 if only_flat else 2]:
            memory.search(queries[:1], 5)
            for k in (5, 100):
                times = [seconds(lambda q=q, m=memory, k=k: m.search(q[None], k)) for q in queries]  # type: ignore[misc]
                row[f"{kind}, k={k}, ms"] = 1000 * median(times)
        left = np.flatnonzero(flat.selection(exact.condition).mask) if where else np.arange(len(row_ids))  # type: ignore[union-attr,arg-type]
        for k in () if only_flat else (5, 100):
            shares = []
            for q in queries:
                scores = np.sort(of_all[left].astype(np.float32) @ q)[::-1] if len(left) < 10**5 else None
                best = exact.search(q[None], k).scores[0] if scores is None else scores[:k]
                shares.append((near.search(q[None], k).scores[0] >= best[-1] - 1e-3).mean())
            row[f"ivf-rabitq, recall@{k}"] = float(np.mean(shares))
        if words:
            texts = [f"{WORDS.split()[n % 20]} title {n * 997 % (vectors.size // 5)}" for n in range(QUERIES)]
            exact.search_words(texts[:1], 5)
            times = [seconds(lambda x=x, m=exact: m.search_words([x], 5)) for x in texts]  # type: ignore[misc]
            row["bm25, k=5, ms"] = 1000 * median(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--flat", action="store_true", help="without an index on disk")
    parser.add_argument("--words", action="store_true", help="BM25, too, whose index takes minutes for a million")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        work = Path(folder)
        vectors = Vectors.make(work / "vectors", given.size, given.dimension)
        made_s = seconds(lambda: make(work / "memory.lance", vectors))
        found = measured(work / "memory.lance", vectors, words=given.words, only_flat=given.flat)
    about = {
        "size": given.size,
        "dimension": given.dimension,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "faiss": faiss.__version__,
        "make_s": made_s,
        "cpu_s": time.process_time(),
    }
    for name, value in {**about, **found}.items():
        if isinstance(value, dict):
            print(name, *(f"{what}: {number:.3g}" for what, number in value.items()), sep="\n    ")
        else:
            print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
    if given.json is not None:
        given.json.write_text(json.dumps({**about, **found}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
