"""What `benchmarks.memory` measures: each step is a process of its own, and prints its figures as JSON.

python -m benchmarks.memory_steps FOLDER STEP ARGUMENTS
"""

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.memory_vectors import NUM_QUERIES, ROWS_PER_BLOCK, Vectors, make_table, write_whole
from benchmarks.turns import peak_bytes

if TYPE_CHECKING:
    from latentrag.memory.indexes.index import Proposer

FAISS_WAYS = ["faiss-flat", "faiss-ivf-flat", "faiss-hnsw"]
MEMORY_WAYS = ["ivf-rabitq", "flat"]
LANCE = "lance-ivf-rq"
LANCE_BITS = 5
LANCE_PROBES = (20, 40, 60, 80, 120, 160, 240, 320, 640)
LANCE_REFINES = (None, 1, 2, 4)
"""How many times K rows it scores by their own vectors; None: by what the index has of them."""
LANCE_FINDS = {5: 0.985, 100: 0.98}
"""Recall at K on other queries; of the ways to reach it the fastest is measured, or else what finds most."""
NUM_PROBES = 128
BREADTH = 128
NUM_EDITED = 1_000
NUM_QUERIES_AFTER_EDITS = 10_000
QUERIES_AT_ONCE = 100
WARM_UP = 10
ROWS_PER_COMMIT = 1_000_000


def resident_bytes() -> int:
    """Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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


def in_turns(ways: Mapping[str, Callable[[np.ndarray], object]], q: np.ndarray) -> dict[str, list[float]]:
    """As ``seconds_of_each``, one query of each way after the other, and never the same twice in a row."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for b in range(-WARM_UP, len(q)):
        for number, (name, search) in enumerate(ways.items()):
            place = (b + number * len(q) // len(ways)) % len(q)
            started = time.perf_counter()
            search(q[place : place + 1])
            if b >= 0:
                took[name].append(time.perf_counter() - started)
    return took


def p95(took: Sequence[float]) -> float:
    return float(np.quantile(took, 0.95))


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Both (B, K) positions."""
    return float(np.mean([len(np.intersect1d(one, other)) / len(one) for one, other in zip(found, truth, strict=True)]))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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

    for built in (work / "memory.lance" / "_indexes").glob(f"{kind}-*"):
        shutil.rmtree(built)  # of a run that was ended before it had the figures
    made = Memory.open(work / "memory.lance").build_index(kind, max_memory=max_memory)
    return {
        "build_s": made.wall_s,
        "build_peak_bytes": peak_bytes(),
        "index_ram_bytes": made.ram_bytes,
        "index_disk_bytes": made.disk_bytes,
        "effort": made.effort,
    }


def build_lance(work: Path) -> dict[str, float]:
    """Lance's own index of the same table, in a copy of its log."""
    import lance

    copy = work / f"{LANCE}.lance"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(work / "memory.lance", copy, copy_function=copied, ignore=shutil.ignore_patterns("_indexes"))
    started = time.perf_counter()
    num_lists = round(Vectors.read(work).size ** 0.5)
    lance.dataset(copy).create_index(
        "vector", "IVF_RQ", metric="dot", num_partitions=num_lists, num_bits=LANCE_BITS, replace=True
    )
    figures = {"build_s": time.perf_counter() - started, "build_peak_bytes": peak_bytes()}
    files = (file for file in (copy / "_indices").rglob("*") if file.is_file())
    return figures | {"index_disk_bytes": float(sum(file.stat().st_size for file in files))}


def find_truth(work: Path) -> dict[str, float]:
    """The 100 best of each query."""
    vectors = Vectors.read(work)
    with (work / "truth.new").open("wb") as file:
        np.save(file, exact(vectors, vectors.queries, min(100, vectors.size)))
    (work / "truth.new").replace(work / "truth.npy")
    return {}


def exact(vectors: Vectors, queries: np.ndarray, k: int) -> np.ndarray:
    """(B, k) the positions of each query's best, by faiss's exact search in blocks."""
    import faiss

    found, start = faiss.ResultHeap(len(queries), k, keep_max=True), 0
    for block in vectors.blocks():
        scores, places = faiss.knn(queries, block.astype(np.float32), min(k, len(block)), faiss.METRIC_INNER_PRODUCT)
        found.add_result(scores, places + start)
        start += len(block)
    found.finalize()
    positions: np.ndarray = found.I
    return positions


def fill_memory(work: Path) -> dict[str, float]:
    """The table, in commits of ``ROWS_PER_COMMIT``; what was committed when a run was ended is kept."""
    from latentrag.memory.table import Table

    scratch, path, seconds = work / "unfinished.lance", work / "memory.lance", work / "table_s.json"
    shutil.rmtree(path, ignore_errors=True)
    vectors = Vectors.read(work)
    if not (scratch.exists() and seconds.exists()):
        shutil.rmtree(scratch, ignore_errors=True)
        seconds.unlink(missing_ok=True)
    table = Table.open(scratch) if scratch.exists() else None
    took: list[float] = json.loads(seconds.read_text("utf-8")) if seconds.exists() else []
    for start in range(len(table) if table else 0, vectors.size, ROWS_PER_COMMIT):
        started = time.perf_counter()
        blocks = itertools.islice(vectors.blocks(start), ROWS_PER_COMMIT // ROWS_PER_BLOCK)
        make_table(scratch, blocks, first_id=start, table=table)
        table = Table.open(scratch)
        write_whole(seconds, json.dumps([*took, time.perf_counter() - started]))
        took = json.loads(seconds.read_text("utf-8"))
        say(f"table: {len(table):,} of {vectors.size:,} passages")
    scratch.rename(path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"table_s": sum(took), "table_bytes": size}


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
    depths = (5, truth.shape[1])
    for k in depths:
        figures[f"p50_s@{k}"] = statistics.median(seconds_of_each(partial(index.search, k=k), vectors.queries))
    figures |= {"resident_bytes": resident_bytes(), "libraries_bytes": libraries}  # as it serves: one query at a time
    return figures | {f"recall@{k}": recall(index.search(vectors.queries, k)[1], truth[:, :k]) for k in depths}


def measure_memory(work: Path, kind: str) -> dict[str, float]:
    started = time.perf_counter()
    import faiss  # noqa: F401
    import lance  # noqa: F401

    from latentrag.memory import Memory
    from latentrag.memory.indexes.stored import StoredIndex

    libraries = resident_bytes()
    queries = np.load(work / "queries.npy")
    memory = Memory.open(work / "memory.lance", index=kind)
    memory.search(queries[:1], 5)
    figures = {"cold_s": time.perf_counter() - started}
    truth = np.load(work / "truth.npy")
    depths = (5, truth.shape[1])
    for k in depths:
        # What the first pass has read from the disk is in the system's cache for all that follow.
        drop_from_cache(work / "memory.lance")
        first = seconds_of_each(partial(memory.search, k=k), queries)
        figures |= {f"first_p50_s@{k}": statistics.median(first), f"first_p95_s@{k}": p95(first)}
        ways: dict[str, Callable[[np.ndarray], object]] = {
            f"p50_s@{k}": partial(memory.search, k=k),
            f"index_p50_s@{k}": partial(memory.index.search, k=k),
        }
        if isinstance(memory.index, StoredIndex):  # faiss alone: as many candidates, neither vectors nor scores
            ways[f"faiss_p50_s@{k}"] = proposing(memory.index.proposer, k, len(memory))
        times = in_turns(ways, queries)
        figures |= {name: statistics.median(took) for name, took in times.items()}
        figures[f"p95_s@{k}"] = p95(times[f"p50_s@{k}"])
    figures |= {"resident_bytes": resident_bytes(), "libraries_bytes": libraries}
    return figures | {f"recall@{k}": recall(np.array(places(memory, queries, k)), truth[:, :k]) for k in depths}


def measure_lance(work: Path, way: str) -> dict[str, float]:
    """On one core: Lance has threads of its own. With passages, vectors and scores, as ``Memory.search`` gives them."""
    import lance

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    libraries = resident_bytes()
    dataset = lance.dataset(work / f"{way}.lance")
    vectors, truth = Vectors.read(work), np.load(work / "truth.npy")
    columns = ["id", "title", "text", "source", "start", "end", "vector", "_distance"]

    def search(q: np.ndarray, k: int, probes: int, refine: int | None) -> list[int]:
        nearest = {"column": "vector", "q": q[0], "k": k, "nprobes": probes, "refine_factor": refine}
        found = dataset.to_table(columns=columns, nearest=nearest)
        return list(map(int, found["id"].to_pylist()))

    def tried(queries: np.ndarray, best: np.ndarray, k: int, probes: int, refine: int | None) -> tuple[float, float]:
        """Recall and the median of seconds."""
        started, found = [time.perf_counter()], []
        for q in queries:
            found.append(search(q[None], k, probes, refine))
            started.append(time.perf_counter())
        return recall(np.array(found), best[:, :k]), float(np.median(np.diff(started)))

    others = vectors.more_queries(NUM_QUERIES)
    best_of_others = exact(vectors, others, truth.shape[1])
    figures: dict[str, float] = {}
    for k, needed in LANCE_FINDS.items():
        reached, tries = list[tuple[float, int, int | None]](), list[tuple[float, int, int | None]]()
        for refine in LANCE_REFINES:
            for probes in LANCE_PROBES:
                share, seconds = tried(others, best_of_others, k, probes, refine)
                tries.append((share, probes, refine))
                if share >= needed:
                    reached.append((seconds, probes, refine))
                    break
        _, probes, refine = min(reached, key=itemgetter(0)) if reached else max(tries, key=itemgetter(0))
        took = seconds_of_each(partial(search, k=k, probes=probes, refine=refine), vectors.queries)
        figures |= {f"probes@{k}": probes, f"refine@{k}": refine or 0}
        figures |= {f"p50_s@{k}": statistics.median(took), f"p95_s@{k}": p95(took)}
        figures[f"recall@{k}"] = tried(vectors.queries, truth, k, probes, refine)[0]
    return figures | {"resident_bytes": resident_bytes(), "libraries_bytes": libraries}


def proposing(proposer: "Proposer", k: int, num_rows: int) -> Callable[[np.ndarray], object]:
    """A search for the candidates alone."""
    num = min(num_rows, proposer.num_rescored(k))
    return lambda q: proposer.propose(q[0], num, None)


def places(memory: Any, queries: np.ndarray, k: int) -> list[list[int]]:
    """Positions in the file of vectors, which are the passages' ids."""
    return [[int(z.id) for z in found] for found in memory.search(queries, k).passages]


def measure_edits(work: Path, kind: str) -> dict[str, float]:
    """Passages added, and others deleted: until they are found, and not found. Works on a copy of the table's log.

    Deleted are the best answers to the queries, which would be missed if anything still found them.
    """
    from latentrag.memory import Memory
    from latentrag.memory.table import Table

    copy = work / "edited.lance"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(work / "memory.lance", copy, copy_function=copied)
    vectors, truth = Vectors.read(work), np.load(work / "truth.npy")
    memory = Memory.open(copy, index=kind)
    figures = {"recall_before@5": recall(np.array(places(memory, vectors.queries, 5)), truth[:, :5])}
    gone = best_answers(truth, NUM_EDITED)
    started = time.perf_counter()
    memory = memory.delete(map(str, gone))
    memory.search(vectors.queries[:1], 5)
    figures |= {"deleted": float(len(gone)), "delete_s": time.perf_counter() - started}

    # Encoding is not what is measured: the new passages come with their vectors.
    new = vectors.more(NUM_EDITED)
    table = Table.open(copy)
    started = time.perf_counter()
    make_table(copy, new, first_id=vectors.size, table=table)
    memory = Memory(Table.open(copy), memory._indexes)  # noqa: SLF001
    found = memory.search(new[:1].astype(np.float32), 5)
    figures["add_s"] = time.perf_counter() - started
    assert found.version == memory.version
    wanted = np.flatnonzero(better_than_own(vectors, new, gone) < 5)
    found_by_own = places(memory, new.astype(np.float32), 5)
    figures |= {"added_wanted": float(len(wanted))}
    figures["added_found"] = float(np.mean([vectors.size + i in found_by_own[i] for i in wanted]))
    again = np.array(places(memory, vectors.queries, 5))
    figures["recall@5"] = recall_of_the_rest(again, truth, gone, new=vectors.size)
    more = vectors.more_queries(NUM_QUERIES_AFTER_EDITS)
    found_since = [again, *(np.array(places(memory, part, 5)) for part in np.split(more, len(more) // QUERIES_AT_ONCE))]
    figures |= {"queries": float(sum(map(len, found_since)))}
    figures["deleted_found"] = float(sum(np.isin(part, gone).sum() for part in found_since))
    shutil.rmtree(copy)
    return figures


def best_answers(truth: np.ndarray, num: int) -> np.ndarray:
    """Of all queries: first, second, ... until there are as many."""
    by_rank = truth.T.ravel()
    first = np.unique(by_rank, return_index=True)[1]
    best: np.ndarray = by_rank[np.sort(first)[:num]]
    return best


def copied(source: str, target: str) -> None:
    """Large files never change; those that a commit may write to are copied."""
    if {"data", "_indexes"} & set(Path(source).parts[-3:]):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def better_than_own(vectors: Vectors, new: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """(n,) how many passages have a larger inner product with a new vector than it has with itself."""
    queries, start = new.astype(np.float32), 0
    among = queries @ queries.T
    own = among.diagonal()[:, None]
    better = (among > own).sum(axis=1)
    for block in vectors.blocks():
        scores = queries @ block.astype(np.float32).T
        scores[:, gone[(gone >= start) & (gone < start + len(block))] - start] = -np.inf
        better += (scores > own).sum(axis=1)
        start += len(block)
    found: np.ndarray = better
    return found


def recall_of_the_rest(found: np.ndarray, truth: np.ndarray, gone: np.ndarray, *, new: int) -> float:
    """Of the old passages that were found, against the best old ones that are left."""
    scores = []
    for one, other in zip(found, truth, strict=True):
        old, left = one[one < new], other[~np.isin(other, gone)]
        if len(old):
            scores.append(len(np.intersect1d(old, left[: len(old)])) / len(old))
    return float(np.mean(scores))


STEPS: dict[str, Callable[..., dict[str, float]]] = {
    "table": fill_memory,
    "truth": find_truth,
    "build-faiss": build_faiss,
    "build-memory": build_memory,
    "build-lance": build_lance,
    "faiss": measure_faiss,
    "memory": measure_memory,
    "lance": measure_lance,
    "edits": measure_edits,
}


def in_process(work: Path, step: str, *arguments: object) -> dict[str, float]:
    """Run a step with one thread. Raises: CalledProcessError if it fails."""
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    command = [sys.executable, "-m", "benchmarks.memory_steps", str(work), step, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    print(json.dumps(STEPS[sys.argv[2]](Path(sys.argv[1]), *json.loads(sys.argv[3]))))
