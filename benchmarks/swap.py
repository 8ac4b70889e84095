"""A memory that is exchanged while it answers: does an answer fail, is one made of two versions, what does it cost?

    python -m benchmarks.swap [--answers 2000] [--swaps 20] [--threads 8] [--json FILE]

Versions of one memory and another memory altogether take turns. They hold the same ids with other texts and vectors,
and the generator's answer depends on every text, so that an answer from two of them cannot be right: each must equal,
in every field, the one that a model at rest gives from that version alone. The same answers without an exchange are
timed beside it.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from latentrag.memory import LiveMemory, Memory
from latentrag.rag import Rag
from latentrag.retriever import BM25Retriever, DenseRetriever
from latentrag.types import Answer, Asked, LatentLists, Passage
from tests.toy import ToyGenerator, ToyPrepared

DIMENSION = 64
NUM_VERSIONS = 5
NUM_QUESTIONS = 40
K = 5


class Encoder:
    """A vector drawn from the text."""

    name, fingerprint, passage_fingerprint = "drawn", "drawn", "drawn"
    dimension, max_tokens, scale = DIMENSION, 256, 1.0
    module = nn.Module()

    def encode_passages(self, passages: Sequence[Passage], **_options: bool) -> torch.Tensor:
        return self.encode_queries([passage.text for passage in passages])

    def encode_queries(self, x: Sequence[str]) -> torch.Tensor:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in x]
        drawn = [np.random.default_rng(seed).standard_normal(DIMENSION) / 3 for seed in seeds]
        return torch.from_numpy(np.stack(drawn).astype(np.float32))

    def save(self, folder: Path) -> None:
        raise NotImplementedError("it has no weights")


class ReadingGenerator(ToyGenerator):
    """What it answers depends on the texts of the passages."""

    def prepare(self, x: Sequence[Asked], latents: LatentLists) -> ToyPrepared:
        by_text = [[tuple(replace(passage, id=passage.text) for passage in z) for z in of_one] for of_one in latents]
        return super().prepare(x, by_text)


def make_memories(folder: Path, size: int) -> list[Memory]:
    """Versions 2 to 6 of a memory, and another memory at version 2; a text says which it is of."""
    encoder, found = Encoder(), []
    for name, versions in (("one", NUM_VERSIONS), ("other", 1)):
        memory = Memory.create(folder / f"{name}.lance", encoder)
        for version in range(2, 2 + versions):
            texts = [f"words of {name} {version} number {i}" for i in range(size)]
            memory = memory.upsert([Passage(f"p{i}", text) for i, text in enumerate(texts)], encoder)
            found.append(memory)
    return found


def model(live: LiveMemory, way: str) -> Rag:
    retriever = BM25Retriever(live) if way == "bm25" else DenseRetriever(Encoder(), live)
    return Rag(retriever, ReadingGenerator(vocabulary=3), k=K)


def answered(rag: Rag, number: int) -> Answer:
    return rag.answer(f"which words are number {number % NUM_QUESTIONS}", num_beams=1, max_tokens=2)


@dataclass(frozen=True)
class Load:
    """So many answers in so many threads, while the memory is exchanged at even distances."""

    answers: int
    threads: int
    swaps: int

    def run(self, live: LiveMemory, rag: Rag, memories: Sequence[Memory]) -> "Outcome":
        turn = threading.Condition()
        begun = 0

        def one(number: int) -> tuple[Answer, float]:
            nonlocal begun
            with turn:
                begun += 1
                turn.notify_all()
            start = time.perf_counter()
            return answered(rag, number), time.perf_counter() - start

        def has_begun(due: int) -> bool:
            return begun >= due

        def exchange() -> list[float]:
            took = []
            for count in range(1, self.swaps + 1):
                due = count * self.answers // (self.swaps + 1)
                with turn:
                    turn.wait_for(partial(has_begun, due))
                memory = memories[count % len(memories)]
                start = time.perf_counter()
                live.use(Memory.open(memory.path, version=memory.version))
                took.append(time.perf_counter() - start)
            return took

        began = time.perf_counter()
        with ThreadPoolExecutor(self.threads + 1) as pool:
            exchanges = pool.submit(exchange)
            # Not map, which gives the rest up when one fails: the exchanges would wait for them for ever.
            futures = [pool.submit(one, number) for number in range(self.answers)]
        return Outcome([each.result() for each in futures], exchanges.result(), time.perf_counter() - began)


@dataclass(frozen=True)
class Outcome:
    """The answers with their seconds, the seconds of each exchange, and those of everything."""

    answers: list[tuple[Answer, float]]
    exchanges: list[float]
    wall_s: float


def check(found: Sequence[Answer], expected: Sequence[dict[int, Answer]]) -> dict[str, int]:
    """How many answers equal that of one memory at rest, how many do not, and of how many memories they are.

    Raises: AssertionError if an answer is of no memory alone.
    """
    of_memory = [0] * len(expected)
    for number, answer in enumerate(found):
        equal = [m for m, answers in enumerate(expected) if answers[number % NUM_QUESTIONS] == answer]
        assert len(equal) == 1, f"answer {number} is of no version alone: {answer}"
        of_memory[equal[0]] += 1
    return {"answers": len(found), "memories_seen": sum(count > 0 for count in of_memory)}


def measure(folder: Path, way: str, load: Load, *, size: int) -> dict[str, Any]:
    """Raises: AssertionError as ``check``; any exception of an answer."""
    memories = make_memories(folder, size)
    live = LiveMemory(memories[0])
    rag = model(live, way)
    expected = []
    for memory in memories:
        live.use(memory)
        expected.append({number: answered(rag, number) for number in range(NUM_QUESTIONS)})
    quiet = replace(load, swaps=0).run(live, rag, memories)
    busy = load.run(live, rag, memories)
    check([answer for answer, _ in quiet.answers], expected)
    seconds = np.array([each for _, each in busy.answers])
    return {
        "way": way,
        **check([answer for answer, _ in busy.answers], expected),
        "swaps": len(busy.exchanges),
        "swap_p50_ms": 1e3 * float(np.median(busy.exchanges)),
        "swap_max_ms": 1e3 * max(busy.exchanges),
        "answer_p50_ms": 1e3 * float(np.median(seconds)),
        "answer_max_ms": 1e3 * float(seconds.max()),
        "answers_per_s": load.answers / busy.wall_s,
        "time_without_swaps": quiet.wall_s / busy.wall_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--answers", type=int, default=2_000)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--size", type=int, default=2_000, help="passages of each version")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    given = parser.parse_args()
    report: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "config": {name: value for name, value in vars(given).items() if name != "json"},
        "rows": [],
    }
    for way in ("dense", "bm25"):
        with tempfile.TemporaryDirectory() as folder:
            load = Load(given.answers, given.threads, given.swaps)
            row = measure(Path(folder), way, load, size=given.size)
        report["rows"].append(row)
        print(
            ", ".join(
                f"{name} {value if isinstance(value, str | int) else f'{value:.3g}'}" for name, value in row.items()
            )
        )
        sys.stdout.flush()
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("no answer failed, and none is made of two versions")


if __name__ == "__main__":
    main()
