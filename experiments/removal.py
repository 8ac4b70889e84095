"""Whether posteriors say which passage an answer came from: passages are taken away, and log p of the answer falls.

    make experiment-removal                       100 questions, judged by the demo's generator, which answers them
    make experiment-removal LIMIT=200             200; what has been measured is not measured again
    make experiment-removal JUDGE=good JUDGED=40  a second judge too, on the first 40 of them

Passages are put in order by posterior, prior, attention, the citation that the generator gives when asked, at random,
and by which removal makes log p(answer) fall most (the ceiling). Those that stand first in an order are taken away, and
the answer is decoded again. Results go to OUT/orders.jsonl and OUT/judged-NAME.jsonl, a line for a question; an
interrupted run goes on where it stopped. Tables are put into docs/experiments/removal.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from answered import Judge, K, Row, all_rows, answer, is_missing, questions, retrieved_for
from orders import AskedCitation, Attention
from removal_report import beginnings, key_of, write_report
from running import run

import latentrag
from latentrag.addresses import model_place
from latentrag.assemble import open_memory
from latentrag.errors import DataError
from latentrag.evaluation.removal import NEAR
from latentrag.generator import load_generator
from latentrag.protocols import Prompted
from latentrag.rag import Rag


class Orders:
    """What the orders are made of that the answer itself does not say, and the answers without passages."""

    def __init__(self, judge: Judge, folder: Path) -> None:
        generator = judge.generator
        assert isinstance(generator, Prompted)
        self.judge, self.citation = judge, AskedCitation(generator)
        self.attention = Attention(folder, generator.template)

    def __call__(self, row: Row) -> Row:
        x, y = row["x"], row["y"]
        retrieved = retrieved_for(self.judge.rag, x)
        passages = retrieved.passages[0]
        if [passage.id for passage in passages] != row["passages"]:
            raise DataError(f"{row['name']}: the memory has changed since it was asked; empty the output folders")
        attention, citation = self.attention.mass(x, y, passages), self.citation.log_p(x, y, passages)
        found = {"name": row["name"], "attention": attention, "citation": citation}
        gone = beginnings(row | found)
        return found | {"says": {key_of(each): self.judge.says_without(x, retrieved, each) for each in gone}}


def judge_again(judge: Judge, row: Row) -> Row:
    """The same answer, passages and removals, by another generator; the prior stays that of the retriever."""
    retrieved = retrieved_for(judge.rag, row["x"])
    read = judge.read(row["x"], retrieved)
    log_p_eta, log_p_theta = judge.log_p(read, row["y"])
    says = {key_of(gone): judge.says_without(row["x"], retrieved, gone) for gone in beginnings(row)}
    measured = {"log_p_eta": log_p_eta, "log_p_theta": log_p_theta, "says": says}
    return {"name": row["name"], "y": judge.says(read), **measured}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--answered", type=Path, default=Path("runs/shares/answered.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("runs/removal"))
    parser.add_argument("--report", type=Path, default=Path("docs/experiments/removal.md"))
    parser.add_argument("--limit", type=int, default=100, help="questions, half of each set")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--memory", default="demo")
    parser.add_argument("--judge", help="a second generator: the folder of a model, or good")
    parser.add_argument("--judged", type=int, default=40, help="questions that it judges, the first ones")
    given = parser.parse_args()
    if is_missing(given.data):
        return 2
    torch.set_num_threads(1)
    rag = latentrag.load(given.model, memory=open_memory(given.memory))
    folder = Path(model_place(given.model)) / "generator"
    with torch.no_grad():
        judge = Judge(rag, rag.generator)
        chosen = questions(given.data, given.limit)
        base = all_rows(given.answered, chosen, name=lambda asked: asked.name, measure=partial(answer, judge))
        answered = [row for row in base if row["y"]]
        orders = all_rows(given.out / "orders.jsonl", answered, name=_name, measure=Orders(judge, folder))
        rows = [row | more for row, more in zip(answered, orders, strict=True)]
        judged = {}
        if given.judge is not None:
            judged[given.judge] = _judged(rag, given.judge, rows[: given.judged], given.out)
    about = f"{given.model} over {given.memory}, K = {K}, near duplicates from {NEAR} on"
    write_report(given.report, rows, judged, about=about, num_empty=len(base) - len(rows))
    return 0


def _judged(rag: Rag, name: str, rows: Sequence[Row], out: Path) -> list[Row]:
    generator = load_generator(Path(model_place(name)) / "generator")
    file = out / f"judged-{Path(name).name}.jsonl"
    return all_rows(file, rows, name=_name, measure=partial(judge_again, Judge(rag, generator)))


def _name(row: Row) -> str:
    return str(row["name"])


if __name__ == "__main__":
    run(main)
