"""What an extractive reader's answer takes beside the encoder's pass over the same (question, passage) rows.

    python -m benchmarks.spans --reader FOLDER [--passages 5] [--words 100] [--runs 11] [--json FILE]

The folder is any encoder's like BERT. Question and passages are random words of its vocabulary. "answer" is all of
``rag.answer`` after retrieval: tokens, encoder, probabilities of all spans, the same texts added up, the best one with
its posteriors and its closed-book probability. "encode" is the encoder alone, given the rows as tensors. Both take
turns in one process with one thread; processor time.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.turns import write
from latentrag.generator import load_generator
from latentrag.generator.tokens import padded
from latentrag.rag import Rag
from latentrag.types import Asked, Passage, Retrieved, singles

LIMIT = 1.3
"""The ratio that is wanted."""


class Given:
    """Retrieves these passages for every question."""

    def __init__(self, found: Sequence[Passage]) -> None:
        self._found = found
        self.memory: Any = None

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        return Retrieved(singles([self._found[:k]] * len(x)), {"given": torch.zeros(len(x), k)}, version=1)

    def over(self, memory: Any) -> "Given":  # noqa: ARG002
        return self


def texts_of(tokenizer: Any, num_words: int, count: int, seed: int = 0) -> list[str]:
    """Random words of a vocabulary."""
    draw = random.Random(seed)  # noqa: S311
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha())
    return [" ".join(draw.choices(words, k=num_words)) for _ in range(count)]


def took(run: Callable[[], object]) -> float:
    """Processor time, s."""
    started = time.process_time()
    run()
    return time.process_time() - started


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="What an extractive reader's answer takes beside its encoder.")
    parser.add_argument("--reader", type=Path, required=True)
    for name, usual in (("passages", 5), ("words", 100), ("runs", 11)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    reader: Any = load_generator(given.reader, settings={"kind": "spans"})
    question, *texts = texts_of(reader.tokenizer, given.words, given.passages + 1)
    question = " ".join(question.split()[:10])
    found = [Passage(str(number), text, title=text.split()[0]) for number, text in enumerate(texts)]
    rag = Rag(Given(found), reader, k=given.passages)
    rows = [row.ids for row in reader.prepare([question], singles([found])).pairs.rows]
    ids, mask = padded(rows, pad=0)
    ways = {
        "encode": lambda: reader.model.base_model(input_ids=ids, attention_mask=mask.long()),
        "answer": lambda: rag.answer(question),
    }
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.runs):
        for name, run in ways.items():
            times[name].append(took(run))
    quotients = [a / b for a, b in zip(times["answer"], times["encode"], strict=True)]
    ratio = statistics.median(quotients)
    shape = f"{len(rows)} rows of {max(map(len, rows))} tokens"
    print(f"{type(reader.model).__name__}, {shape}; one thread; medians of {given.runs} rounds\n")
    print("| way | CPU ms |\n|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {1000 * statistics.median(seconds):.1f} |")
    print(f"\n| answer / encode | {ratio:.2f} | {min(quotients):.2f} to {max(quotients):.2f} |")
    print(f"{'within' if ratio <= LIMIT else 'ABOVE'} the limit of {LIMIT}")
    config = {name: getattr(given, name) for name in ("passages", "words", "runs")}
    write(given.json, {"config": {**config, "rows": shape}, "times_s": times, "ratio": ratio})


if __name__ == "__main__":
    main()
