"""The report of the Jeopardy! experiment: tables, paired differences, learning curves as SVG."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from running import between_marks, read_lines

from latentrag.evaluation.compare import Difference, compare
from latentrag.evaluation.intervals import Estimate
from latentrag.evaluation.metrics import Row
from latentrag.evaluation.report import RECALL_AT, read_run, report, settings_path
from latentrag.training.log import read_log

MEASURES = {
    "exact_match": "exact match",
    "f1": "F1",
    "title_recall@1": "title at 1",
    "title_recall@5": "title at 5",
    "title_recall@10": "title at 10",
    "title_recall@50": "title at 50",
    "recall@5": "answer at 5",
}
PAIRS = (
    ("frozen", "closed book"),
    ("BM25", "frozen"),
    ("query side", "frozen"),
    ("at once", "frozen"),
    ("sequence", "frozen"),
    ("sequence", "at once"),
    ("token", "sequence"),
    ("token", "frozen"),
    ("emdr2", "sequence"),
    ("emdr2", "frozen"),
    ("hindsight", "sequence"),
    ("hindsight", "frozen"),
)


@dataclass(frozen=True, slots=True)
class _Run:
    """A measured arm: its rows in the order of the clues."""

    rows: Sequence[Row]
    settings: Mapping[str, Any]


def write_report(
    out: Path, file: Path, *, arms: Sequence[str], options: Mapping[str, Any], machine: Mapping[str, Any]
) -> None:
    """Put tables and curves between the marks of the report, whose words are written by hand."""
    done = {arm: run for arm in arms if (run := _run(out, arm)) is not None}
    if not done:
        return
    curves = file.with_name("jeopardy-curves.svg")
    parts = [*_tables(done), _differences(done)]
    if _curves(out, list(done), curves):
        parts.append(f"![Development loss, health and title recall by step]({curves.name})")
    between_marks(file, "\n\n".join([*parts, _settings(options, machine)]), title="Jeopardy!")


def _slug(arm: str) -> str:
    return arm.replace(" ", "-")


def _run(out: Path, arm: str) -> _Run | None:
    """None if the arm is not there or not yet measured to its end."""
    file = out / f"{_slug(arm)}.jsonl"
    if not file.exists():
        return None
    record = json.loads(settings_path(file).read_text("utf-8"))
    if "metrics" not in record:
        return None
    settings, rows = read_run(file)
    return _Run(tuple(rows.values())[: record["examples"]], settings)  # more of them may be being asked


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{100 * estimate.mean:.1f}{_span(estimate, '.1f', 100)}"


def _span(found: Estimate | Difference, digits: str, scale: int) -> str:
    if found.low is None or found.high is None:
        return ""
    return f" [{scale * found.low:{digits}}, {scale * found.high:{digits}}]"


def _tables(done: Mapping[str, _Run]) -> list[str]:
    """Every arm on the clues that all have been asked, then those that have been asked more."""
    sizes = sorted({len(run.rows) for run in done.values()})
    return [
        _table({arm: run for arm, run in done.items() if len(run.rows) >= number}, number, first=number == sizes[0])
        for number in sizes
    ]


def _table(done: Mapping[str, _Run], number: int, *, first: bool) -> str:
    about = "In percent, with 95 % intervals; log p in nats per answer. " if first else "The same, "
    lines = [
        f"{about}{'The' if first else 'the'} first {number:,} clues.",
        "",
        "| arm | " + " | ".join(MEASURES.values()) + " | log p |",
        "|---" * (len(MEASURES) + 2) + "|",
    ]
    for arm, run in done.items():
        found = report(run.rows[:number], run.settings, recall_at=RECALL_AT).estimates
        log_p = found["log_likelihood_per_answer"]
        cells = [_percent(found.get(name)) for name in MEASURES]
        cells.append(f"{log_p.mean:.3f}{_span(log_p, '.3f', 1)}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _differences(done: Mapping[str, _Run]) -> str:
    lines = [
        "| paired difference, points | clues | exact match | p | title at 1 | title at 10 |",
        "|---|---|---|---|---|---|",
    ]
    for ours, theirs in PAIRS:
        if ours in done and theirs in done:
            number = min(len(done[arm].rows) for arm in (ours, theirs))
            with tempfile.TemporaryDirectory() as scratch:
                found = compare(*(_first(done[arm], number, Path(scratch) / arm) for arm in (ours, theirs))).differences
            cells = [
                f"{100 * d.difference:+.1f}{_span(d, '+.1f', 100)}" if d is not None else "–"
                for d in (found.get(name) for name in ("exact_match", "title_recall@1", "title_recall@10"))
            ]
            p = f"{found['exact_match'].p:.4f}"
            lines.append(f"| {ours} − {theirs} | {number:,} | {cells[0]} | {p} | {cells[1]} | {cells[2]} |")
    return "\n".join(lines)


def _first(run: _Run, number: int, folder: Path) -> Path:
    """A file of the first rows of a run."""
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in run.rows[:number]), "utf-8")
    settings_path(rows).write_text(json.dumps({"settings": run.settings}), "utf-8")
    return rows


def _settings(options: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    shown = {**{name: value for name, value in options.items() if value not in (0, 0.0, False, None)}, **machine}
    return "Settings: " + ", ".join(f"{name} {value}" for name, value in shown.items()) + "."


def _curves(out: Path, arms: Sequence[str], file: Path) -> bool:
    try:
        import matplotlib

        matplotlib.use("svg")
        matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "latentrag"}  # small, and the same every time
        from matplotlib import pyplot
    except ImportError:
        return False
    names = {"nll_per_token": "dev, −log p per token", "gap": "gap, nats", "kl": "KL(posterior‖prior), nats"}
    figure, axes = pyplot.subplots(1, len(names) + 1, figsize=(16, 3.8))
    for number, arm in enumerate(arms):
        line = {"marker": "o", "markersize": 3, "label": arm, "color": f"C{number}"}  # not every axis has every arm
        log = out / _slug(arm) / "log.jsonl"
        records = [r for r in read_log(log) if r["event"] == "dev"] if log.exists() else []
        found = [(r["step"], 100 * r["title_recall"]["10"]) for r in read_lines(out / _slug(arm) / "retriever.jsonl")]
        if found:
            axes[-1].plot(*zip(*found, strict=True), **line)
        for axis, (name, title) in zip(axes[:-1], names.items(), strict=True):
            points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), **line)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("step")
    if not any(axis.lines for axis in axes):
        pyplot.close(figure)
        return False
    axes[-1].set_title("title recall at 10, percent", fontsize=10)
    axes[-1].set_xlabel("step")
    if axes[0].lines:
        axes[0].legend(fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return True
