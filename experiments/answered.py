"""Questions answered from their K best passages that are no near duplicates: what the experiments about shares begin
with. They keep these rows in one file, so that none is answered twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from running import read_lines

from latentrag.decoding import run as decoded
from latentrag.evaluation.metrics import contains_answer, exact_match
from latentrag.evaluation.removal import without_near_duplicates
from latentrag.model import Read, read_of
from latentrag.options import DecodingOptions
from latentrag.protocols import Scores
from latentrag.rag import Rag
from latentrag.training.data import Example, order, read_examples
from latentrag.types import Retrieved

DATASETS = {"TriviaQA": "triviaqa.dev.jsonl.gz", "NQ": "nq-open.dev.jsonl.gz"}
K = 5
DEPTH = 12
"""Passages retrieved, of which the first K that are no near duplicates are read."""
OPTIONS = DecodingOptions(num_beams=1, max_tokens=16)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """An example of a set, under a name that no other set has."""

    name: str
    dataset: str
    example: Example


def questions(data: Path, limit: int, *, seed: int = 0) -> list[Asked]:
    """As many of each set, drawn at random, in turns: a larger limit goes on with the same ones."""
    sets = {}
    for name, file in DATASETS.items():
        rows = read_examples(data / file).rows
        sets[name] = [rows[place] for place in order(len(rows), epoch=0, seed=seed)]
    names = list(sets)
    chosen = [(names[i % len(names)], i // len(names)) for i in range(limit)]
    return [Asked(f"{name}/{sets[name][i].id}", name, sets[name][i]) for name, i in chosen]


def is_missing(data: Path) -> bool:
    """Whether a set is not there; says so."""
    missing = [data / name for name in DATASETS.values() if not (data / name).is_file()]
    for path in missing[:1]:
        print(f"error: {path} is missing; name the folder that holds it with --data", file=sys.stderr)
    return bool(missing)


def retrieved_for(rag: Rag, x: str) -> Retrieved:
    """The K best passages that are no near duplicates of a better one."""
    found = rag.retriever.retrieve([x], DEPTH)
    return found.at([without_near_duplicates(found.passages[0])[:K]])


class Judge:
    """A generator that says how probable an answer is from some of the passages, and what it would answer itself."""

    def __init__(self, rag: Rag, generator: Scores) -> None:
        self.rag, self.generator = rag, generator

    def read(self, x: str, retrieved: Retrieved) -> Read[Scores]:
        return read_of(self.generator, [x], retrieved)

    def says(self, read: Read[Scores]) -> str:
        search = self.rag.search(read, variant="sequence", decoding="exact", options=OPTIONS)
        return self.generator.text(decoded(search)[0][0].ids).strip()

    def log_p(self, read: Read[Scores], y: str) -> tuple[list[float], list[list[float]]]:
        """log p_η (K) and log p_θ (K × T) of y."""
        evidence = read.evidence(self.generator.targets([y]))
        return evidence.log_p_eta[0].tolist(), evidence.log_p_theta[0].tolist()

    def says_without(self, x: str, retrieved: Retrieved, gone: Sequence[int]) -> str:
        kept = [z for z in range(len(retrieved.latents[0])) if z not in gone]
        return self.says(self.read(x, retrieved.at([kept])))


def answer(judge: Judge, asked: Asked) -> Row:
    """The answer y, log p_η and log p_θ of it, and which passages hold y or an answer of the set."""
    retrieved = retrieved_for(judge.rag, asked.example.x)
    passages = retrieved.passages[0]
    read = judge.read(asked.example.x, retrieved)
    y = judge.says(read)
    log_p_eta, log_p_theta = judge.log_p(read, y) if y else ([], [])
    return {
        "name": asked.name,
        "dataset": asked.dataset,
        "x": asked.example.x,
        "y": y,
        "right": exact_match(y, asked.example.answers),
        "passages": [passage.id for passage in passages],
        "holds_answer": [contains_answer(passage.text, [y]) for passage in passages],
        "holds_gold": [contains_answer(passage.text, asked.example.answers) for passage in passages],
        "log_p_eta": log_p_eta,
        "log_p_theta": log_p_theta,
    }


def all_rows(
    file: Path, wanted: Sequence[Any], *, name: Callable[[Any], str], measure: Callable[[Any], Row]
) -> list[Row]:
    """The row of each that is wanted, from the file where it is there already, measured and written down where not."""
    done = {row["name"]: row for row in read_lines(file)}
    todo = [each for each in wanted if name(each) not in done]
    if todo:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            for each in _tracked(todo, file.stem):
                row = measure(each)
                # The line break comes first: a line that a kill cut short is then left alone.
                lines.write("\n" + json.dumps(row, ensure_ascii=False))
                lines.flush()
                done[row["name"]] = row
    return [done[name(each)] for each in wanted]


def _tracked(todo: Sequence[Any], what: str) -> Iterable[Any]:
    return track(todo, what, console=Console(stderr=True))
