"""What it saves a causal generator to keep the passages it has read: the demo's model over the demo's memory.

    python -m benchmarks.passage_cache --data CLUES.jsonl[.gz] [--questions 50] [--stream 300] [--json FILE]

Every question is answered three times: without a cache, with the cache emptied, and with its passages in it; for every
other question what goes without a cache comes last. Then a stream of questions in which some come up often (Zipf,
exponent 1), for hit rates and memory. One thread.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.turns import write

K = 5
BOUNDS = [32 << 20, 128 << 20, 512 << 20, 2 << 30]
MIB = 1 << 20


def seconds(rag: Any, x: str) -> tuple[float, float, float]:
    """Time, processor time, and log p of the answer."""
    started, cpu = time.perf_counter(), time.process_time()
    answer = rag.answer(x, k=K)
    return time.perf_counter() - started, time.process_time() - cpu, answer.log_prob


def latencies(rag: Any, questions: list[str]) -> dict[str, Any]:
    from latentrag.generator.passages import PassageCache

    generator: Any = rag.generator
    kept = PassageCache(4 << 30)
    times: dict[str, list[tuple[float, float, float]]] = {"none": [], "cold": [], "warm": []}
    for number, x in enumerate(questions):
        for way in ("none", "cold", "warm") if number % 2 else ("cold", "warm", "none"):
            if way == "cold":
                kept.forget()
            generator.passage_cache = None if way == "none" else kept
            times[way].append(seconds(rag, x))
        print(f"question {number + 1}/{len(questions)}", end="\r", file=sys.stderr)
    log_p = {way: np.array([each[2] for each in of_way]) for way, of_way in times.items()}
    return {
        "seconds": {way: statistics.median(each[0] for each in of_way) for way, of_way in times.items()},
        "cpu_seconds": {way: statistics.median(each[1] for each in of_way) for way, of_way in times.items()},
        "ratio": statistics.median(a[1] / b[1] for a, b in zip(times["none"], times["warm"], strict=True)),
        "largest_difference": float(max(np.abs(log_p["none"] - log_p[way]).max() for way in ("cold", "warm"))),
    }


def hit_rates(rag: Any, questions: list[str], length: int) -> list[dict[str, float]]:
    """Without answering: which passages a stream needs, through caches of several sizes."""
    from latentrag.generator.passages import PassageCache

    weights = 1 / np.arange(1, len(questions) + 1)
    random = np.random.default_rng(0)
    stream = random.choice(len(questions), size=length, p=weights / weights.sum())
    passages = rag.retriever.retrieve(questions, K).passages
    size = _bytes_of_one(rag, questions[0])
    rates = []
    for bound in BOUNDS:
        cache = PassageCache(bound)
        for number in stream:
            for passage in passages[number]:
                key = list(passage.id.encode())
                if cache.get(key) is None:
                    cache.put(key, [torch.empty(round(size), dtype=torch.uint8)])
        total = cache.num_hits + cache.num_misses
        rates.append({"bound_bytes": bound, "hit_rate": cache.num_hits / total, "held_bytes": cache.num_bytes})
    return rates


def _bytes_of_one(rag: Any, x: str) -> float:
    from latentrag.generator.passages import PassageCache

    rag.generator.passage_cache = PassageCache(4 << 30)
    rag.answer(x, k=K)
    return float(rag.generator.passage_cache.num_bytes / len(rag.generator.passage_cache))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prefix-field", metavar="NAME", help="put before each question: category, for clues")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--stream", type=int, default=300)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    import latentrag
    from latentrag.training.data import read_examples

    torch.set_num_threads(1)
    questions = [row.x for row in read_examples(given.data, prefix_field=given.prefix_field).rows]
    rag: Any = latentrag.load("demo", memory="demo", dtype=given.dtype)
    rag.answer(questions[-1], k=K)
    asked = questions[: given.questions]
    found = latencies(rag, asked)
    found["bytes_of_a_passage"] = _bytes_of_one(rag, questions[0])
    found["stream"] = hit_rates(rag, questions[:1000], given.stream)
    print("| | no cache | empty cache | passages in it |\n|---|---|---|---|")
    for name in ("seconds", "cpu_seconds"):
        none, cold, warm = (found[name][way] for way in ("none", "cold", "warm"))
        print(f"| {name.replace('_', ' ')}, median of {len(asked)} | {none:.3f} | {cold:.3f} | {warm:.3f} |")
    print(f"\nratio, median: {found['ratio']:.2f}; largest difference of log p: {found['largest_difference']:.1e}")
    print(f"a passage takes {found['bytes_of_a_passage'] / MIB:.1f} MiB\n\n| bound | held | hits |\n|---|---|---|")
    for row in found["stream"]:
        bound, held = row["bound_bytes"] / MIB, row["held_bytes"] / MIB
        print(f"| {bound:.0f} MiB | {held:.0f} MiB | {100 * row['hit_rate']:.0f} % |")
    config = {
        "K": K,
        "dtype": str(next(rag.generator.model.parameters()).dtype),
        "questions": len(asked),
        "stream": given.stream,
        "threads": 1,
    }
    write(given.json, {"config": config, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
