"""What the good demo's chat template is worth beside the plain prompt, and the good demo beside the small one.

    make experiment-good             20 questions of each set, an hour and a half of a core without AVX-512
    make experiment-good LIMIT=400   400; what has been answered is not answered again

Three arms answer the same questions of two dev sets, drawn at random, each with its demo's own memory: the good demo by
its chat template; the same model by the prompt that models without such a template get; the small demo. The arms take
turns, ten questions each, so that a run which was interrupted has three answers to a question. Rows go to
OUT/SET-ARM.jsonl; the tables are put into docs/experiments/good-demo.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running import between_marks, run

import latentrag
from latentrag.evaluation.intervals import bounded_interval, paired_difference
from latentrag.evaluation.run import evaluate
from latentrag.generator.prompt import PromptTemplate
from latentrag.options import DecodingOptions
from latentrag.rag import Rag
from latentrag.training.data import Example, order, read_examples

DATASETS = {"WebQuestions": "webquestions.dev.jsonl.gz", "TriviaQA": "triviaqa.dev.jsonl.gz"}
CHAT, PLAIN, SMALL = "chat template", "plain prompt", "small demo"
ARMS = {CHAT: "good", PLAIN: "good", SMALL: "demo"}
K = 5
AT_ONCE = 10
OPTIONS = DecodingOptions(num_beams=1, max_tokens=16)
REPORT = Path("docs/experiments/good-demo.md")

Row = Mapping[str, Any]


def opened(arm: str, out: Path) -> Rag:
    """The model of an arm, with its own memory."""
    if arm != PLAIN:
        return latentrag.load(ARMS[arm], memory=ARMS[arm], k=K)
    file = out / "plain.json"
    file.write_text(json.dumps({"kind": PromptTemplate.kind}), "utf-8")
    return latentrag.load(ARMS[arm], memory=ARMS[arm], k=K, template=file)


def answered(rags: Mapping[str, Rag], examples: Sequence[Example], out: Path, name: str) -> dict[str, list[Row]]:
    """By arm, a row for each example."""
    rows: dict[str, list[Row]] = {}
    for until in range(AT_ONCE, len(examples) + AT_ONCE, AT_ONCE):
        for arm, rag in rags.items():
            done = evaluate(
                rag,
                examples[:until],
                out / f"{name}-{arm.replace(' ', '-')}.jsonl",
                options=OPTIONS,
                recall_at=[K],
                about={"arm": arm},
                progress=True,
            )
            rows[arm] = list(done.rows)
    return rows


def values(rows: Sequence[Row], key: str) -> list[float]:
    return [float(row[key]) for row in rows]


def means(name: str, arm: str, rows: Sequence[Row]) -> str:
    """A row of the first table."""
    cells = [name, arm, str(len(rows))]
    for each in (values(rows, "exact_match"), values(rows, "f1"), [float(found(row)) for row in rows]):
        low, high = bounded_interval(np.asarray(each), (0.0, 1.0))
        cells.append(f"{np.mean(each):.3f} [{low:.3f}, {high:.3f}]")
    return f"| {' | '.join(cells)} |"


def found(row: Row) -> bool:
    """Whether one of the passages that were read holds an answer."""
    return row["rank"] is not None and row["rank"] <= K


def difference(name: str, ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    """A row of the second table."""
    cells = [name, str(len(ours))]
    for key in ("exact_match", "f1"):
        mean, low, high = paired_difference(values(ours, key), values(theirs, key))
        cells.append(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    return f"| {' | '.join(cells)} |"


def tables(rows: Mapping[str, Mapping[str, Sequence[Row]]]) -> str:
    """What each arm reaches, and the paired differences."""
    heads = ["questions", "answered by", "n", "exact match", "F1", f"an answer in the {K} passages"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [means(name, arm, of_arm) for name, of_set in rows.items() for arm, of_arm in of_set.items()]
    heads = ["paired difference", "n", "exact match", "F1"]
    lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [difference(f"{name}: {CHAT} less {PLAIN}", each[CHAT], each[PLAIN]) for name, each in rows.items()]
    pairs = [pair for each in rows.values() for pair in zip(each[CHAT], each[SMALL], strict=True)]
    of_both = [pair for pair in pairs if all(map(found, pair))]
    lines.append(
        difference(
            f"both sets, an answer in the {K} passages of both: {CHAT} less {SMALL}",
            [ours for ours, _ in of_both],
            [theirs for _, theirs in of_both],
        )
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the question sets")
    parser.add_argument("--limit", type=int, default=20, help="questions of each set; a multiple of ten")
    parser.add_argument("--out", type=Path, default=Path("build/good-demo"))
    given = parser.parse_args()
    torch.manual_seed(0)
    given.out.mkdir(parents=True, exist_ok=True)
    rags = {arm: opened(arm, given.out) for arm in ARMS}
    chosen = {}
    for name, file in DATASETS.items():
        every = read_examples(given.data / file).rows
        chosen[name] = [every[place] for place in order(len(every), epoch=0, seed=0)]
    rows: dict[str, dict[str, list[Row]]] = {}
    for limit in range(AT_ONCE, given.limit + 1, AT_ONCE):
        for name, examples in chosen.items():
            rows[name] = answered(rags, examples[:limit], given.out, name)
        between_marks(REPORT, tables(rows), title="What the good demo answers")
    print(REPORT)
    return 0


if __name__ == "__main__":
    run(main)
