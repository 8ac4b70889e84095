"""The report of the removal experiment: every order's area over the curve, how often the answer changes, and top
citations that do not matter, under each judge."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running import between_marks

from latentrag.evaluation.intervals import bounded_interval, estimate, mean_interval, share_interval
from latentrag.evaluation.metrics import exact_match
from latentrag.evaluation.removal import area_over, descending, fall_curve, greedy_order

Row = dict[str, Any]

ORDERS = ("posterior", "prior", "attention", "asked citation", "random", "counterfactual")
"""The last one is the ceiling: it is made from what it is measured by."""
STEPS = 2
"""After so many removals the answer is decoded again."""
UNFELT = 0.1
"""Nats by which log p falls at most without a passage that does not matter."""


def tensors_of(row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(row["log_p_eta"], dtype=torch.float64), torch.tensor(row["log_p_theta"], dtype=torch.float64)


def orders_of(row: Row) -> dict[str, list[int]]:
    """Every order of the passages of a question, most important first."""
    log_p_eta, log_p_theta = tensors_of(row)
    shuffled = list(range(len(log_p_eta)))
    random.Random(row["name"]).shuffle(shuffled)  # noqa: S311  reproducible, not secret
    return {
        "posterior": descending((log_p_eta + log_p_theta.sum(dim=1)).tolist()),
        "prior": descending(log_p_eta.tolist()),
        "attention": descending(row["attention"]),
        "asked citation": descending(row["citation"]),
        "random": shuffled,
        "counterfactual": greedy_order(log_p_eta, log_p_theta),
    }


def beginnings(row: Row) -> list[tuple[int, ...]]:
    """The sets of passages that the orders take away in their first steps, each once."""
    steps = range(1, STEPS + 1)
    return sorted({tuple(sorted(order[:step])) for order in orders_of(row).values() for step in steps})


def key_of(gone: Sequence[int]) -> str:
    """A set of passages as the rows name it."""
    return ",".join(map(str, sorted(gone)))


def write_report(
    file: Path, answered: Sequence[Row], judged: Mapping[str, Sequence[Row]], *, about: str, num_empty: int
) -> None:
    """Put the tables between the marks of the report, whose words are written by hand.

    Args:
        num_empty: questions that were answered with nothing.
    """
    sets = sorted({row["dataset"] for row in answered})
    of_sets = ", ".join(f"{sum(row['dataset'] == name for row in answered)} of {name}" for name in sets)
    right = sum(row["right"] for row in answered)
    about = (
        f"{about}. {len(answered)} questions with an answer ({of_sets}; {num_empty} more were answered with nothing), "
        f"{right} of the answers exactly right."
    )
    parts = [about, "## Judged by the generator that answered", *_judgement(answered, answered)]
    by_name = {row["name"]: row for row in answered}
    for name, rows in judged.items():
        parts += [f"## Judged by {Path(name).name}", f"The first {len(rows)} of these questions."]
        parts += _judgement([by_name[row["name"]] for row in rows], rows)
    between_marks(file, "\n\n".join(parts), title="Removal")


def _judgement(asked: Sequence[Row], judged: Sequence[Row]) -> list[str]:
    """Orders come from the answering generator, falls and answers from the judge."""
    measures: dict[str, list[tuple[float, ...]]] = {name: [] for name in ORDERS}
    for row, judge in zip(asked, judged, strict=True):
        for name, order in orders_of(row).items():
            measures[name].append(_measured(judge, order))
    table = {name: np.array(rows, dtype=float) for name, rows in measures.items()}  # (n, 5)
    return ["\n".join(_areas(table)), "\n".join(_unfelt(table))]


def _measured(judge: Row, order: Sequence[int]) -> tuple[float, ...]:
    """Area over the curve; the first fall; whether the answer changes after one and after two removals; whether the
    first passage does not matter."""
    falls = fall_curve(*tensors_of(judge), order)
    changed = [not exact_match(_says(judge, order[:step]), [judge["y"]]) for step in range(1, STEPS + 1)]
    return area_over(falls), falls[0], *changed, not changed[0] and falls[0] < UNFELT


def _says(judge: Row, gone: Sequence[int]) -> str:
    return str(judge["says"][key_of(gone)])


def _areas(table: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| order | area over the curve, nats | posterior − this, paired | fall at the first removal, nats | answer "
        "changed by one removal | by two | posterior − this at one, points, paired |"
    )
    yield "|---" * 7 + "|"
    ours = table["posterior"]
    for name, found in table.items():
        is_ours = name == "posterior"
        label = f"{name} (ceiling)" if name == "counterfactual" else name
        yield (
            f"| {label} | {_mean(found[:, 0])} | {'' if is_ours else _gain(ours[:, 0] - found[:, 0])} | "
            f"{_mean(found[:, 1])} | {_share(found[:, 2])} | {_share(found[:, 3])} | "
            f"{'' if is_ours else _points(ours[:, 2] - found[:, 2])} |"
        )


def _unfelt(table: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"Top citations that do not matter: without the first passage of the order the answer stays and log p falls by "
        f"less than {UNFELT} nats."
    )
    yield ""
    yield "| order | share | posterior − this, points, paired |"
    yield "|---|---|---|"
    ours = table["posterior"][:, 4]
    for name, found in table.items():
        yield f"| {name} | {_share(found[:, 4])} | {'' if name == 'posterior' else _points(ours - found[:, 4])} |"


def _mean(values: Any) -> str:
    found = estimate(values, None)
    span = "" if found.low is None or found.high is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.mean:.2f}{span}"


def _gain(differences: Any) -> str:
    span = mean_interval(differences)
    return f"{differences.mean():+.2f}" + ("" if span is None else f" [{span[0]:+.2f}, {span[1]:+.2f}]")


def _share(values: Any) -> str:
    low, high = share_interval(int(values.sum()), len(values))
    return f"{100 * values.mean():.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _points(differences: Any) -> str:
    low, high = bounded_interval(differences, (-1.0, 1.0))
    return f"{100 * differences.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
