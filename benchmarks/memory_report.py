"""The tables of `benchmarks.memory`: figures, targets with what was measured beside them, and a projection."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latentrag.memory.indexes import ivf_rabitq

PARTS = ("index", "faiss")
"""Of a search, whose times are measured by themselves."""
Figures = Mapping[str, float]
PROJECTED = 21_000_000
OURS = "ivf-rabitq"


def searches(k: int) -> list[str]:
    """Figures of searches that not every way has."""
    first = [f"first_{percent}_s@{n}" for n in (5, k) for percent in ("p50", "p95")]
    return ["p95_s@5", f"p95_s@{k}", "index_p50_s@5", "faiss_p50_s@5", *first]


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one set of vectors: medians over the runs by way, what the builds took, and what edits did."""

    size: int
    dimension: int
    runs: Mapping[str, Figures]
    built: Mapping[str, Figures]
    edits: Mapping[str, Figures]

    @property
    def last(self) -> int:
        """The larger of the two K."""
        return max(int(key.partition("@")[2]) for of_way in self.runs.values() for key in of_way if "recall@" in key)


def medians(rows: Sequence[Figures]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def with_ratios(rows: Sequence[Figures], flat: Sequence[Figures] | None) -> list[dict[str, float]]:
    """And how each run compares with itself, and with exact search in the same round."""
    found = []
    for number, row in enumerate(rows):
        ratios = {f"over {part}": row["p50_s@5"] / row[f"{part}_p50_s@5"] for part in PARTS if f"{part}_p50_s@5" in row}
        if flat is not None:
            exact = flat[number]["p50_s@5"]
            ratios["to flat"] = row["p50_s@5"] / exact
            ratios |= {f"{part} to flat": row[f"{part}_p50_s@5"] / exact for part in PARTS if f"{part}_p50_s@5" in row}
        found.append({**row, **ratios})
    return found


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def ways_table(found: Measured) -> str:
    """In brackets against faiss's exact search, round by round."""
    k, flat = found.last, found.runs.get("faiss-flat")
    head = ["", "recall@5", f"recall@{k}", "p50 k=5, ms", f"p50 k={k}, ms", "p95 k=5, ms", f"p95 k={k}, ms"]
    head += ["its index k=5, ms", "faiss in it k=5, ms"]
    head += [f"{percent} from the disk k={n}, ms" for n in (5, k) for percent in ("p50", "p95")]
    head += ["resident, MB", "above the libraries, MB", "cold, s", "build, s", "build's peak, MB", "effort"]
    rows = []
    for way, of_way in found.runs.items():
        built = found.built.get(way, {})
        faster = f" (÷ {1 / of_way['to flat']:.3g})" if flat else ""
        smaller = f" (÷ {flat['resident_bytes'] / of_way['resident_bytes']:.3g})" if flat else ""
        rows.append(
            [
                way,
                f"{of_way['recall@5']:.3f}",
                f"{of_way[f'recall@{k}']:.3f}",
                f"{of_way['p50_s@5'] * 1e3:.2f}{faster}",
                f"{of_way[f'p50_s@{k}'] * 1e3:.2f}",
                *(f"{of_way[key] * 1e3:.2f}" if key in of_way else "" for key in searches(k)),
                f"{of_way['resident_bytes'] / 1e6:.0f}{smaller}",
                f"{(of_way['resident_bytes'] - of_way['libraries_bytes']) / 1e6:.0f}",
                f"{of_way['cold_s']:.2f}" if "cold_s" in of_way else "",
                f"{built['build_s']:.1f}" if built else "",
                f"{built['build_peak_bytes'] / 1e6:.0f}" if built else "",
                f"{built['effort']:g}" if "effort" in built else "",
            ]
        )
    return markdown(head, rows)


def targets_table(found: Measured, bounded: Measured | None, bound: int) -> str:
    """Each target with what was measured; nothing is rounded before it is compared."""
    rows: list[list[object]] = []

    def add(what: str, value: float, *, at_most: float | None = None, at_least: float | None = None) -> None:
        met = value <= at_most if at_most is not None else at_least is not None and value >= at_least
        needed = f"≤ {at_most:.4g}" if at_most is not None else f"≥ {at_least:.4g}"
        rows.append([what, needed, f"{value:.4g}", "yes" if met else "NO"])

    ours, flat, edits = found.runs.get(OURS), found.runs.get("faiss-flat"), found.edits.get(OURS)
    if ours:
        add("recall@5 against exact", ours["recall@5"], at_least=0.97)
        add(f"recall@{found.last} against exact", ours[f"recall@{found.last}"], at_least=0.95)
        if found.size < PROJECTED:
            add("cold open to first answer, s", ours["cold_s"], at_most=2)
        else:
            add("p50 k=5, ms", ours["p50_s@5"] * 1e3, at_most=15)
            add("resident, GB", ours["resident_bytes"] / 1e9, at_most=4)
            disk_bytes = found.built["table"]["table_bytes"] + found.built[OURS]["index_disk_bytes"]
            add("table and index on disk, GB", disk_bytes / 1e9, at_most=60)
        add("Memory.search over its index with rescoring, k=5", ours["over index"] - 1, at_most=0.15)
        add("Memory.search over faiss alone, k=5", ours["over faiss"] - 1, at_most=0.15)
    if ours and flat:
        add("p50 k=5 beside Flat", ours["to flat"], at_most=1 / 40)
        add("its index alone beside Flat", ours["index to flat"], at_most=1 / 40)
        add("resident memory beside Flat", ours["resident_bytes"] / flat["resident_bytes"], at_most=1 / 10)
    if edits:
        add(f"{edits['deleted']:.0f} deleted and gone, s", edits["delete_s"], at_most=3)
        add("1000 added and searchable, s", edits["add_s"], at_most=3)
        what = (
            f"found by their own vectors, of the {edits['added_wanted']:.0f} added that are among the best 5 for them"
        )
        add(what, edits["added_found"], at_least=0.97)
        add(f"deleted passages found by {edits['queries']:.0f} queries", edits["deleted_found"], at_most=0)
        add("recall@5 lost by the edits", edits["recall_before@5"] - edits["recall@5"], at_most=0.01)
    if bounded and OURS in bounded.built:
        what = f"peak of building {bounded.size:,} × {bounded.dimension} under {bound / 1e9:.3g} GB, GB"
        add(what, bounded.built[OURS]["build_peak_bytes"] / 1e9, at_most=bound / 1e9)
        add("recall@5 of that", bounded.runs[OURS]["recall@5"], at_least=0.97)
    return markdown(["target", "needed", "measured", "met"], rows)


def projection_table(small: Measured, large: Measured) -> str:
    """21 million passages from the slopes between two sizes of the same kind.

    RAM and disk grow with the rows. Building grows with the rows copied, and with the products of rows and lists, and
    of lists and sampled rows, that choosing lists takes; a search with the rows and centroids that it looks at. List
    and probe numbers are those that the library would take, with the larger one's effort.
    """
    sizes = [small.size, large.size]

    def fitted(values: Sequence[float], work: Sequence[float]) -> tuple[float, float]:
        """Intercept and slope through both points; neither is negative."""
        slope = max(0.0, (values[1] - values[0]) / (work[1] - work[0]))
        return max(0.0, values[1] - slope * work[1]), slope

    efforts = {m.size: m.built[OURS]["effort"] for m in (small, large)}

    def lists(size: int) -> tuple[int, int]:
        num_lists, effort = ivf_rabitq.default_lists(size), efforts.get(size, efforts[large.size])
        return num_lists, min(num_lists, round(effort * ivf_rabitq.default_probes(size, num_lists)))

    def looked_at(size: int) -> float:
        num_lists, num_probes = lists(size)
        return size * num_probes / num_lists + num_lists

    def products_per_row(size: int) -> float:
        num_lists, _ = lists(size)
        return num_lists + ivf_rabitq.SAMPLE_PER_LIST * ivf_rabitq.ITERATIONS * num_lists**2 / size

    rows = []
    for what, unit, values, work in (
        ("resident, served", 1e9, [m.runs[OURS]["resident_bytes"] for m in (small, large)], float),
        ("index in RAM", 1e9, [m.built[OURS]["index_ram_bytes"] for m in (small, large)], float),
        ("index and its files on disk", 1e9, [m.built[OURS]["index_disk_bytes"] for m in (small, large)], float),
        ("table on disk", 1e9, [m.built["table"]["table_bytes"] for m in (small, large)], float),
        ("p50 of Memory.search k=5, ms", 1e-3, [m.runs[OURS]["p50_s@5"] for m in (small, large)], looked_at),
        ("p50 of its index k=5, ms", 1e-3, [m.runs[OURS]["index_p50_s@5"] for m in (small, large)], looked_at),
    ):
        intercept, slope = fitted(values, [work(size) for size in sizes])
        projected = intercept + slope * work(PROJECTED)
        name = what if unit == 1e-3 else f"{what}, GB"
        rows.append([name, *(f"{value / unit:.3g}" for value in values), f"{projected / unit:.3g}"])
    seconds = [m.built[OURS]["build_s"] for m in (small, large)]
    per_row = [took / size for took, size in zip(seconds, sizes, strict=True)]
    intercept, slope = fitted(per_row, [products_per_row(size) for size in sizes])
    projected = (intercept + slope * products_per_row(PROJECTED)) * PROJECTED
    rows.append(["build, hours of one core", *(f"{s / 3600:.3g}" for s in seconds), f"{projected / 3600:.3g}"])
    head = ["", *(f"measured at {size:,}" for size in sizes), f"projected for {PROJECTED:,}"]
    looked = ", ".join(f"{size:,}: {lists(size)[1]} of {lists(size)[0]} lists" for size in (*sizes, PROJECTED))
    assert np.isfinite(projected)
    return f"{markdown(head, rows)}\n\nDimension {large.dimension}; looked at: {looked}."
