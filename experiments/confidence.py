"""Whether a calibrated confidence is true: fitted on one half of a dev set, measured on the other.

    make experiment-confidence             400 questions of each set
    make experiment-confidence LIMIT=800   800; what has been answered is not answered again

The halves are made by the first byte of the SHA-256 of an example's id: even to fit, odd to measure. Intervals are
percentiles of 2,000 bootstrap draws of the measured questions. Rows go to OUT/SET.jsonl; an interrupted run goes on
where it stopped. The table is put into docs/experiments/confidence.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from answered import DATASETS, is_missing
from running import between_marks, is_for_fitting, run
from sklearn.metrics import roc_auc_score

import latentrag
from latentrag.errors import InputError
from latentrag.evaluation.calibration import reliability
from latentrag.evaluation.confidence import Fitted, fit, risk_coverage
from latentrag.evaluation.run import evaluate
from latentrag.options import DecodingOptions
from latentrag.training.data import order, read_examples

K = 5
OPTIONS = DecodingOptions(num_beams=4, max_tokens=16)
REPORT = Path("docs/experiments/confidence.md")
NUM_DRAWS = 2_000
Row = dict[str, Any]
Array = npt.NDArray[np.float64]


def fitted_on(rows: Sequence[Row]) -> Fitted:
    """A calibration from these rows."""
    right = [bool(row["exact_match"]) for row in rows]
    return fit([row["signals"] for row in rows], right, [math.exp(row["log_prob"]) for row in rows], {})


def skill(said: Array, right: Array) -> float:
    """Brier skill."""
    return 1 - float(np.square(said - right).mean()) / float(right.var())


def gain(said: Array, right: Array) -> float:
    """The accuracy of the surer half, as a multiple of the overall one."""
    half = next(each for each in risk_coverage(said.tolist(), (right > 0).tolist()) if each.coverage == 0.5)
    return half.accuracy / float(right.mean())


def auroc(said: Array, right: Array) -> float:
    """The probability that a right answer is surer than a wrong one."""
    return float(roc_auc_score(right, said))


def crosswise(rows: Sequence[Row]) -> tuple[list[float], list[bool]]:
    """What a calibration fitted on each half says of the other, and what was right: twice the answers to measure."""
    said: list[float] = []
    right: list[bool] = []
    for half in (True, False):
        calibration = fitted_on([row for row in rows if is_for_fitting(row["id"]) == half]).calibration
        others = [row for row in rows if is_for_fitting(row["id"]) != half]
        said += [calibration.probability(row["signals"]) for row in others]
        right += [bool(row["exact_match"]) for row in others]
    return said, right


def interval(of: Callable[[Array, Array], float], said: Array, right: Array) -> str:
    """A measure with its 95 % interval. Draws in which all or none are right are left out."""
    random = np.random.default_rng(0)
    draws = (random.integers(0, len(said), len(said)) for _ in range(NUM_DRAWS))
    values = [of(said[places], right[places]) for places in draws if 0 < right[places].mean() < 1]
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{of(said, right):.3f} [{low:.3f}, {high:.3f}]"


def line(source: str, name: str, said: Sequence[float], right: Sequence[bool]) -> str:
    """A row of the table."""
    curve = reliability([[each] for each in said], [[each] for each in right])
    sure, labels = np.array(said), np.array(right, float)
    cells = [
        source,
        name,
        str(len(right)),
        f"{labels.mean():.1%}",
        interval(skill, sure, labels),
        f"{curve.error:.3f} [{curve.error_low:.3f}, {curve.error_high:.3f}]",
        f"{curve.error_if_true:.3f}",
        interval(auroc, sure, labels),
        interval(gain, sure, labels),
    ]
    return f"| {' | '.join(cells)} |"


def table(rows: dict[str, list[Row]]) -> str:
    """The halves that were measured, by calibrations of the other halves, and by p(y|x) itself."""
    everything = [row for of_set in rows.values() for row in of_set]
    sets = {**rows, "both": everything}
    names = ["fitted on", "measured on", "n", "right", "Brier skill", "ECE", "ECE if true", "AUROC", "surer half / all"]
    lines, said = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"], []
    for name, of_set in sets.items():
        held_out = [row for row in of_set if not is_for_fitting(row["id"])]
        right = [bool(row["exact_match"]) for row in held_out]
        lines.append(line("p(y\\|x) itself", name, [math.exp(row["log_prob"]) for row in held_out], right))
        for source in dict.fromkeys((name, "both")):
            try:
                calibration = fitted_on([row for row in sets[source] if is_for_fitting(row["id"])]).calibration
            except InputError as error:
                said.append(f"Nothing is fitted on {source} alone: {error}.")
                continue
            lines.append(line(source, name, [calibration.probability(row["signals"]) for row in held_out], right))
    lines.append(line("both, each half on the other", "both", *crosswise(everything)))
    weights = fitted_on([row for row in everything if is_for_fitting(row["id"])]).calibration.weights
    listed = ", ".join(f"{name} {weight:+.2f}" for name, weight in weights.items())
    said.append(f"Weights of the standardised signals, fitted on both: {listed}.")
    return "\n\n".join(["\n".join(lines), *said])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, default=Path("build/confidence"))
    given = parser.parse_args()
    if is_missing(given.data):
        return 2
    torch.manual_seed(0)
    rag = latentrag.load(given.model, memory="demo", k=K)
    rows = {}
    for name, file in DATASETS.items():
        every = read_examples(given.data / file).rows
        chosen = [every[place] for place in order(len(every), epoch=0, seed=0)][: given.limit]
        out = given.out / f"{name}.jsonl"
        done = evaluate(
            rag, chosen, out, options=OPTIONS, signals=True, recall_at=[K], about={"model": given.model}, progress=True
        )
        rows[name] = list(done.rows)
    between_marks(REPORT, table(rows), title="Is the confidence true?")
    print(REPORT)
    return 0


if __name__ == "__main__":
    run(main)
