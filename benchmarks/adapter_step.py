"""A training step of the demo's generator with an adapter after passages that were read before: the joint loss of
RAG-Sequence, forward and backward.

    python -m benchmarks.adapter_step --data CLUES.jsonl[.gz] [--runs 5] [--json FILE]

``peft`` has peft's own layers and torch's attention, ``ours`` what stands in for them where gradients are taken. Both
in one process, in turns, on the same batches of 16 clues with 5 passages each, in micro-batches of 8; one thread.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.turns import write

K, BATCH, MICRO_BATCH = 5, 16, 8


@contextmanager
def as_in(way: str) -> Iterator[None]:
    """Within: the layers and the attention of that way."""
    if way == "ours":
        yield
        return
    with (
        mock.patch("latentrag.generator.lora._in_one_piece", return_value=False),
        mock.patch("latentrag.generator.shared_context.stands_in", return_value=False),
    ):
        yield


def step(retriever: Any, generator: Any, options: Any, pairs: list[tuple[str, str]]) -> tuple[float, float]:
    """Processor time of a batch's gradients, and its mean loss."""
    from latentrag.training.step import losses

    total, started = 0.0, time.process_time()
    for start in range(0, len(pairs), MICRO_BATCH):
        x, y = zip(*pairs[start : start + MICRO_BATCH], strict=True)
        loss = losses(retriever, generator, x, y, options=options).loss.sum() / len(pairs)
        loss.backward()
        total += loss.item()
    return time.process_time() - started, total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="clues: question and answer")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    from latentrag import assemble
    from latentrag.generator.lora import Lora
    from latentrag.training.data import read_examples
    from latentrag.training.options import TrainingOptions

    memory = assemble.open_memory("demo")
    rag = assemble.load("demo", memory=memory)
    lora = Lora(rank=16, alpha=32, scope="question")
    generator = assemble.generator_for_training(rag.generator, lora=lora, passage_cache_bytes=1 << 30)
    options = TrainingOptions(k=K, num_steps=given.runs, batch_size=BATCH, micro_batch_size=MICRO_BATCH)
    rows = read_examples(given.data).rows[: BATCH * given.runs]
    rounds = []
    for number in range(given.runs):
        pairs = [(row.x, row.answers[0]) for row in rows[number * BATCH : (number + 1) * BATCH]]
        pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        step(rag.retriever, generator, options, pairs)  # reads the passages
        taken = {}
        for way in ("peft", "ours") if number % 2 else ("ours", "peft"):
            with as_in(way):
                taken[way] = step(rag.retriever, generator, options, pairs)
        rounds.append(taken)
        print(f"round {number + 1}/{given.runs}", file=sys.stderr)
    seconds = {way: statistics.median(taken[way][0] for taken in rounds) for way in ("peft", "ours")}
    ratios = [taken["peft"][0] / taken["ours"][0] for taken in rounds]
    difference = max(abs(taken["peft"][1] - taken["ours"][1]) for taken in rounds)
    print("| way | CPU s |\n|---|---|")
    print("\n".join(f"| {way} | {each:.1f} |" for way, each in seconds.items()))
    print(f"\nmedian ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); ", end="")
    print(f"mean losses differ by {difference:.4f} nats at most")
    write(given.json, {"cpu_seconds": seconds, "ratios": ratios, "largest_difference": difference})
    return 0


if __name__ == "__main__":
    sys.exit(main())
