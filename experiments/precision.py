"""What number formats do to answers and log-probabilities: bfloat16 and int8 beside float32.

    make experiment-precision            200 clues of jeopardy-vital.dev
    make experiment-precision LIMIT=50   fewer

For every clue the given answer is scored and an answer is decoded, by the same generator in each format; one thread,
processor time. Results go to OUT/FORMAT.jsonl, one line for a clue; a run that was interrupted goes on where it
stopped. The tables are put into docs/experiments/precision.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from running import between_marks, read_lines, run

DTYPES = ("float32", "bfloat16", "int8")
"""The first is what the others are compared with."""
K = 5

Row = dict[str, Any]


def measure(
    dtype: str, out: Path, *, data: Path, prefix_field: str | None, limit: int, model: str, memory: str
) -> None:
    """In a process of its own, so that formats do not share memory or caches."""
    import torch

    import latentrag
    from latentrag.training.data import read_examples

    torch.set_num_threads(1)
    examples = read_examples(data, prefix_field=prefix_field).rows[:limit]
    done = {row["x"] for row in read_lines(out)}
    todo = [example for example in examples if example.x not in done]
    if not todo:
        return
    rag = latentrag.load(model, memory=memory, dtype=dtype)
    with out.open("a", encoding="utf-8") as lines:
        for example in track(todo, dtype, console=Console(stderr=True)):
            _forget(rag)
            times = [time.process_time()]
            answer = rag.answer(example.x, k=K)
            times.append(time.process_time())
            score = rag.score(example.x, example.answers[0], k=K)
            row = {
                "x": example.x,
                "y": example.answers[0],
                "log_p": [token.log_prob for token in score.tokens],
                "log_likelihood": score.log_likelihood,
                "posterior": [source.posterior for source in score.sources],
                "said": answer.text,
                "cpu_s": times[1] - times[0],
            }
            # The line break comes first: a line that a kill cut short is then left alone.
            lines.write("\n" + json.dumps(row, ensure_ascii=False))
            lines.flush()


def _forget(rag: Any) -> None:
    """No passage is known from an earlier question."""
    cache = getattr(rag.generator, "passage_cache", None)
    if cache is not None:
        cache.forget()


def report(results: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """A line for every format. Raises: ValueError if they were not asked the same."""
    reference = results[DTYPES[0]]
    yield (
        "| format | mean Δ log p of a token | mean of its size | largest | nats per token | same answer | "
        "largest change of a posterior, mean | CPU s an answer, median |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for dtype, rows in results.items():
        pairs = list(zip(reference, rows, strict=True))
        if any(one["x"] != other["x"] or len(one["log_p"]) != len(other["log_p"]) for one, other in pairs):
            raise ValueError(f"{dtype} was asked other questions; empty the output folder")
        moved = [b - a for one, other in pairs for a, b in zip(one["log_p"], other["log_p"], strict=True)]
        size = [abs(each) for each in moved]
        per_token = -statistics.mean(each for row in rows for each in row["log_p"])
        same = statistics.mean(one["said"] == other["said"] for one, other in pairs)
        shifted = statistics.mean(
            max(abs(b - a) for a, b in zip(one["posterior"], other["posterior"], strict=True)) for one, other in pairs
        )
        seconds = statistics.median(row["cpu_s"] for row in rows)
        yield (
            f"| {dtype} | {statistics.mean(moved):+.3f} | {statistics.mean(size):.3f} | {max(size):.2f} | "
            f"{per_token:.3f} | {100 * same:.0f} % | {shifted:.3f} | {seconds:.2f} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="clues with answers")
    parser.add_argument("--prefix-field", metavar="NAME", help="put before each question: category, for clues")
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--report", type=Path, default=Path("docs/experiments/precision.md"))
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--memory", default="demo")
    parser.add_argument("--one", choices=DTYPES, help="this format only, and no report")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.one is not None:
        file = given.out / f"{given.one}.jsonl"
        measure(
            given.one,
            file,
            data=given.data,
            prefix_field=given.prefix_field,
            limit=given.limit,
            model=given.model,
            memory=given.memory,
        )
        return 0
    for dtype in DTYPES:
        code = subprocess.run([sys.executable, *sys.argv, "--one", dtype], check=False).returncode  # noqa: S603
        if code:
            return code
    results = {dtype: read_lines(given.out / f"{dtype}.jsonl")[: given.limit] for dtype in DTYPES}
    lines = "\n".join(report(results))
    about = f"{len(results[DTYPES[0]])} clues, K = {K}, {given.model} over {given.memory}."
    between_marks(given.report, f"{about}\n\n{lines}", title="Number formats")
    print(f"{about}\n\n{lines}")
    return 0


if __name__ == "__main__":
    run(main)
