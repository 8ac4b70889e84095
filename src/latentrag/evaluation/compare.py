"""Two evaluations of the same examples: is one better, and is that more than chance?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentrag.errors import DataError
from latentrag.evaluation.intervals import Bounds, bounded_interval, mean_interval, paired_p
from latentrag.evaluation.metrics import Row
from latentrag.evaluation.report import LOG_LIKELIHOOD, RECALL_AT, measured, pooled, read_run, task_of
from latentrag.evaluation.resampling import pooled_difference

if TYPE_CHECKING:
    from latentrag.evaluation.intervals import Array

_OF_RANKINGS = {"unit": "with one --by", "judgements": "against the same --qrels"}
"""Settings by which measures of rankings are of different things, and what to do."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A measure in two runs.

    Attributes:
        ours, theirs: its means.
        difference: ours − theirs, with the 95 % interval [low, high]; None where they are too few for one.
        p: two-sided, that there is no difference: ``intervals.paired_p``.
        wins, losses: examples where ours is higher, and lower; None for a measure of all examples together.
    """

    ours: float
    theirs: float
    difference: float
    low: float | None
    high: float | None
    p: float
    wins: int | None
    losses: int | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs over the same examples, measure by measure; only what both have measured."""

    num_examples: int
    differences: Mapping[str, Difference]

    def as_record(self) -> dict[str, object]:
        """As JSON has it."""
        metrics = {name: asdict(difference) for name, difference in self.differences.items()}
        return {"examples": self.num_examples, "metrics": metrics}


def compare(ours: Path, theirs: Path, *, seed: int = 0) -> Comparison:
    """Our run against theirs, example by example.

    Args:
        ours, theirs: files of rows, as ``evaluate`` writes them.
        seed: of what is drawn: signs where p is not counted out, and halves and exchanges of rows.
    Raises: DataError if they cannot be read, are not about the same examples, or were not measured in one way.
    """
    (our_settings, our_rows), (their_settings, their_rows) = read_run(ours), read_run(theirs)
    task = task_of(our_settings)
    if task_of(their_settings) != task:
        raise DataError(f"{ours} has the task {task}, {theirs} {task_of(their_settings)}; evaluate both on one task")
    formats = our_settings.get("format"), their_settings.get("format")
    if formats[0] != formats[1]:
        raise DataError(
            f"{ours} has format={formats[0]!r}, {theirs} {formats[1]!r}, which measure otherwise; "
            "evaluate the older anew"
        )
    for name, remedy in _OF_RANKINGS.items():
        our_value, their_value = our_settings.get(name), their_settings.get(name)
        if our_value != their_value:
            raise DataError(f"{ours} has {name}={our_value!r}, {theirs} {their_value!r}; evaluate both {remedy}")
    _check_same_examples(ours, our_rows, theirs, their_rows)
    ids = sorted(our_rows)
    recall_at = _recall_at(our_settings, their_settings)
    ours_by_name = measured([our_rows[name] for name in ids], task, recall_at=recall_at)
    theirs_by_name = measured([their_rows[name] for name in ids], task, recall_at=recall_at)
    differences = {}
    for name, (values, bounds) in ours_by_name.items():
        both = zip(values, theirs_by_name[name][0], strict=True)
        pairs = [(our, their) for our, their in both if our is not None and their is not None]
        if pairs:
            differences[name] = difference(np.array(pairs, dtype=float), bounds, seed)
    all_rows = [*(our_rows[name] for name in ids), *(their_rows[name] for name in ids)]
    for name, measure in pooled(all_rows, task).items():
        our, their, found, p = pooled_difference(measure, len(ids), seed=seed)
        low, high = found or (None, None)
        differences[name] = Difference(our, their, our - their, low, high, p, None, None)
    differences |= {LOG_LIKELIHOOD: differences.pop(LOG_LIKELIHOOD)} if LOG_LIKELIHOOD in differences else {}
    return Comparison(len(ids), differences)


def values_of_run(
    settings: Mapping[str, object], rows: Sequence[Row]
) -> dict[str, tuple[list[float | None], Bounds | None]]:
    """By the name of each measure of an evaluation the values of its rows, and their bounds."""
    return measured(rows, task_of(settings), recall_at=_recall_at(settings, settings))


def difference(pairs: Array, bounds: Bounds | None, seed: int = 0) -> Difference:
    """Of one measure: its values (n, 2) in both runs, each between ``bounds``; None: there are none."""
    gain = pairs[:, 0] - pairs[:, 1]
    width = None if bounds is None else bounds[1] - bounds[0]
    found = mean_interval(gain) if width is None else bounded_interval(gain, (-width, width))
    low, high = found or (None, None)
    our_mean, their_mean = (float(mean) for mean in pairs.mean(axis=0))
    return Difference(
        our_mean,
        their_mean,
        our_mean - their_mean,
        low,
        high,
        paired_p(gain.tolist(), seed=seed),
        int((gain > 0).sum()),
        int((gain < 0).sum()),
    )


def _check_same_examples(ours: Path, our_rows: Mapping[str, Row], theirs: Path, their_rows: Mapping[str, Row]) -> None:
    for here, rows, there, others in ((ours, our_rows, theirs, their_rows), (theirs, their_rows, ours, our_rows)):
        alone = sorted(rows.keys() - others.keys())
        if alone:
            raise DataError(
                f"{here} has {len(rows)} examples and {there} {len(others)}; {len(alone)} are only in {here}, "
                f"{alone[0]} first; evaluate both on the same examples"
            )
    for name, row in our_rows.items():
        other = their_rows[name]
        is_other = any(row.get(key) != other.get(key) for key in ("x", "answers", "pattern", "titles", "choices"))
        # Rows of earlier versions say nothing of the turns before the question.
        if is_other or ("history" in row and "history" in other and row["history"] != other["history"]):
            raise DataError(f"example {name} is another one in {theirs}; evaluate both on the same examples")


def _recall_at(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[int]:
    """The usual k and those that the generators read, as far as both runs have searched."""
    depths = [settings.get("depth") or 0 for settings in (ours, theirs)]
    wanted = {*RECALL_AT, *(settings.get("k") or 1 for settings in (ours, theirs))}
    return sorted(k for k in wanted if k <= min(depths))
