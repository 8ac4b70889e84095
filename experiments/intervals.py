"""How often intervals cover and comparisons cry wolf, by simulation, from one question to a thousand.

    make experiment-intervals            minutes; writes docs/experiments/intervals.md

Measures of all examples together (BLEU, macro F1, distinct trigrams) are tried with `--pooled`, minutes.

Each interval is tried on distributions of its kind, and each is said with the mean over them and the lowest. A test is
tried where two models are equally good: the share of its p at most 0.05 should be at most 5 %.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from running import between_marks, run

from latentrag.evaluation import intervals, resampling
from latentrag.evaluation.intervals import UNIT, bounded_interval, paired_p
from latentrag.evaluation.labels import MACRO_F1
from latentrag.evaluation.resampling import pooled_difference, pooled_estimate
from latentrag.evaluation.texts import BLEU, DISTINCT_TRIGRAMS, bleu_counts

SIZES = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)

Random = np.random.Generator
Draw = Callable[[Random, int], Any]
"""n values."""


@dataclass(frozen=True, slots=True)
class Law:
    """A distribution, and its mean."""

    draw: Draw
    mean: float


def _share(p: float) -> Law:
    return Law(lambda random, n: (random.random(n) < p).astype(float), p)


def _f1(none: float, whole: float) -> Law:
    """0 and 1 with these chances, else something between."""

    def draw(random: Random, n: int) -> Any:
        u = random.random(n)
        return np.where(u < none, 0.0, np.where(u < none + whole, 1.0, random.beta(2, 2, n)))

    return Law(draw, whole + (1 - none - whole) / 2)


def _won_and_lost(won: float, lost: float, size: float = 1.0) -> Law:
    """Differences: +size and −size with these chances, else 0."""

    def draw(random: Random, n: int) -> Any:
        u = random.random(n)
        return np.where(u < won, size, np.where(u < won + lost, -size, 0.0))

    return Law(draw, (won - lost) * size)


SHARES = [_share(p) for p in (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 0.95)]
F1 = [_f1(*chances) for chances in ((0.95, 0.04), (0.9, 0.05), (0.7, 0.1), (0.3, 0.3), (0.0, 0.9))]
DIFFERENCES = [
    _won_and_lost(*chances)
    for chances in (
        (0.01, 0.0),
        (0.05, 0.0),
        (0.1, 0.05),
        (0.2, 0.1),
        (0.3, 0.3),
        (0.5, 0.05),
        (0.9, 0.05),
        (0.3, 0.1, 0.4),
    )
]
LOG_P = {
    "normal": Law(lambda random, n: random.normal(size=n), 0.0),
    "exponential": Law(lambda random, n: -random.exponential(size=n), -1.0),
    "gamma, shape 1/2": Law(lambda random, n: -random.gamma(0.5, size=n), -0.5),
    "log-normal, σ = 0.75": Law(lambda random, n: -np.exp(0.75 * random.normal(size=n)), -float(np.exp(0.75**2 / 2))),
    "Laplace": Law(lambda random, n: random.laplace(size=n), 0.0),
    "Student's, 3 degrees": Law(lambda random, n: random.standard_t(3, size=n), 0.0),
}
HARD_LOG_P = Law(lambda random, n: -random.exponential(size=n) * np.where(random.random(n) < 0.2, 5.0, 0.5), -1.4)
"""A fifth of the questions is ten times as improbable."""

EQUALS: Mapping[str, Draw] = {
    "shares": lambda random, n: _won_and_lost(0.15, 0.15).draw(random, n),
    "rare shares": lambda random, n: _won_and_lost(0.02, 0.02).draw(random, n),
    "F1": lambda random, n: F1[2].draw(random, n) - F1[2].draw(random, n),
    "log p": lambda random, n: random.gamma(0.5, size=n) - random.gamma(0.5, size=n),
}
SKEWED: Draw = lambda random, n: random.exponential(size=n) - 1  # noqa: E731
"""Equal means, and yet no symmetry: what the test of signs does not promise to stand."""


def covered(
    law: Law, find: Callable[[Any], tuple[float, float] | None], n: int, *, repeats: int, seed: int = 0
) -> float:
    """The share of samples of n values whose interval holds the mean; nan where there is none."""
    random, hits = np.random.default_rng([seed, n]), 0
    for _ in range(repeats):
        found = find(law.draw(random, n))
        if found is None:
            return float("nan")
        hits += found[0] - 1e-12 <= law.mean <= found[1] + 1e-12
    return hits / repeats


def false_alarms(draw: Draw, n: int, *, repeats: int, seed: int = 0) -> float:
    """The share of comparisons of n equal questions whose p is at most 0.05."""
    random = np.random.default_rng([seed, n])
    return sum(paired_p(draw(random, n)) <= 0.05 for _ in range(repeats)) / repeats


def coverage(n: int, *, repeats: int) -> Iterator[tuple[str, list[float]]]:
    """By kind the coverage of each of its laws."""
    yield "shares", [covered(law, lambda x: intervals.interval(x, UNIT), n, repeats=repeats) for law in SHARES]
    yield "F1", [covered(law, lambda x: intervals.interval(x, UNIT), n, repeats=repeats) for law in F1]
    yield (
        "differences",
        [covered(law, lambda x: bounded_interval(x, (-1.0, 1.0)), n, repeats=repeats) for law in DIFFERENCES],
    )
    laws = [*LOG_P.values(), HARD_LOG_P]
    yield "log p", [covered(law, intervals.mean_interval, n, repeats=repeats) for law in laws]


def table(sizes: Sequence[int], *, repeats: int) -> Iterator[str]:
    names = ["shares", "F1", "differences of these", "log p", "log p, a fifth 10 times as improbable"]
    alarms = [*EQUALS, "log p, skewed"]
    yield "| n | " + " | ".join([*(f"{name}" for name in names), *(f"alarms: {name}" for name in alarms)]) + " |"
    yield "|---" * (1 + len(names) + len(alarms)) + "|"
    for n in sizes:
        print(f"n = {n}", file=sys.stderr, flush=True)
        kinds = dict(coverage(n, repeats=repeats))
        *usual, hard = kinds.pop("log p")
        cells = [f"{_percent(np.mean(each))}, {_percent(min(each))}" for each in (*kinds.values(), usual)]
        cells.append(_percent(hard))
        fewer = repeats if n < 100 else repeats // 10
        cells += [_percent(false_alarms(draw, n, repeats=fewer)) for draw in (*EQUALS.values(), SKEWED)]
        yield f"| {n:,} | " + " | ".join(cells) + " |"


# Measures of all examples together: a population of made rows, of which n are drawn.

POOLED_SIZES = (50, 100)
_WORDS = [f"w{i}" for i in range(400)]


def _sentence(random: Random, length: int) -> list[str]:
    """Words of which few are frequent, as in texts."""
    return [_WORDS[min(int(rank) - 1, 399)] for rank in random.zipf(1.3, size=length)]


def _text_rows(random: Random, n: int, *, kept: float) -> list[dict[str, Any]]:
    """Answers that keep each word of their reference with this chance."""
    rows = []
    for _ in range(n):
        gold = _sentence(random, int(random.integers(5, 15)))
        said = [word if random.random() < kept else _sentence(random, 1)[0] for word in gold]
        text, answers = " ".join(said), [" ".join(gold)]
        rows.append({"text": text, "answers": answers, "bleu_counts": bleu_counts(text, answers)})
    return rows


def _label_rows(random: Random, n: int, *, right: float) -> list[dict[str, Any]]:
    """Labels of which one is rare, each taken for another with the same chance."""
    labels = ["a", "b", "c"]
    rows = []
    for _ in range(n):
        gold = labels[random.choice(3, p=[0.5, 0.35, 0.15])]
        said = gold if random.random() < right else labels[random.integers(3)]
        rows.append({"choices": labels, "answers": [gold], "text": said})
    return rows


Rows = Callable[..., list[dict[str, Any]]]
POOLED: Mapping[str, tuple[Any, Rows, Mapping[str, float], Mapping[str, float]]] = {
    "bleu": (BLEU, _text_rows, {"kept": 0.6}, {"kept": 0.6}),
    "macro_f1": (MACRO_F1, _label_rows, {"right": 0.6}, {"right": 0.6}),
    "distinct_trigrams": (DISTINCT_TRIGRAMS, _text_rows, {"kept": 0.6}, {"kept": 0.6}),
}
"""Metric, what draws rows, and its settings for two models that are equally good."""


def pooled_coverage(name: str, n: int, *, repeats: int, seed: int = 0) -> tuple[float, float, float]:
    """Of a measure over n rows: how often the interval holds its mean over samples of n, how often that of the
    difference of two equal models holds 0, and how often p of these is at most 0.05."""
    metric, draw, ours, theirs = POOLED[name]
    random = np.random.default_rng([seed, n])
    found, holds_none, alarms = [], 0, 0
    for _ in range(repeats):
        rows = [*draw(random, n, **ours), *draw(random, n, **theirs)]
        measure = metric.over(rows)[name]
        found.append(pooled_estimate(measure, n))
        _, _, interval, p = pooled_difference(measure, n)
        holds_none += interval is not None and interval[0] <= 0 <= interval[1]
        alarms += p <= 0.05
    truth = float(np.mean([each.mean for each in found]))
    covers = sum((each.low or 0.0) <= truth <= (each.high or 1.0) for each in found)
    return covers / repeats, holds_none / repeats, alarms / repeats


def pooled_table(sizes: Sequence[int], *, repeats: int) -> Iterator[str]:
    columns = [f"{name}: {what}" for name in POOLED for what in ("interval", "difference", "alarms")]
    yield "| n | " + " | ".join(columns) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for n in sizes:
        print(f"n = {n}", file=sys.stderr, flush=True)
        cells = [_percent(share) for name in POOLED for share in pooled_coverage(name, n, repeats=repeats)]
        yield f"| {n:,} | " + " | ".join(cells) + " |"


def _percent(share: Any) -> str:
    return "none" if np.isnan(share) else f"{100 * share:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--report", type=Path, default=Path("docs/experiments/intervals.md"))
    parser.add_argument("--pooled", action="store_true", help="the other table alone, printed; --repeats 200")
    given = parser.parse_args()
    if given.pooled:
        resampling.NUM_HALVES, resampling.NUM_EXCHANGES = 100, 99  # a quarter and a tenth of the usual, for time
        print("\n".join(pooled_table(POOLED_SIZES, repeats=given.repeats)))
        return 0
    wide = 200 * (0.05 * 0.95 / (given.repeats // 10)) ** 0.5
    about = (
        "In percent: how often the 95 % interval holds the true mean, mean over the distributions and lowest of them "
        f"({given.repeats:,} samples each), and how often a comparison of two equal models has p ≤ 0.05 (as many, from "
        f"100 questions on a tenth: two standard errors of 5 % are then {wide:.1f})."
    )
    content = about + "\n\n" + "\n".join(table(SIZES, repeats=given.repeats))
    between_marks(given.report, content, title="Intervals and comparisons")
    print(content)
    return 0


if __name__ == "__main__":
    run(main)
