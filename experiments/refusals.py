"""Whether an instruct model should be told that it may say when a passage does not hold the answer.

    make experiment-refusals             20 train questions of each set, half an hour of a core without AVX-512
    make experiment-refusals LIMIT=100   100; what has been answered is not answered again

Each passage is read alone, and those that do not hold the answer would add up to the same refusal. Two arms answer
questions of two train sets, drawn at random, with the good demo and its memory: by the usual instruction, and by the
same with a sentence that invites to refuse. Rows go to OUT/SET-ARM.jsonl; the tables are put into
docs/experiments/refusals.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from good_demo import AT_ONCE, K, Row, answered, difference, means
from running import between_marks, run

import latentrag
from latentrag.generator.chat import INSTRUCTION
from latentrag.training.data import order, read_examples

DATASETS = {"WebQuestions": "webquestions.train.jsonl.gz", "TriviaQA": "triviaqa.train.jsonl.gz"}
USUAL, INVITED = "usual instruction", "may refuse"
REFUSAL = "unknown"
INVITATION = f" If the passage does not hold the answer, say: {REFUSAL}."
REPORT = Path("docs/experiments/refusals.md")


def refuses(row: Row) -> bool:
    """Whether the answer is that there is none."""
    return str(row["text"]).strip().strip(".").casefold() == REFUSAL


def tables(rows: Mapping[str, Mapping[str, Sequence[Row]]]) -> str:
    """What each arm reaches, the paired differences, and how often the answer is the refusal."""
    heads = [
        "questions",
        "instruction",
        "n",
        "exact match",
        "F1",
        f"an answer in the {K} passages",
        "refused",
        "of them found",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, of_set in rows.items():
        for arm, of_arm in of_set.items():
            refused = [row for row in of_arm if refuses(row)]
            found = sum(row["rank"] is not None and row["rank"] <= K for row in refused)
            lines.append(f"{means(name, arm, of_arm)} {len(refused)} | {found} |")
    heads = ["paired difference", "n", "exact match", "F1"]
    lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [difference(f"{name}: {INVITED} less {USUAL}", each[INVITED], each[USUAL]) for name, each in rows.items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the question sets")
    parser.add_argument("--limit", type=int, default=20, help="questions of each set; a multiple of ten")
    parser.add_argument("--out", type=Path, default=Path("build/refusals"))
    given = parser.parse_args()
    torch.manual_seed(0)
    given.out.mkdir(parents=True, exist_ok=True)
    rags = {
        USUAL: latentrag.load("good", memory="good", k=K),
        INVITED: latentrag.load("good", memory="good", k=K, instruction=INSTRUCTION + INVITATION),
    }
    chosen = {}
    for name, file in DATASETS.items():
        every = read_examples(given.data / file).rows
        chosen[name] = [every[place] for place in order(len(every), epoch=0, seed=0)]
    rows: dict[str, dict[str, list[Row]]] = {}
    for limit in range(AT_ONCE, given.limit + 1, AT_ONCE):
        for name, examples in chosen.items():
            rows[name] = answered(rags, examples[:limit], given.out, name)
        between_marks(REPORT, tables(rows), title="Whether a model may refuse")
    print(REPORT)
    return 0


if __name__ == "__main__":
    run(main)
