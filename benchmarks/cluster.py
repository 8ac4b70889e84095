"""What it costs to search shards in actors instead of a memory in the process, on one machine.

    python -m benchmarks.cluster [--size 100000] [--dimension 384] [--runs 50] [--json FILE]

A cluster of one node is started and ended. Measured in turns: a call that does nothing, the memory in this process,
one shard and two, for one question and for batches of 64, and from 8 threads. On one machine shards share its cores, so
what this shows is the price of the calls, not what several machines gain.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.memory_vectors import Vectors, make_table
from benchmarks.turns import write
from latentrag.cluster import ShardedMemory
from latentrag.memory import Memory
from tests.cluster.conftest import a_cluster

K = 5
BATCH = 64
THREADS = 8
SHARDS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, a_cluster(num_cpus=4):
        report = measure(Path(folder), options.size, options.dimension, options.runs)
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "system": platform.platform()}
    config = {"size": options.size, "dimension": options.dimension, "k": K, "index": "flat", "runs": options.runs}
    for name, figures in report.items():
        print(f"{name:12} " + "  ".join(f"{what} {value:.1f}" for what, value in figures.items()))
    write(options.json, {"config": config, "machine": machine, "figures": report})


def measure(folder: Path, size: int, dimension: int, runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds, and questions a second, by way and measure."""
    vectors = Vectors.make(folder / "vectors", size, dimension)
    make_table(folder / "memory.lance", vectors.blocks())
    ways: dict[str, Any] = {"in process": Memory.open(folder / "memory.lance", index="flat")}
    for shards in SHARDS:
        name = f"{shards} shard{'s' if shards > 1 else ''}"
        path, index = folder / "memory.lance", "flat"
        ways[name] = ShardedMemory.start(path, name=f"s{shards}", shards=shards, index=index, timeout_s=60)
    q = vectors.queries
    report: dict[str, dict[str, float]] = {"a call": {"ms": in_turns({"": called(ways["1 shard"])}, runs)[""]}}
    of_one = in_turns({name: partial(memory.search, q[:1], K) for name, memory in ways.items()}, runs)
    of_many = in_turns({name: partial(memory.search, q[:BATCH], K) for name, memory in ways.items()}, 5)
    for name, memory in ways.items():
        report[name] = {"B=1 ms": of_one[name], f"B={BATCH} ms": of_many[name]}
        report[name][f"{THREADS} threads, questions/s"] = rate(memory, q, 4 * runs)
    for memory in ways.values():
        if isinstance(memory, ShardedMemory):
            memory.stop()
    return report


def called(memory: ShardedMemory) -> Callable[[], object]:
    """The cheapest request of a shard."""
    version = memory.snapshot()
    return lambda: version.find([])


def in_turns(does: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Medians in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in does}
    for run in range(runs + 1):
        for name, each in does.items():
            began = time.perf_counter()
            each()
            if run:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(of_one) for name, of_one in times.items()}


def rate(memory: Any, q: Any, num: int) -> float:
    """Questions a second, each by itself."""
    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda number: memory.search(q[number % len(q) :][:1], K), range(num)))
    return num / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
