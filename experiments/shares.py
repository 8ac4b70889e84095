"""Whether shares are true: of the passages with 80 %, do 80 of 100 hold the answer?

    make experiment-shares             200 questions
    make experiment-shares LIMIT=1000  more; what has been measured is not measured again

Every question is answered from its K best passages; the share of each is its posterior under RAG-Sequence. Results go
to OUT/answered.jsonl, a line for a question, which the removal experiment reads too; an interrupted run goes on where
it stopped. Tables and the curve are put into docs/experiments/shares.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from answered import Judge, K, Row, all_rows, answer, is_missing, questions
from running import between_marks, run

import latentrag
from latentrag.assemble import open_memory
from latentrag.evaluation.calibration import Reliability, reliability
from latentrag.evaluation.removal import NEAR

ENOUGH = 10
"""Passages of a bin from which on a bootstrap says how sure its frequency is."""


def posterior(row: Row) -> list[float]:
    """p(z|x,y) of each passage, RAG-Sequence."""
    log_p = torch.tensor(row["log_p_eta"]).double() + torch.tensor(row["log_p_theta"]).double().sum(dim=1)
    return [float(share) for share in torch.softmax(log_p, dim=0)]


def prior(row: Row) -> list[float]:
    """p_η(z|x) of each passage."""
    return [float(share) for share in torch.tensor(row["log_p_eta"]).double().exp()]


def curves(rows: Sequence[Row]) -> dict[str, Reliability]:
    """What can be asked of the shares, each with its curve, as far as there are rows for it."""
    held = [row for row in rows if any(row["holds_answer"])]
    once = [row for row in rows if sum(row["holds_answer"]) == 1]
    right = [row for row in rows if row["right"] and any(row["holds_gold"])]
    wanted = {
        "posterior; all answers": (rows, posterior, "holds_answer"),
        "prior; all answers": (rows, prior, "holds_answer"),
        "posterior; answers that stand in a passage": (held, posterior, "holds_answer"),
        "posterior; in exactly one": (once, posterior, "holds_answer"),
        "posterior; right answers, any form of the answer": (right, posterior, "holds_gold"),
    }
    return {
        name: reliability([shares(row) for row in chosen], [row[field] for row in chosen])
        for name, (chosen, shares, field) in wanted.items()
        if chosen
    }


def write_report(file: Path, rows: Sequence[Row], *, about: str, num_empty: int) -> None:
    """Put tables and curve between the marks of the report, whose words are written by hand."""
    found = curves(rows)
    sets = sorted({row["dataset"] for row in rows})
    of_sets = ", ".join(f"{sum(row['dataset'] == name for row in rows)} of {name}" for name in sets)
    parts = [
        f"{about}. {len(rows)} questions with an answer ({of_sets}; {num_empty} more were answered with nothing).",
        "\n".join(_errors(found)),
    ]
    drawn = file.with_name("shares.svg")
    if draw(found, drawn):
        parts.append(f"![Share of the passages that hold the answer, by posterior]({drawn.name})")
    parts += ["\n".join(_bins(name, curve)) for name, curve in found.items()]
    between_marks(file, "\n\n".join(parts), title="Shares")


def _errors(found: Mapping[str, Reliability]) -> Iterator[str]:
    yield "| shares | questions | calibration error, points [95 %] | of true shares |"
    yield "|---|---|---|---|"
    for name, curve in found.items():
        yield (
            f"| {name} | {curve.num_questions} | {100 * curve.error:.1f} [{100 * curve.error_low:.1f}, "
            f"{100 * curve.error_high:.1f}] | {100 * curve.error_if_true:.1f} |"
        )


def _bins(name: str, curve: Reliability) -> Iterator[str]:
    yield f"{name[:1].upper()}{name[1:]}:"
    yield ""
    yield f"| share | passages | mean share | hold the answer [95 %, of {ENOUGH} passages or more] |"
    yield "|---|---|---|---|"
    for each in curve.bins:
        span = f" [{100 * each.holds_low:.1f}, {100 * each.holds_high:.1f}]" if each.num_passages >= ENOUGH else ""
        yield (
            f"| {100 * each.low:.0f} to {100 * each.high:.0f} % | {each.num_passages} | {100 * each.share:.1f} % | "
            f"{100 * each.holds:.1f} %{span} |"
        )


def draw(found: Mapping[str, Reliability], file: Path) -> bool:
    """The curves as SVG. Returns: False where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("svg")
        matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "latentrag"}  # small, and the same every time
        from matplotlib import pyplot
    except ImportError:
        return False
    figure, axis = pyplot.subplots(figsize=(7, 5))
    axis.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="true shares")
    for number, (name, curve) in enumerate(found.items()):
        x = [each.share for each in curve.bins]
        y = [each.holds for each in curve.bins]
        below = [max(0.0, each.holds - each.holds_low) for each in curve.bins]
        above = [max(0.0, each.holds_high - each.holds) for each in curve.bins]
        axis.errorbar(x, y, yerr=[below, above], marker="o", markersize=3, capsize=2, color=f"C{number}", label=name)
    axis.set_xlabel("mean share")
    axis.set_ylabel("share of passages that hold the answer")
    axis.legend(fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/shares"))
    parser.add_argument("--report", type=Path, default=Path("docs/experiments/shares.md"))
    parser.add_argument("--limit", type=int, default=200, help="questions, half of each set")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--memory", default="demo")
    given = parser.parse_args()
    if is_missing(given.data):
        return 2
    torch.set_num_threads(1)
    chosen = questions(given.data, given.limit)
    rag = latentrag.load(given.model, memory=open_memory(given.memory))
    with torch.no_grad():
        measure = partial(answer, Judge(rag, rag.generator))
        base = all_rows(given.out / "answered.jsonl", chosen, name=lambda asked: asked.name, measure=measure)
    rows = [row for row in base if row["y"]]
    about = f"{given.model} over {given.memory}, K = {K}, near duplicates from {NEAR} on left out"
    write_report(given.report, rows, about=about, num_empty=len(base) - len(rows))
    return 0


if __name__ == "__main__":
    run(main)
