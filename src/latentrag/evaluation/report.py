"""From one row an example to means with intervals; and both on disk.

RUN.jsonl has a row an example; RUN.json beside it says how they were made, and at the end holds the report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from latentrag import io
from latentrag.errors import DataError, InputError
from latentrag.evaluation.intervals import Bounds, Estimate, estimate
from latentrag.evaluation.metrics import METRICS, CorpusMetric, Metric, Row, is_wordless
from latentrag.evaluation.resampling import Measure, pooled_estimate
from latentrag.training.tasks import OPEN_QA, TASKS

M = TypeVar("M", Metric, CorpusMetric)

LOG_LIKELIHOOD = "log_likelihood_per_answer"
_KEYS = {"settings", "examples", "metrics", "wordless_answers", "details"}
RECALL_AT = (1, 5, 10, 20, 50)


@dataclass(frozen=True, slots=True)
class Report:
    """A finished evaluation.

    Attributes:
        settings: how it was made.
        estimates: by name, what could be measured: the task's metrics, for open-domain questions exact_match, f1,
            recall@k (the first k passages hold an answer; unspaced_recall@k for scripts without spaces between words)
            and title_recall@k (one of them is of an article that holds the evidence); and log_likelihood_per_answer
            (the mean of log p(y|x), nats; y is the first answer), by which models with different tokenizers can be
            compared.
        rows: the examples' own results, in the order of the examples.
        details: what else the task's metrics say of all rows: of a classification the confusion of labels.
    """

    settings: Mapping[str, object]
    estimates: Mapping[str, Estimate]
    rows: tuple[Row, ...]
    details: Mapping[str, object] = field(default_factory=dict)

    def as_record(self) -> dict[str, object]:
        """Everything but the rows, as JSON has it."""
        metrics = {name: asdict(estimate) for name, estimate in self.estimates.items()}
        record = {"examples": len(self.rows), "settings": dict(self.settings), "metrics": metrics}
        return {**record, "wordless_answers": self.num_wordless, **({"details": self.details} if self.details else {})}

    @property
    def num_wordless(self) -> int:
        """Examples with an answer of which normalisation leaves nothing; such answers are compared as they stand."""
        return sum(any(map(is_wordless, row.get("answers", ()))) for row in self.rows)


def report(rows: Sequence[Row], settings: Mapping[str, object], *, recall_at: Sequence[int]) -> Report:
    """The report on at least one row.

    Args:
        recall_at: the k of recall@k and title_recall@k; no more than were searched.
    """
    found = {}
    for name, (values, bounds) in measured(rows, task_of(settings), recall_at=recall_at).items():
        known = [value for value in values if value is not None]
        if known:
            found[name] = estimate(known, bounds)
    for name, measure in pooled(rows, task_of(settings)).items():
        found[name] = pooled_estimate(measure, len(rows))
    found |= {LOG_LIKELIHOOD: found.pop(LOG_LIKELIHOOD)} if LOG_LIKELIHOOD in found else {}  # last, as ever
    details: dict[str, object] = {}
    for metric in _metrics(task_of(settings), CorpusMetric):
        details |= metric.details(rows)
    return Report(settings, found, tuple(rows), details)


def task_of(settings: Mapping[str, object]) -> str:
    """The task's name. Settings leave the usual one out."""
    return str(settings.get("task", OPEN_QA))


def measured(
    rows: Sequence[Row], task: str, *, recall_at: Sequence[int]
) -> dict[str, tuple[list[float | None], Bounds | None]]:
    """By the name of each measure the values of n rows, None where a row is not measured, and their bounds."""
    found: dict[str, tuple[list[float | None], Bounds | None]] = {}
    for metric in _metrics(task, Metric):
        for row in rows:
            for name, value in metric.measures(row, recall_at).items():
                found.setdefault(name, ([], metric.bounds))[0].append(value)
    found[LOG_LIKELIHOOD] = [row.get("log_likelihood") for row in rows], None
    return found


def pooled(rows: Sequence[Row], task: str) -> dict[str, Measure]:
    """By name the measures of all rows together."""
    found: dict[str, Measure] = {}
    for metric in _metrics(task, CorpusMetric):
        found |= metric.over(rows)
    return found


def _metrics(task: str, kind: type[M]) -> list[M]:
    return [metric for metric in (METRICS[name] for name in TASKS[task].metrics) if isinstance(metric, kind)]


# On disk


@contextmanager
def begun(rows_path: Path, settings: Mapping[str, object]) -> Iterator[dict[str, Row]]:
    """The rows that are there already, by id; none in a new file. This process has the file to itself in the block.

    A line that a kill cut short is removed.

    Raises: InputError if another process is in such a block, or if the rows were made with other settings and cannot
        be continued; DataError if the file of settings is something else, or something cannot be read or written.
    """
    if rows_path.suffix != ".jsonl":
        raise InputError(f"{rows_path} does not end with .jsonl; needed such a name, since a .json goes beside it")
    with ExitStack() as opened:
        with _explained(rows_path):
            if settings_path(rows_path).exists():
                _settings(rows_path)  # what stands under the name that follows from ours is ours, or stays as it is
            rows_path.parent.mkdir(parents=True, exist_ok=True)
            rows_path.touch()
            alone = opened.enter_context(io.exclusive(rows_path))
        if not alone:
            raise InputError(f"{rows_path} is being written by another evaluation; wait for it, or name another file")
        with _explained(rows_path):
            rows = _continued(rows_path, settings)
        yield rows


def _continued(rows_path: Path, settings: Mapping[str, object]) -> dict[str, Row]:
    if not rows_path.stat().st_size:
        io.write_json(settings_path(rows_path), {"settings": settings})
        return {}
    before = _settings(rows_path)
    if before != settings:
        raise InputError(_difference(rows_path, before, settings))
    rows = _rows(rows_path, unfinished=False)
    io.cut_unfinished_line(rows_path)
    return rows


def append(rows_path: Path, rows: Sequence[Row]) -> None:
    """Adds rows, each a line, which are on the disk when this returns."""
    with _explained(rows_path):
        io.append_lines(rows_path, rows, durable=True)


def finish(rows_path: Path, finished: Report) -> None:
    """Puts the report, which has the settings in it, in their place."""
    with _explained(rows_path):
        io.write_json(settings_path(rows_path), finished.as_record())


def read_run(rows_path: Path) -> tuple[dict[str, object], dict[str, Row]]:
    """Settings, and rows by id, of an evaluation. Raises: DataError if it cannot be read or has no rows."""
    with _explained(rows_path):
        rows = _rows(rows_path)
        if not rows:
            raise DataError(f"{rows_path} holds no rows; run `latentrag eval … --out {rows_path}` first")
        return _settings(rows_path), rows


def settings_path(rows_path: Path) -> Path:
    """Where the settings of a file of rows are."""
    return rows_path.with_suffix(".json")


def _settings(rows_path: Path) -> dict[str, object]:
    path = settings_path(rows_path)
    try:
        record = json.loads(path.read_bytes())
        settings = record["settings"] if record.keys() <= _KEYS else None
    except FileNotFoundError:
        raise DataError(f"{rows_path} has no {path.name} beside it, which says how it was made") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        settings = None
    if not isinstance(settings, dict) or "format" not in settings:
        raise DataError(f"{path} is not the settings file of an evaluation; name another file for the rows")
    return settings


def _rows(rows_path: Path, *, unfinished: bool = True) -> dict[str, Row]:
    rows = {}
    for number, row in io.read_lines(rows_path, unfinished=unfinished):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise DataError(f"{rows_path} line {number} is not a row of an evaluation; remove the line")
        rows[row["id"]] = row
    return rows


def _difference(rows_path: Path, before: Mapping[str, object], now: Mapping[str, object]) -> str:
    name = next(name for name in [*now, *before] if before.get(name) != now.get(name))
    return (
        f"{rows_path} was begun with {name}={before.get(name)!r}, this run has {now.get(name)!r}; "
        f"name another file, or delete it and {settings_path(rows_path).name}"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{error.filename or path}: {reason}; check the path, its permissions and the space") from error
