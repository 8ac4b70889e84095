"""How well the demo answers: coverage of the memory, and accuracy with and without it.

    make eval-demo            every question of curatedtrec.train and nq-open.dev
    make eval-demo LIMIT=200  the first 200 of each

Results go to runs/eval-demo/DATASET.jsonl, one line for a question as soon as it is answered; a run that was
interrupted goes on where it stopped. The table is printed at the end, and from complete files at once.
The prompt was chosen on webquestions.train, not on these questions.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from running import run
from torch import Tensor

import latentrag
from latentrag.assemble import open_memory
from latentrag.decoding import fast, marginal_beam, thorough
from latentrag.evaluation.intervals import paired_difference, share_interval
from latentrag.evaluation.metrics import answer_tokens, contains_answer, contains_match, exact_match, regex_match
from latentrag.marginal import log_prior
from latentrag.protocols import can_decode
from latentrag.rag import Rag
from latentrag.types import Passage, no_passages, singles

DATASETS = {"CuratedTREC": "curatedtrec.train.jsonl.gz", "NQ": "nq-open.dev.jsonl.gz"}
DECODINGS = ("exact", "thorough", "fast", "token")
K = 5
MAX_TOKENS = 24

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def as_text(passage: Passage) -> str:
    """A passage as the generator sees it: with its title."""
    return f"{passage.title}\n{passage.text}"


def holds_answer(row: Row, text: str) -> bool:
    if "answer_regex" in row:
        return contains_match(text, row["answer_regex"])
    return contains_answer(text, row["answer"])


def is_correct(row: Row, prediction: str) -> bool:
    if "answer_regex" in row:
        return regex_match(prediction, row["answer_regex"])
    return exact_match(prediction, row["answer"])


class Anywhere:
    """Whether any passage of the memory holds an answer."""

    def __init__(self, passages: Iterator[Passage]) -> None:
        texts = [as_text(passage) for passage in passages]
        self.raw = "\n\n".join(texts)
        self.tokens = "\n".join(map(answer_tokens, texts))

    def holds(self, row: Row) -> bool:
        if "answer_regex" in row:
            return contains_match(self.raw, row["answer_regex"])
        return any(wanted in self.tokens for wanted in map(answer_tokens, row["answer"]) if wanted.strip())


@torch.no_grad()
def retrieve(rag: Rag, rows: list[Row], at_once: int = 64) -> Iterator[tuple[Row, list[Passage], Tensor]]:
    """Every row with its 20 best passages and their scores."""
    for start in range(0, len(rows), at_once):
        chunk = rows[start : start + at_once]
        found = rag.retriever.retrieve([row["question"] for row in chunk], 20)
        yield from zip(chunk, found.passages, found.logits, strict=True)


@torch.no_grad()
def answers(rag: Rag, question: str, passages: list[Passage], scores: Tensor, *, num_beams: int) -> dict[str, str]:
    """What every decoding says, as ``rag.answer`` would; the passages are read once for all of them."""
    options = rag.options(num_beams=num_beams, max_tokens=MAX_TOKENS)
    generator, prior = rag.generator, log_prior(scores[None, :K])
    assert can_decode(generator)
    prepared = generator.prepare([question], singles([passages[:K]]))
    alone = generator.prepare([question], no_passages(len([question])))
    found = {
        "exact": marginal_beam(generator, prepared, prior, variant="sequence", options=options),
        "thorough": thorough(generator, prepared, prior, options=options),
        "fast": fast(generator, prepared, prior, options=options),
        "token": marginal_beam(generator, prepared, prior, variant="token", options=options),
        "closed book": marginal_beam(generator, alone, torch.zeros(1, 1), variant="sequence", options=options),
    }
    return {name: generator.text(hypotheses[0][0].ids) for name, hypotheses in found.items()}


def evaluate(rag: Rag, rows: list[Row], out: Path, *, anywhere: Anywhere, num_beams: int) -> list[Row]:
    """Results of every row, from ``out`` where they are there already."""
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    if out.exists():
        for line in out.read_text("utf-8").splitlines():
            try:
                result = json.loads(line)
            except ValueError:
                continue  # the line that was being written when the run was killed
            done[result["id"]] = result
    todo = [row for row in rows if row["id"] not in done]
    with out.open("a", encoding="utf-8") as lines:
        pairs = retrieve(rag, todo)
        for row, passages, scores in track(pairs, out.stem, total=len(todo), console=Console(stderr=True)):
            ranks = [rank for rank, passage in enumerate(passages, 1) if holds_answer(row, as_text(passage))]
            result = {
                "id": row["id"],
                "question": row["question"],
                "anywhere": anywhere.holds(row),
                "rank": ranks[0] if ranks else None,
            }
            if ranks and ranks[0] <= K:
                result["said"] = answers(rag, row["question"], passages, scores, num_beams=num_beams)
                result["correct"] = {name: is_correct(row, text) for name, text in result["said"].items()}
            # The line break comes first: a line that a kill cut short is then left alone.
            lines.write("\n" + json.dumps(result, ensure_ascii=False))
            lines.flush()
            done[row["id"]] = result
    return [done[row["id"]] for row in rows]


def share(successes: int, trials: int) -> str:
    low, high = share_interval(successes, trials)
    return f"{100 * successes / max(1, trials):.1f} % [{100 * low:.1f}, {100 * high:.1f}] ({successes}/{trials})"


def report(results: dict[str, list[Row]]) -> str:
    """The table, as Markdown."""
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]

    def line(name: str, cells: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    line("questions", [str(len(rows)) for rows in results.values()])
    line(
        "answer anywhere in the memory",
        [share(sum(r["anywhere"] for r in rows), len(rows)) for rows in results.values()],
    )
    for k in (1, 5, 20):
        found = [sum(r["rank"] is not None and r["rank"] <= k for r in rows) for rows in results.values()]
        line(f"answer in the top {k}", [share(n, len(rows)) for n, rows in zip(found, results.values(), strict=True)])
    answered = {name: [r["correct"] for r in rows if "correct" in r] for name, rows in results.items()}
    for decoding in [*DECODINGS, "closed book"]:
        line(
            f"correct of those in the top {K}, {decoding}",
            [share(sum(r[decoding] for r in rows), len(rows)) for rows in answered.values()],
        )
    for decoding in DECODINGS:
        cells = []
        for rows in answered.values():
            if not rows:
                cells.append("–")
                continue
            gain = paired_difference([r[decoding] for r in rows], [r["closed book"] for r in rows])
            cells.append("{:+.1f} [{:+.1f}, {:+.1f}] points".format(*(100 * each for each in gain)))
        line(f"gain of {decoding} over closed book", cells)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/eval-demo"))
    parser.add_argument("--limit", type=int, help="the first so many questions of each set")
    parser.add_argument("--beams", type=int, default=1, help="1, greedy, is how the paper decodes such questions")
    parser.add_argument("--memory", default="demo")
    parser.add_argument("--model", default="demo")
    given = parser.parse_args()
    missing = [name for name in DATASETS.values() if not (given.data / name).is_file()]
    if missing:
        print(
            f"error: {given.data / missing[0]} is missing; name the folder that holds it with --data", file=sys.stderr
        )
        return 2
    memory = open_memory(given.memory)
    rag = latentrag.load(given.model, memory=memory)
    anywhere = Anywhere(memory.passages())
    folder = given.out if given.beams == 1 else given.out / f"beams-{given.beams}"
    results = {
        name: evaluate(
            rag,
            read(given.data / file)[: given.limit],
            folder / f"{name}.jsonl",
            anywhere=anywhere,
            num_beams=given.beams,
        )
        for name, file in DATASETS.items()
    }
    table = report(results)
    (folder / "table.md").write_text(table + "\n", "utf-8")
    print(table)
    return 0


if __name__ == "__main__":
    run(main)
