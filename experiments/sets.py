"""Whether two passages read together answer what one does not: sets of two as values of z, against single passages.

    make experiment-sets                the demo's model, all questions
    make experiment-sets MODEL=good     the larger one; what has been measured is not measured again

Questions that need several articles, each with passages of its own (HotpotQA, 2WikiMultihopQA, MuSiQue), and
StrategyQA's over the demo's memory. γ is fitted by the marginal likelihood of the gold answers on the questions whose
id's SHA-256 begins with an even byte, and everything is measured on the others: log p of the gold answer from the same
scores, and exact match by decoding once with sets and once without. Rows go to OUT; an interrupted run goes on where it
stopped. The table is put into docs/experiments/sets.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from running import between_marks, is_for_fitting, read_lines, run

import latentrag
from latentrag import io
from latentrag.evaluation.intervals import mean_interval, paired_difference, paired_p
from latentrag.evaluation.run import evaluate
from latentrag.generator import CausalGenerator
from latentrag.model import Values, read_of, with_sets
from latentrag.options import DecodingOptions, RowOptions
from latentrag.rag import Rag
from latentrag.training.data import Example
from latentrag.training.tasks import read_task

K = 5
KEPT_BYTES = 8 * 2**30
DATASETS = {
    "HotpotQA": ("hotpotqa.with-context.dev.jsonl.gz", "open-qa", "passages"),
    "2WikiMultihopQA": ("2wikimultihopqa.with-context.dev.jsonl.gz", "open-qa", "passages"),
    "MuSiQue": ("musique.with-context.dev.jsonl.gz", "open-qa", "passages"),
    "StrategyQA": ("strategyqa.dev.jsonl.gz", "yes-no", None),
}
OPTIONS = DecodingOptions(num_beams=1, max_tokens=16)
REPORT = Path("docs/experiments/sets.md")
Row = dict[str, Any]
Array = npt.NDArray[np.float64]


@torch.no_grad()
def scored(rag: Rag, example: Example) -> Row:
    """log p_η (K) of the passages, and log p_θ(y|x,z) (K + sets) of the first gold answer, nats."""
    found = rag.retriever.retrieve([example.question], K)
    read = read_of(rag.generator, [example.question], with_sets(found, torch.tensor(0.0), num_top=K))
    targets = rag.generator.targets([example.answers[0]])
    evidence = read.evidence(targets)
    log_p_theta = evidence.log_p_theta[0].masked_fill(~targets.mask[0], 0.0).sum(dim=1)
    log_p_eta = torch.log_softmax(found.logits[0].double(), dim=0)
    return {"id": example.id, "log_p_eta": log_p_eta.tolist(), "log_p_theta": log_p_theta.tolist()}


def log_p(rows: Sequence[Row], bonus: float | None) -> Array:
    """(n,) log p(y|x) with γ; None: of single passages."""
    found = []
    for row in rows:
        prior, theta = np.array(row["log_p_eta"]), np.array(row["log_p_theta"])
        if bonus is not None:
            first, second = np.triu_indices(K, 1)
            prior = np.concatenate([prior, prior[first] + prior[second] + bonus])
            prior -= np.logaddexp.reduce(prior)
        found.append(np.logaddexp.reduce(prior + theta[: len(prior)]))
    return np.array(found)


def fitted(rows: Sequence[Row]) -> float:
    """γ of the largest likelihood, among −10, −9.95, … 10."""
    values = [step / 20 for step in range(-200, 201)]
    return values[int(np.argmax([log_p(rows, bonus).sum() for bonus in values]))]


def measured(name: str, rag: Rag, examples: Sequence[Example], task: str, out: Path) -> str:
    """A line of the table."""
    console = Console(stderr=True)
    file = out / f"{name}.scores.jsonl"
    done = {row["id"]: row for row in read_lines(file)}
    for example in track([each for each in examples if each.id not in done], f"{name}, scores", console=console):
        done[example.id] = scored(rag, example)
        io.append_lines(file, [done[example.id]], durable=True)
    rows = [done[example.id] for example in examples]
    bonus = fitted([row for row in rows if is_for_fitting(row["id"])])
    held_out = [row for row in rows if not is_for_fitting(row["id"])]
    gain = log_p(held_out, bonus) - log_p(held_out, None)
    low, high = mean_interval(gain) or (math.nan, math.nan)
    right = []
    for kind, values in (("singles", Values()), ("sets", Values.of(set_bonus=bonus))):
        rag.model = type(rag.model)(rag.retriever, rag.generator, values)
        asked = [example for example in examples if not is_for_fitting(example.id)]
        about = {"values": kind, "bonus": None if kind == "singles" else round(bonus, 3)}
        run_of = evaluate(
            rag,
            asked,
            out / f"{name}.{kind}.jsonl",
            options=OPTIONS,
            task=task,
            recall_at=[K],
            about=about,
            progress=True,
        )
        measure = "exact_match" if task == "open-qa" else "accuracy"
        right.append(np.array([float(row[measure]) for row in run_of.rows]))
    singles, sets = right
    difference, least, most = paired_difference(sets.tolist(), singles.tolist())
    p = paired_p((sets - singles).tolist())
    cells = [
        name,
        str(len(held_out)),
        f"{bonus:+.2f}",
        f"{gain.mean():+.3f} [{low:+.3f}, {high:+.3f}]",
        f"{singles.mean():.1%}",
        f"{sets.mean():.1%}",
        f"{difference:+.1%} [{least:+.1%}, {most:+.1%}]",
        f"{p:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("build/sets"))
    given = parser.parse_args()
    out = given.out / given.model
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "| questions | n | γ | log p of the gold answer, sets − singles | right, singles | sets | difference | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (file, task, field) in DATASETS.items():
        examples = read_task(given.data / file, RowOptions(task=task), passages_from=field).rows[: given.limit]
        if field is not None:
            examples = tuple(each for each in examples if len(each.given) >= K)
        num_given = None if field is None else max(len(each.given) for each in examples)
        rag = latentrag.load(given.model, memory=given.model, num_given=num_given, k=K)
        if isinstance(rag.generator, CausalGenerator):
            rag.generator.keep_passages(KEPT_BYTES)  # read once for scores and both ways of decoding
        lines.append(measured(name, rag, examples, task, out))
        print(lines[-1], flush=True)
        between_marks(REPORT, f"Model: {given.model}.\n\n" + "\n".join(lines), title="Two passages read together")
    return 0


if __name__ == "__main__":
    run(main)
