"""The paper's hot-swap experiment in small: does the answer follow the memory that is in place? (§4.5)

    world A: the demo's memory      world B: a version of it in which pairs of facts are exchanged

One model in one process answers every question from both worlds; its memory is exchanged after every few questions,
and nothing is trained. Results go to OUT/answers.jsonl, one line for a question in a world; a run that was interrupted
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hot_swap_facts import Fact, exchanged, states
from hot_swap_report import write_report
from rich.console import Console
from rich.progress import track
from running import read_lines, run

import latentrag
from latentrag import decoding, model
from latentrag.assemble import load_passage_encoder, open_memory
from latentrag.evaluation.metrics import exact_match
from latentrag.generator.passages import PassageCache
from latentrag.memory import LiveMemory, Memory
from latentrag.place import computes_bfloat16
from latentrag.rag import Rag

DECODING: dict[str, Any] = {"num_beams": 1, "max_tokens": 16}
QUESTIONS_PER_SWAP = 6
CACHE_BYTES = 1 << 30

Row = dict[str, Any]


def worlds(source: Memory, facts: Path, place: Path, *, model: str, per_kind: int) -> tuple[list[Fact], list[Memory]]:
    """The facts, and the memories of world A and world B: two versions of a copy of the memory, made once.

    Raises: RuntimeError if a passage of either does not state what it has to.
    """
    made, of_b = exchanged(list(source.passages()), per_kind=per_kind)
    wanted = {"memory": str(source.path), "version": source.version, "facts": [asdict(fact) for fact in made]}
    text = json.dumps(wanted, ensure_ascii=False, indent=1)
    if not (facts.exists() and facts.read_text("utf-8") == text and place.exists()):
        print(f"making world B: {len(made)} facts, {len(of_b)} passages", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)
        scratch = place.with_name(f"{place.name}.new")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source.local, scratch)
        Memory.open(scratch).upsert(of_b.values(), load_passage_encoder(model), progress=True)
        scratch.rename(place)
        facts.write_text(text, "utf-8")
    memories = [Memory.open(place, version=source.version), Memory.open(place)]
    for world, memory in enumerate(memories):
        of_facts = zip(made, memory.get([fact.passage for fact in made]), strict=True)
        wrong = [fact.id for fact, passage in of_facts if not states(fact, passage, world)]
        if wrong:
            raise RuntimeError(f"world {'AB'[world]} does not state: {', '.join(wrong)}")
    return made, memories


def measured(rag: Rag, live: LiveMemory, facts: Sequence[Fact], memory: Memory, world: int) -> Iterator[Row]:
    """What is answered while this memory is in place, with passages and closed book."""
    began = time.perf_counter()
    live.use(memory)
    swap_s = time.perf_counter() - began
    questions = [fact.question for fact in facts]
    answers = rag.answer_batch(questions, **DECODING)
    for fact, answer, alone in zip(facts, answers, closed_book(rag, questions), strict=True):
        yield {
            "id": fact.id,
            "kind": fact.kind,
            "question": fact.question,
            "world": world,
            "version": answer.memory_version,
            "said": answer.text,
            "correct": [exact_match(answer.text, names) for names in fact.answers],
            "closed_book": alone,
            "log_prob": answer.log_prob,
            "closed_book_log_prob": answer.closed_book_log_prob,
            "sources": [
                {"id": z.passage.id, "prior": z.prior, "posterior": z.posterior, "states": z.passage.id == fact.passage}
                for z in answer.sources
            ],
            "swap_s": swap_s,
        }


@torch.no_grad()
def closed_book(rag: Rag, questions: Sequence[str]) -> list[str]:
    """What the generator answers without a passage."""
    read = model.closed_book(rag.generator, questions)
    search = rag.search(read, variant="sequence", decoding="exact", options=rag.options(**DECODING))
    return [rag.generator.text(hypotheses[0].ids) for hypotheses in decoding.run(search)]


def todo(facts: Sequence[Fact], done: Sequence[Row]) -> Iterator[tuple[list[Fact], int]]:
    """Some facts in one world, the same in the other, and so on."""
    finished = {(row["id"], row["world"]) for row in done}
    for start in range(0, len(facts), QUESTIONS_PER_SWAP):
        for world in (0, 1):
            left = [f for f in facts[start : start + QUESTIONS_PER_SWAP] if (f.id, world) not in finished]
            if left:
                yield left, world


def machine() -> dict[str, Any]:
    """What the answers were computed with."""
    from importlib.metadata import version

    return {
        **DECODING,
        "threads": torch.get_num_threads(),
        "bfloat16": computes_bfloat16(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "latentrag")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/hot-swap"))
    parser.add_argument("--per-kind", type=int, default=20, help="facts of each kind, at most; an even number")
    parser.add_argument("--memory", default="demo")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--report", type=Path, default=Path("docs/experiments/hot-swap.md"))
    given = parser.parse_args()
    facts, memories = worlds(
        open_memory(given.memory, version="newest"),
        given.out / "facts.json",
        given.out / "worlds.lance",
        model=given.model,
        per_kind=given.per_kind,
    )
    live = LiveMemory(memories[0])
    rag = latentrag.load(given.model, memory=live)
    rag.generator.passage_cache = PassageCache(CACHE_BYTES)  # type: ignore[attr-defined]
    file = given.out / "answers.jsonl"
    pairs = list(todo(facts, read_lines(file)))
    with file.open("a", encoding="utf-8") as lines:
        for some, world in track(pairs, "answers", console=Console(stderr=True)):
            for row in measured(rag, live, some, memories[world], world):
                # The line break comes first: a line that a kill cut short is then left alone.
                lines.write("\n" + json.dumps(row, ensure_ascii=False))
            lines.flush()
    ids = {fact.id for fact in facts}
    rows = [row for row in read_lines(file) if row["id"] in ids]
    print(write_report(rows, facts, given.report, machine=machine()))
    return 0


if __name__ == "__main__":
    run(main)
