"""A memory's indexes beside raw faiss: recall, latency, resident memory, cold open, what edits cost, a bounded build.

    python -m benchmarks.memory --work FOLDER [--size 1000000] [--dimension 768] [--runs 3] [--like MEMORY]

Everything is made in FOLDER once: vectors, table, faiss files, indexes (about 14 KB a passage at 768 dimensions with
all ways; with --made-again there is no file of vectors). Every measurement is a process of its own with one thread, the
ways take turns, and its figures are kept in FOLDER as soon as it is done, so that a run that was ended goes on where it
was; delete `figures.json` to measure anew. ``memory`` is what users call, ``Memory.open(path).search``, passages and
vectors included; ``lance-ivf-rq`` is Lance's own index of 5 bits, with as few lists as find as much. Parts of the
report:

- the ways side by side, and what 1,000 passages added and 1,000 deleted cost;
- three times as many vectors of half the dimension, built under a bound of memory;
- a quarter of the vectors, from which and the whole 21 million are projected;
- with --like: a memory's real vectors, repeated with noise.

Markdown goes to stdout, targets beside the figures; what goes on to stderr.
"""

import argparse
import itertools
import json
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.memory_report import OURS, Measured, medians, projection_table, targets_table, ways_table, with_ratios
from benchmarks.memory_steps import (
    BREADTH,
    FAISS_WAYS,
    LANCE,
    MEMORY_WAYS,
    NUM_PROBES,
    drop_from_cache,
    faiss_file,
    in_process,
    say,
)
from benchmarks.memory_vectors import Vectors, write_whole

DEFAULT_WAYS = [*FAISS_WAYS, OURS]
FEW_WAYS = ["faiss-flat", OURS]
PARTS = ["edits", "bounded", "projection"]


class Kept:
    """Figures by what they are of, on the disk as soon as they are measured."""

    def __init__(self, work: Path) -> None:
        self._file = work / "figures.json"
        self.figures: dict[str, dict[str, float]] = {}
        if self._file.exists():
            self.figures = json.loads(self._file.read_text("utf-8"))

    def get(self, name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        if name not in self.figures:
            self.figures[name] = measure()
            write_whole(self._file, json.dumps(self.figures, indent=1) + "\n")
            say(f"{name}: " + ", ".join(f"{key} {value:.6g}" for key, value in self.figures[name].items()))
        return self.figures[name]


def measured(vectors: Vectors, ways: list[str], num_runs: int, *, bound: int | None, edits: bool) -> Measured:
    """Make what is missing, and measure what was not measured yet."""
    work = vectors.work
    kept = Kept(work)
    say(f"in {work}: {vectors.size} × {vectors.dimension}, {', '.join(ways)}")
    built = {"table": kept.get("table", lambda: in_process(work, "table"))}
    kept.get("truth", lambda: in_process(work, "truth"))
    for way in ways:
        if way == "flat":
            continue
        built[way] = kept.get(f"build {way}", partial(in_process, work, *build_step(way, bound)))
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number, way in itertools.product(range(1, num_runs + 1), ways):
        rows[way].append(kept.get(f"run {number} {way}", partial(one_run, work, way)))
    compared = {way: with_ratios(found, rows.get("faiss-flat")) for way, found in rows.items()}
    ours = [way for way in ways if way in MEMORY_WAYS and edits]
    edited = {way: kept.get(f"edits {way}", partial(in_process, work, "edits", way)) for way in ours}
    return Measured(
        vectors.size, vectors.dimension, {way: medians(found) for way, found in compared.items()}, built, edited
    )


def build_step(way: str, bound: int | None) -> tuple[str, *tuple[object, ...]]:
    """The name of what builds a way, and its arguments."""
    if way == LANCE:
        return ("build-lance",)
    return ("build-faiss", way) if way in FAISS_WAYS else ("build-memory", way, bound)


def one_run(work: Path, way: str) -> dict[str, float]:
    """From a cold cache."""
    if way == LANCE:
        drop_from_cache(work / f"{LANCE}.lance")
        return in_process(work, "lance", way)
    is_faiss = way in FAISS_WAYS
    drop_from_cache(faiss_file(work, way) if is_faiss else work / "memory.lance")
    return in_process(work, "faiss" if is_faiss else "memory", way)


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


def report(given: argparse.Namespace) -> str:
    """Measure, part by part. What is not in FOLDER itself is in folders of its own in it."""
    bound = int(given.max_memory_gb * 1e9)
    vectors = Vectors.make(given.work, given.size, given.dimension, made_again=given.made_again)
    like = given.like  # before the hours: is it there?
    real = None if like is None else Vectors.make(given.work / "real", given.size, given.dimension, like)
    whole = measured(vectors, given.ways, given.runs, bound=None, edits="edits" in given.parts)
    lines = [
        f"## {whole.size:,} × {whole.dimension}, made\n",
        f"`{json.dumps(described(vectors))}`\n",
        ways_table(whole),
    ]
    bounded = None
    if "bounded" in given.parts:
        more = Vectors.make(given.work / "bounded", 3 * given.size, given.dimension // 2)
        bounded = measured(more, [OURS], 1, bound=bound, edits=False)
        lines += [
            f"\n## {bounded.size:,} × {bounded.dimension}, built under {bound / 1e9:.3g} GB\n",
            ways_table(bounded),
        ]
    lines += ["\n## Targets\n", targets_table(whole, bounded, bound)]
    if "projection" in given.parts and OURS in given.ways:
        quarter = Vectors.make(given.work / "quarter", given.size // 4, given.dimension)
        small = measured(quarter, [OURS], given.runs, bound=None, edits=False)
        lines += ["\n## Projection\n", projection_table(small, whole)]
    if real is not None:
        found = measured(real, FEW_WAYS, given.runs, bound=None, edits="edits" in given.parts)
        lines += [f"\n## {found.size:,} × {found.dimension}, real ones repeated with noise\n", ways_table(found)]
        lines += ["\n", targets_table(found, None, bound)]
    return "\n".join(lines)


def all_figures(work: Path) -> dict[str, Any]:
    """What was measured in a folder and in those in it, each with what it was measured of."""
    folders = [folder for folder in (work, *sorted(work.iterdir())) if (folder / "figures.json").exists()]
    return {
        "whole" if folder == work else folder.name: {
            **described(Vectors.read(folder)),
            "figures": json.loads((folder / "figures.json").read_text("utf-8")),
        }
        for folder in folders
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder with room, which is kept")
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--like", type=Path, help="a memory whose vectors are repeated with noise, besides")
    parser.add_argument("--made-again", action="store_true", help="make vectors whenever they are read")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=[*FAISS_WAYS, *MEMORY_WAYS, LANCE], default=DEFAULT_WAYS)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--max-memory-gb", type=float, default=4.0, help="bound of the build of three times as many")
    parser.add_argument("--report", type=Path, help="where to write the report, too")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    given = parser.parse_args()
    text = report(given)
    if given.json:
        write_whole(given.json, json.dumps(all_figures(given.work), indent=1) + "\n")
    if given.report:
        write_whole(given.report, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
