"""Where the time of an answer goes, and that of starting up.

    python -m benchmarks.ask --data CLUES.jsonl[.gz] [--questions 20] [--model demo] [--memory demo] [--json FILE]

A process with model and memory open answers questions, each twice: with passages that it has not read before, and with
passages that it has (a causal generator keeps them). Parts are timed from within, each without the parts that it calls;
what is left of an answer is ``rest``. Then a fresh process is timed stage by stage to its first answer. Processor time,
one thread. What is arithmetic of a model is marked; of the others a line says which take more than 10 %.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from benchmarks.turns import write

MODEL = ("query encoder", "generator", "output layer")
"""The parts that are arithmetic of a model."""
LIMIT = 0.1
"""Share above which a part that is none of them should be mended."""


@dataclass(slots=True)
class Stopwatch:
    """Processor time by part; a part's time is its own, without that of parts within it."""

    seconds: dict[str, float] = field(default_factory=dict)
    _within: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._turn()
        self._within.append(name)
        try:
            yield
        finally:
            self._turn()
            self._within.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted as this part."""

        @wraps(function)
        def counted(*args: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*args, **named)

        return counted

    def _turn(self) -> None:
        now = time.process_time()
        if self._within:
            name = self._within[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


def watch(rag: Any) -> Stopwatch:
    """A stopwatch that hears of every part of this model's answers."""
    from latentrag.decoding import Loop

    clock = Stopwatch()
    retriever, generator = rag.retriever, rag.generator
    head = generator._head  # noqa: SLF001
    for name, of, method in [
        ("tokenise question", retriever.query_encoder, "encode_queries"),
        ("query encoder", retriever.query_encoder.module, "forward"),
        ("search", retriever.memory, "search"),
        ("prepare prompts", generator, "prepare"),
        ("generator", generator.model, "forward"),
        ("output layer", head.linear, "forward"),
        ("output layer", head, "gold_log_probs"),
        ("softmax over the vocabulary", head, "next_token_log_probs"),
        ("steps: caches and beams' rows", generator, "step"),
        ("steps: caches and beams' rows", generator, "start"),
        ("search among hypotheses", Loop, "step"),
    ]:
        setattr(of, method, clock.timed(name, getattr(of, method)))
    if hasattr(generator, "passage_cache"):
        passages = generator._passages  # noqa: SLF001
        passages.past = clock.timed("passages that were read", passages.past)
    if generator.model.config.is_encoder_decoder:
        encoder = generator.model.get_encoder()
        encoder.forward = clock.timed("generator", encoder.forward)
    return clock


def shares(rag: Any, questions: list[str], **options: Any) -> dict[str, dict[str, float]]:
    """Processor seconds for one answer, on average: by state of the passages, by part."""
    clock = watch(rag)
    found: dict[str, dict[str, float]] = {"new passages": {}, "known passages": {}}
    for number, x in enumerate(questions):
        for state, seconds in found.items():
            cache = getattr(rag.generator, "passage_cache", None)
            if state == "new passages" and cache is not None:
                cache.forget()
            clock.seconds.clear()
            with clock.part("rest"):
                rag.answer(x, **options)
            for name, took in clock.seconds.items():
                seconds[name] = seconds.get(name, 0.0) + took / len(questions)
        print(f"question {number + 1}/{len(questions)}", file=sys.stderr)
    return found


def table(seconds: dict[str, float], title: str) -> Iterator[str]:
    total = sum(seconds.values())
    yield f"| {title}: {total:.3f} s | CPU s | share |"
    yield "|---|---|---|"
    for name, took in sorted(seconds.items(), key=lambda each: -each[1]):
        yield f"| {name}{' (model)' if name in MODEL else ''} | {took:.4f} | {100 * took / total:.1f} % |"
    slow = [name for name, took in seconds.items() if name not in MODEL and took > LIMIT * total]
    yield f"\nabove {100 * LIMIT:.0f} % and no model: {', '.join(slow) or 'nothing'}\n"


def start_up(model: str, memory: str, question: str) -> dict[str, float]:
    """In a process of its own: processor seconds of each stage to the first answer."""
    stages: dict[str, float] = {}
    before = time.process_time()

    def done(name: str) -> None:
        nonlocal before
        now = time.process_time()
        stages[name], before = now - before, now

    import latentrag.cli.main  # noqa: F401

    done("the command line")
    import torch

    done("import torch")
    import transformers.modeling_utils  # noqa: F401

    done("import transformers")
    from latentrag.assemble import load, open_memory

    opened = open_memory(memory)
    done("open the memory")
    torch.set_num_threads(1)
    rag = load(model, memory=opened)
    done("load the model")
    rag.answer(question)
    done("first answer")
    rag.answer(question)
    done("second answer")
    return stages


def _apart(model: str, memory: str, question: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.ask", "--start-up", json.dumps([model, memory, question])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"error: starting up failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    if sys.argv[1:2] == ["--start-up"]:
        print(json.dumps(start_up(*json.loads(sys.argv[2]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prefix-field", metavar="NAME", help="put before each question: category, for clues")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--memory", default="demo")
    parser.add_argument("--variant", choices=["sequence", "token"])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    import torch

    import latentrag
    from latentrag.training.data import read_examples

    torch.set_num_threads(1)
    examples = read_examples(given.data, prefix_field=given.prefix_field)
    questions = [row.x for row in examples.rows[: given.questions + 1]]
    stages = _apart(given.model, given.memory, questions[-1])
    rag = latentrag.load(given.model, memory=given.memory, dtype=given.dtype, variant=given.variant)
    rag.answer(questions[-1])
    found = shares(rag, questions[: given.questions])
    print(f"{given.model}, {given.questions} questions, {rag.variant}, {given.dtype}, one thread\n")
    for state, seconds in found.items():
        print("\n".join(table(seconds, f"an answer, {state}")))
    print("| starting up | CPU s |\n|---|---|")
    print("\n".join(f"| {name} | {took:.2f} |" for name, took in stages.items()))
    config = {name: str(value) for name, value in vars(given).items()}
    write(given.json, {"config": config, "answer_cpu_s": found, "start_up_cpu_s": stages})
    return 0


if __name__ == "__main__":
    sys.exit(main())
