"""Two evaluations of the same examples: is one better, and is that more than chance?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentrag.errors import DataError
from latentrag.evaluation.intervals import LEVELS, RESAMPLES, means, resampled_means
from latentrag.evaluation.metrics import Row
from latentrag.evaluation.report import RECALL_AT, measured, read_run, task_of

if TYPE_CHECKING:
    from latentrag.evaluation.intervals import Array


@dataclass(frozen=True, slots=True)
class Difference:
    """A measure in two runs.

    Attributes:
        ours, theirs: its means.
        difference: ours − theirs, with the 95 % interval [low, high] of a paired bootstrap.
        p: two-sided; how often resampling puts the difference on the other side of 0, twice. Never below
            2 / (resamples + 1).
        wins, losses: examples where ours is higher, and lower.
    """

    ours: float
    theirs: float
    difference: float
    low: float
    high: float
    p: float
    wins: int
    losses: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs over the same examples, measure by measure; only what both have measured."""

    num_examples: int
    differences: Mapping[str, Difference]

    def as_record(self) -> dict[str, object]:
        """As JSON has it."""
        metrics = {name: asdict(difference) for name, difference in self.differences.items()}
        return {"examples": self.num_examples, "metrics": metrics}


def compare(ours: Path, theirs: Path, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Our run against theirs by paired bootstrap (Efron 1979): examples are resampled, each with both its results.

    Args:
        ours, theirs: files of rows, as ``evaluate`` writes them.
    Raises: DataError if they cannot be read or are not about the same examples.
    """
    (our_settings, our_rows), (their_settings, their_rows) = read_run(ours), read_run(theirs)
    task = task_of(our_settings)
    if task_of(their_settings) != task:
        raise DataError(f"{ours} has the task {task}, {theirs} {task_of(their_settings)}; evaluate both on one task")
    _check_same_examples(ours, our_rows, theirs, their_rows)
    ids = sorted(our_rows)
    recall_at = _recall_at(our_settings, their_settings)
    names, our_parts = measured([our_rows[name] for name in ids], task, recall_at=recall_at)
    _, their_parts = measured([their_rows[name] for name in ids], task, recall_at=recall_at)
    both = np.flatnonzero(our_parts[:, :, 1].any(axis=0) & their_parts[:, :, 1].any(axis=0))
    our_parts, their_parts = our_parts[:, both], their_parts[:, both]
    # The same seed draws the same examples for both.
    resampled = resampled_means(our_parts, resamples=resamples, seed=seed)
    resampled -= resampled_means(their_parts, resamples=resamples, seed=seed)
    differences = {
        names[m]: _difference(our_parts[:, [c]], their_parts[:, [c]], resampled[:, c]) for c, m in enumerate(both)
    }
    return Comparison(len(ids), differences)


def _difference(ours: Array, theirs: Array, resampled: Array) -> Difference:
    """Of one measure: its parts (n, 1, 2) in both runs, and the resampled differences of its mean (R,)."""
    our_mean, their_mean = float(means(ours)[0]), float(means(theirs)[0])
    resampled = resampled[~np.isnan(resampled)]
    low, high = np.quantile(resampled, LEVELS)
    # The observed sample counts as one of the resamples, so that p is never 0.
    tails = [(side.sum() + 1) / (len(resampled) + 1) for side in (resampled <= 0, resampled >= 0)]
    with np.errstate(invalid="ignore"):
        gain = ours[:, 0, 0] / ours[:, 0, 1] - theirs[:, 0, 0] / theirs[:, 0, 1]  # nan where it is not measured
    return Difference(
        our_mean,
        their_mean,
        our_mean - their_mean,
        float(low),
        float(high),
        min(1.0, 2 * float(min(tails))),
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
        if any(row.get(key) != their_rows[name].get(key) for key in ("x", "answers", "pattern", "titles")):
            raise DataError(f"example {name} is another one in {theirs}; evaluate both on the same examples")


def _recall_at(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[int]:
    """The usual k and those that the generators read, as far as both runs have searched."""
    depths = [settings.get("depth") or 0 for settings in (ours, theirs)]
    wanted = {*RECALL_AT, *(settings.get("k") or 1 for settings in (ours, theirs))}
    return sorted(k for k in wanted if k <= min(depths))
