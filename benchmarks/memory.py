"""A memory's indexes beside raw faiss: recall, latency, resident memory, cold open, and what edits cost.

    python -m benchmarks.memory --work FOLDER [--size 1000000] [--dimension 768] [--runs 3] [--json FILE]

Vectors, table, faiss files and indexes are made in FOLDER once and used again (about 14 KB a passage at 768 dimensions
with all ways). Every measurement is a process of its own with one thread, and the ways take turns. ``memory`` is what
users call: ``Memory.open(path).search``, passages and vectors included; ``index`` beside it is the same without the
passages. A table goes to stdout.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory_vectors import NUM_QUERIES, Vectors, make_table

FAISS_WAYS = ["faiss-flat", "faiss-ivf-flat", "faiss-hnsw"]
MEMORY_WAYS = ["ivf-rabitq", "sq8", "hnsw", "flat"]
DEFAULT_WAYS = ["faiss-flat", "faiss-ivf-flat", "faiss-hnsw", "ivf-rabitq"]
NUM_PROBES = 128
BREADTH = 128
NUM_EDITED = 1_000
WARM_UP = 10


def resident_bytes() -> int:
    """Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def drop_from_cache(path: Path) -> None:
    """So that a cold open reads from the disk."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_of_each(search: Callable[[np.ndarray], object], q: np.ndarray) -> list[float]:
    """One query at a time, after a warm-up."""
    for b in range(WARM_UP):
        search(q[b : b + 1])
    took = []
    for b in range(len(q)):
        started = time.perf_counter()
        search(q[b : b + 1])
        took.append(time.perf_counter() - started)
    return took


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Both (B, K) positions."""
    return float(np.mean([len(np.intersect1d(one, other)) / len(one) for one, other in zip(found, truth, strict=True)]))


# Making what is measured


def faiss_file(work: Path, way: str) -> Path:
    return work / f"{way}.faiss"


def build_faiss(work: Path, way: str) -> dict[str, float]:
    """As faiss's own documentation has it: inner products throughout."""
    import faiss

    vectors = Vectors.read(work)
    started = time.perf_counter()
    inner_product, dimension = faiss.METRIC_INNER_PRODUCT, vectors.dimension
    index: Any
    if way == "faiss-flat":
        index = faiss.IndexFlatIP(dimension)
    elif way == "faiss-hnsw":
        index = faiss.IndexHNSWFlat(dimension, 32, inner_product)
        index.hnsw.efConstruction = 200
    else:
        num_lists = max(1, min(vectors.size // 40, round(4 * vectors.size**0.5)))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, num_lists, inner_product)
        chosen = np.linspace(0, vectors.size - 1, min(vectors.size, 50 * num_lists)).astype(np.int64)
        index.train(vectors.stored[chosen].astype(np.float32))
    for block in vectors.blocks():
        index.add(block.astype(np.float32))
    faiss.write_index(index, str(faiss_file(work, way)))
    return {"build_s": time.perf_counter() - started, "build_peak_bytes": peak_bytes()}


def build_memory(work: Path, kind: str, max_memory: int | None) -> dict[str, float]:
    from latentrag.memory import Memory

    made = Memory.open(work / "memory.lance").build_index(kind, max_memory=max_memory)  # type: ignore[arg-type]
    return {
        "build_s": made.wall_s,
        "build_peak_bytes": peak_bytes(),
        "index_ram_bytes": made.ram_bytes,
        "index_disk_bytes": made.disk_bytes,
    }


def find_truth(work: Path) -> dict[str, float]:
    """The 100 best of each query, by faiss's exact search in blocks."""
    import faiss

    vectors = Vectors.read(work)
    k = min(100, vectors.size)
    found = faiss.ResultHeap(NUM_QUERIES, k, keep_max=True)
    start = 0
    for block in vectors.blocks():
        scores, places = faiss.knn(
            vectors.queries, block.astype(np.float32), min(k, len(block)), faiss.METRIC_INNER_PRODUCT
        )
        found.add_result(scores, places + start)
        start += len(block)
    found.finalize()
    np.save(work / "truth.npy", found.I)
    return {}


# Measuring, each in a fresh process


def measure_faiss(work: Path, way: str) -> dict[str, float]:
    started = time.perf_counter()
    import faiss

    libraries = resident_bytes()
    index = faiss.read_index(str(faiss_file(work, way)))
    vectors, truth = Vectors.read(work), np.load(work / "truth.npy")
    if way == "faiss-hnsw":
        index.hnsw.efSearch = BREADTH
    if way == "faiss-ivf-flat":
        index.nprobe = min(NUM_PROBES, index.nlist)
    index.search(vectors.queries[:1], 5)
    figures = {"cold_s": time.perf_counter() - started}
    for k in (5, truth.shape[1]):
        figures[f"p50_s@{k}"] = statistics.median(seconds_of_each(lambda q, k=k: index.search(q, k), vectors.queries))
        figures[f"recall@{k}"] = recall(index.search(vectors.queries, k)[1], truth[:, :k])
    return {**figures, "resident_bytes": resident_bytes(), "libraries_bytes": libraries}


def measure_memory(work: Path, kind: str) -> dict[str, float]:
    started = time.perf_counter()
    import faiss  # noqa: F401
    import lance  # noqa: F401

    from latentrag.memory import Memory

    libraries = resident_bytes()
    queries = np.load(work / "queries.npy")
    memory = Memory.open(work / "memory.lance", index=kind)  # type: ignore[arg-type]
    memory.search(queries[:1], 5)
    figures = {"cold_s": time.perf_counter() - started}
    truth = np.load(work / "truth.npy")
    for k in (5, truth.shape[1]):
        whole = seconds_of_each(lambda q, k=k: memory.search(q, k), queries)
        index = seconds_of_each(lambda q, k=k: memory.index.search(q, k), queries)
        figures[f"p50_s@{k}"], figures[f"index_p50_s@{k}"] = statistics.median(whole), statistics.median(index)
        figures[f"recall@{k}"] = recall(np.array(places(memory, queries, k)), truth[:, :k])
    return {**figures, "resident_bytes": resident_bytes(), "libraries_bytes": libraries}


def places(memory: Any, queries: np.ndarray, k: int) -> list[list[int]]:
    """Positions in the file of vectors, which are the passages' ids."""
    return [[int(z.id) for z in found] for found in memory.search(queries, k).passages]


def measure_edits(work: Path, kind: str) -> dict[str, float]:
    """Passages added, and others deleted: until they are found, and not found. Works on a copy of the table's log."""
    import shutil

    from latentrag.memory import Memory
    from latentrag.memory.table import Table

    copy = work / "edited.lance"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(work / "memory.lance", copy, copy_function=os.link)  # files of a table never change
    vectors, truth = Vectors.read(work), np.load(work / "truth.npy")
    memory = Memory.open(copy, index=kind)  # type: ignore[arg-type]
    memory.search(vectors.queries[:1], 5)
    doomed = [str(place) for place in np.unique(truth[:, :5])[:NUM_EDITED]]
    started = time.perf_counter()
    memory = memory.delete(doomed)
    memory.search(vectors.queries[:1], 5)
    figures = {"delete_s": time.perf_counter() - started}

    # Encoding is not what is measured: the new passages come with their vectors.
    new = vectors.more(NUM_EDITED)
    table = Table.open(copy)
    started = time.perf_counter()
    make_table(copy, new, first_id=vectors.size, table=table)
    memory = Memory(Table.open(copy), memory._indexes)  # noqa: SLF001
    found = memory.search(new[:1].astype(np.float32), 5)
    figures["add_s"] = time.perf_counter() - started
    assert found.version == memory.version
    again = np.array(places(memory, vectors.queries, 5))
    figures["deleted_found"] = float(np.isin(again, np.array(doomed, np.int64)).sum())
    left = [[place for place in row if str(place) not in set(doomed)] for row in truth.tolist()]
    old = [[place for place in row if place < vectors.size] for row in again.tolist()]
    scores = [len(set(one) & set(other[: len(one)])) / len(one) for one, other in zip(old, left, strict=True) if one]
    figures["recall@5"] = float(np.mean(scores))
    shutil.rmtree(copy)
    return figures


STEPS: dict[str, Callable[..., dict[str, float]]] = {
    "truth": find_truth,
    "build-faiss": build_faiss,
    "build-memory": build_memory,
    "faiss": measure_faiss,
    "memory": measure_memory,
    "edits": measure_edits,
}


def in_process(work: Path, step: str, *arguments: object) -> dict[str, float]:
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    given = json.dumps(arguments)
    command = [sys.executable, "-m", "benchmarks.memory", "--work", str(work), "--step", step, given]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def prepare(work: Path, vectors: Vectors, ways: list[str], max_memory: int | None) -> dict[str, Any]:
    """Make what is missing; figures of the builds, kept from the run that made them."""
    built_file = work / "built.json"
    built: dict[str, Any] = json.loads(built_file.read_text("utf-8")) if built_file.exists() else {}
    if not (work / "memory.lance").exists():
        make_table(work / "memory.lance", vectors.blocks())
    if not (work / "truth.npy").exists():
        in_process(work, "truth")
    for way in ways:
        if way not in built and way != "flat":
            say(f"building {way}")
            arguments = ("build-faiss", way) if way in FAISS_WAYS else ("build-memory", way, max_memory)
            built[way] = in_process(work, *arguments)
            built_file.write_text(json.dumps(built, indent=1) + "\n", "utf-8")
    return built


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def runs(work: Path, ways: list[str], num_runs: int) -> Iterator[dict[str, Any]]:
    for number, way in itertools.product(range(num_runs), ways):
        step = "faiss" if way in FAISS_WAYS else "memory"
        drop_from_cache(faiss_file(work, way) if step == "faiss" else work / "memory.lance")
        yield {"run": number + 1, "way": way, **in_process(work, step, way)}


def table(rows: list[dict[str, Any]], edits: dict[str, dict[str, float]]) -> str:
    """Medians over the runs; in brackets against faiss's exact search."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    medians = {
        way: {
            key: statistics.median(row[key] for row in rows if row["way"] == way)
            for key in next(row for row in rows if row["way"] == way)
            if key not in {"run", "way"}
        }
        for way in ways
    }
    last = max(int(key.partition("@")[2]) for key in medians[ways[0]] if key.startswith("recall@"))
    flat = medians.get("faiss-flat")
    head = ["", "recall@5", f"recall@{last}", "p50 k=5, ms", f"p50 k={last}, ms", "index alone k=5, ms"]
    head += ["resident, MB", "above the libraries, MB", "cold, s"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for way in ways:
        found = medians[way]
        ratio = f" (÷ {flat['p50_s@5'] / found['p50_s@5']:.3g})" if flat else ""
        smaller = f" (÷ {flat['resident_bytes'] / found['resident_bytes']:.3g})" if flat else ""
        alone = found.get("index_p50_s@5")
        lines.append(
            f"| {way} | {found['recall@5']:.3f} | {found[f'recall@{last}']:.3f} | {found['p50_s@5'] * 1e3:.2f}{ratio} "
            f"| {found[f'p50_s@{last}'] * 1e3:.2f} | {'' if alone is None else f'{alone * 1e3:.2f}'} "
            f"| {found['resident_bytes'] / 1e6:.0f}{smaller} "
            f"| {(found['resident_bytes'] - found['libraries_bytes']) / 1e6:.0f} | {found['cold_s']:.2f} |"
        )
    for way, found in edits.items():
        lines.append(
            f"\n{way}: {NUM_EDITED} passages deleted and gone in {found['delete_s']:.2f} s, {NUM_EDITED} added and "
            f"found in {found['add_s']:.2f} s; deleted passages found: {found['deleted_found']:.0f}; "
            f"recall@5 then {found['recall@5']:.3f}"
        )
    return "\n".join(lines)


def processor() -> str:
    info = Path("/proc/cpuinfo").read_text()
    return next((line.split(": ")[1] for line in info.splitlines() if line.startswith("model name")), "unknown")


def described(vectors: Vectors) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("faiss-cpu", "pylance", "numpy")}},
        "vectors": json.loads((vectors.work / "vectors.json").read_text("utf-8")),
        "config": {"probes of faiss-ivf-flat": NUM_PROBES, "breadth of faiss-hnsw": BREADTH, "threads": 1},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder with room, which is kept")
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--like", type=Path, help="a memory whose vectors are repeated with noise")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=[*FAISS_WAYS, *MEMORY_WAYS], default=DEFAULT_WAYS)
    parser.add_argument("--max-memory-gb", type=float, help="bound of our builds")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--step", nargs=2, metavar=("STEP", "ARGUMENTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = arguments.work
    if arguments.step:
        step, given = arguments.step
        print(json.dumps(STEPS[step](work, *json.loads(given))))
        return
    bound = None if arguments.max_memory_gb is None else int(arguments.max_memory_gb * 1e9)
    vectors = Vectors.make(work, arguments.size, arguments.dimension, arguments.like)
    report = described(vectors)
    report["built"] = prepare(work, vectors, arguments.ways, bound)
    rows = report["rows"] = []
    for row in runs(work, arguments.ways, arguments.runs):
        rows.append(row)
        say(", ".join(f"{key} {value}" for key, value in row.items()))
    ours = [way for way in arguments.ways if way in MEMORY_WAYS]
    report["edits"] = {way: in_process(work, "edits", way) for way in ours}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(rows, report["edits"]))
    print("\nBuilds:", json.dumps({way: report["built"].get(way) for way in arguments.ways}))


if __name__ == "__main__":
    main()
