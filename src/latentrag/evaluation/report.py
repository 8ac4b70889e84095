"""From one row an example to means with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from latentrag.evaluation.intervals import Estimate, estimates

if TYPE_CHECKING:
    from latentrag.evaluation.intervals import Array

Row: TypeAlias = dict[str, Any]
"""What is known of one example; ``evaluate`` says what the keys are."""

RECALL_AT = (1, 5, 10, 20, 50)

_Part: TypeAlias = tuple[float, float]
"""What an example adds to a mean, and how much that counts: 0 where it is not measured."""
_NOT_MEASURED: _Part = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Report:
    """A finished evaluation.

    Attributes:
        settings: how it was made.
        estimates: by name, what could be measured: exact_match, f1, recall@k (the first k passages hold an answer),
            title_recall@k (one of them is of the article that holds the evidence), log_likelihood_per_token
            (Σ log p(y|x) / Σ tokens, nats; y is the first answer).
        rows: the examples' own results, in the order of the examples.
    """

    settings: Mapping[str, Any]
    estimates: Mapping[str, Estimate]
    rows: tuple[Row, ...]

    def as_record(self) -> dict[str, Any]:
        """Everything but the rows, as JSON has it."""
        metrics = {name: asdict(estimate) for name, estimate in self.estimates.items()}
        return {"examples": len(self.rows), "settings": dict(self.settings), "metrics": metrics}


def report(rows: Sequence[Row], settings: Mapping[str, Any], *, recall_at: Sequence[int]) -> Report:
    """The report on at least one row.

    Args:
        recall_at: the k of recall@k and title_recall@k; no more than were searched.
    """
    names, parts = measured(rows, recall_at=recall_at)
    some = np.flatnonzero(parts[:, :, 1].any(axis=0))
    found = estimates(parts[:, some])
    return Report(settings, dict(zip([names[m] for m in some], found, strict=True)), tuple(rows))


def measured(rows: Sequence[Row], *, recall_at: Sequence[int]) -> tuple[list[str], Array]:
    """The names of M measures, and what n rows add to their means: parts (n, M, 2), as ``estimates`` has them."""
    measures = [_measures(row, recall_at) for row in rows]
    return list(measures[0]), np.array([list(each.values()) for each in measures])


def _measures(row: Row, recall_at: Sequence[int]) -> dict[str, _Part]:
    """The same names for every row."""
    has_passages = row["memory_version"] is not None
    parts: dict[str, _Part] = {
        "exact_match": (float(row["exact_match"]), 1.0),
        "f1": _NOT_MEASURED if row["f1"] is None else (row["f1"], 1.0),
    }
    for name, rank, is_measured in (
        ("recall", row["rank"], has_passages),
        ("title_recall", row["title_rank"], has_passages and bool(row["title"])),
    ):
        parts |= {f"{name}@{k}": _hit(rank, k) if is_measured else _NOT_MEASURED for k in recall_at}
    scored = row["log_likelihood"] is not None
    parts["log_likelihood_per_token"] = (row["log_likelihood"], float(row["num_tokens"])) if scored else _NOT_MEASURED
    return parts


def _hit(rank: int | None, k: int) -> _Part:
    return float(rank is not None and rank <= k), 1.0
