"""The good demo by one prompt and another, and beside the small demo.

    make experiment-good              its chat template, the plain prompt, the small demo: 20 dev questions of each set
    make experiment-good LIMIT=400    400; what has been answered is not answered again
    make experiment-refusals          the usual instruction, and one that invites to refuse: 20 train questions of each

The plain prompt is that of models without a chat template. As for refusals: each passage is read alone, and those that
do not hold the answer would add up to the same one.

The arms answer the same questions, drawn at random, each model with its own demo's memory. They take turns, ten
questions each, so that a run which was interrupted has an answer of every arm. A question takes the good model half a
minute of a core without AVX-512. Rows go to OUT/STUDY/SET-ARM.jsonl; the tables are put into docs/experiments.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from running import between_marks, mean_shown, paired_shown, run

import latentrag
from latentrag.evaluation.run import evaluate
from latentrag.generator.chat import INSTRUCTION
from latentrag.generator.prompt import PromptTemplate
from latentrag.options import DecodingOptions
from latentrag.rag import Rag
from latentrag.training.data import order, read_examples

K = 5
AT_ONCE = 10
OPTIONS = DecodingOptions(num_beams=1, max_tokens=16)
REFUSAL = "unknown"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """Which demo answers, and by which prompt; None: its usual one."""

    demo: str
    template: Mapping[str, object] | None = None

    def opened(self, folder: Path, name: str) -> Rag:
        """With the demo's own memory."""
        file = None
        if self.template is not None:
            file = folder / f"{name}.json"
            file.write_text(json.dumps(self.template), "utf-8")
        return latentrag.load(self.demo, memory=self.demo, k=K, template=file)


@dataclass(frozen=True, slots=True)
class Study:
    """Arms over sets of questions.

    Attributes:
        datasets: name → file.
        arms: of which the first is compared with the second, set by set.
        pooled: an arm with which the first is compared on the questions of all sets for which both have found an
            answer; empty: none.
    """

    report: Path
    title: str
    datasets: Mapping[str, str]
    arms: Mapping[str, Arm]
    pooled: str = ""


STUDIES = {
    "prompts": Study(
        Path("docs/experiments/good-demo.md"),
        "What the good demo answers",
        {"WebQuestions": "webquestions.dev.jsonl.gz", "TriviaQA": "triviaqa.dev.jsonl.gz"},
        {
            "chat template": Arm("good"),
            "plain prompt": Arm("good", {"kind": PromptTemplate.kind}),
            "small demo": Arm("demo"),
        },
        pooled="small demo",
    ),
    "refusals": Study(
        Path("docs/experiments/refusals.md"),
        "Whether a model may refuse",
        {"WebQuestions": "webquestions.train.jsonl.gz", "TriviaQA": "triviaqa.train.jsonl.gz"},
        {
            "may refuse": Arm(
                "good",
                {
                    "kind": "chat",
                    "instruction": f"{INSTRUCTION} If the passage does not hold the answer, say: {REFUSAL}.",
                },
            ),
            "usual instruction": Arm("good"),
        },
    ),
}


def found(row: Row) -> bool:
    """Whether one of the passages that were read holds an answer."""
    return row["rank"] is not None and row["rank"] <= K


def refuses(row: Row) -> bool:
    """Whether the answer is that there is none."""
    return str(row["text"]).strip(" .").casefold() == REFUSAL


def line(*cells: object) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def values(rows: Sequence[Row], key: str) -> list[float]:
    return [float(row[key]) for row in rows]


def difference(what: str, ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    """A row of the second table."""
    measures = ("exact_match", "f1")
    return line(what, len(ours), *(paired_shown(values(ours, key), values(theirs, key)) for key in measures))


def tables(study: Study, rows: Mapping[str, Mapping[str, Sequence[Row]]]) -> str:
    """What each arm reaches, and the paired differences."""
    first, second = list(study.arms)[:2]
    lines = [
        line("questions", "answered by", "n", "exact match", "F1", f"an answer in the {K} passages", "refused"),
        "|---" * 7 + "|",
    ]
    for name, of_set in rows.items():
        for arm, of_arm in of_set.items():
            hits = [float(found(row)) for row in of_arm]
            means = [mean_shown(each) for each in (values(of_arm, "exact_match"), values(of_arm, "f1"), hits)]
            lines.append(line(name, arm, len(of_arm), *means, sum(map(refuses, of_arm))))
    lines += ["", line("paired difference", "n", "exact match", "F1"), "|---" * 4 + "|"]
    lines += [difference(f"{name}: {first} less {second}", each[first], each[second]) for name, each in rows.items()]
    ours, theirs = ([row for each in rows.values() for row in each[arm]] for arm in (first, second))
    lines.append(difference(f"all sets: {first} less {second}", ours, theirs))
    if study.pooled:
        pairs = [pair for each in rows.values() for pair in zip(each[first], each[study.pooled], strict=True)]
        of_both = [pair for pair in pairs if all(map(found, pair))]
        if of_both:
            what = f"all sets, an answer in the {K} passages of both: {first} less {study.pooled}"
            lines.append(difference(what, *zip(*of_both, strict=True)))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--data", type=Path, required=True, help="folder with the question sets")
    parser.add_argument("--limit", type=int, default=20, help="questions of each set; a multiple of ten")
    parser.add_argument("--out", type=Path, default=Path("build/good-demo"))
    given = parser.parse_args()
    torch.manual_seed(0)
    study, folder = STUDIES[given.study], given.out / given.study
    folder.mkdir(parents=True, exist_ok=True)
    rags = {name: arm.opened(folder, name.replace(" ", "-")) for name, arm in study.arms.items()}
    chosen = {}
    for name, file in study.datasets.items():
        every = read_examples(given.data / file).rows
        chosen[name] = [every[place] for place in order(len(every), epoch=0, seed=0)]
    rows: dict[str, dict[str, Sequence[Row]]] = {name: {} for name in chosen}
    for limit in range(AT_ONCE, given.limit + 1, AT_ONCE):
        for name, examples in chosen.items():
            for arm, rag in rags.items():
                out = folder / f"{name}-{arm.replace(' ', '-')}.jsonl"
                about = {"arm": arm}
                done = evaluate(rag, examples[:limit], out, options=OPTIONS, recall_at=[K], about=about, progress=True)
                rows[name][arm] = done.rows
        between_marks(study.report, tables(study, rows), title=study.title)
    print(study.report)
    return 0


if __name__ == "__main__":
    run(main)
