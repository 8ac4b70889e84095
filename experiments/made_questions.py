"""What training on made questions does: pairs from FairytaleQA's sections and from the World Factbook of 2026, and the
model before and after, on questions that people asked.

    make experiment-made-questions MODEL=good NUMBER=500

For each corpus in turn: a memory, `latentrag make-questions`, `latentrag train` on the pairs, `latentrag eval` of the
model before and after on the same questions, `latentrag compare`. Every command goes on where it was, so this one does.
A generator that cannot be trained (GGUF) is left as it is, and the retriever learns alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from running import between_marks, run

from latentrag.errors import DataError

CORPORA = {
    "FairytaleQA": ("fairytaleqa.corpus.jsonl.gz", "fairytaleqa.dev.jsonl.gz", "abstractive-qa"),
    "Factbook 2026": ("factbook.2026-05-17.corpus.jsonl.gz", "factbook.leaders.jsonl.gz", "open-qa"),
}
"""Passages, questions that people asked (or, of the Factbook, that a rule made), and the task they are measured by."""
DATE = "2026-05-17"


def command(*arguments: object, wanted: str = "") -> Any:
    """A command of latentrag as a process; what it prints as JSON. Raises: DataError where it fails."""
    words = [sys.executable, "-m", "latentrag", *map(str, arguments)]
    done = subprocess.run([*words, "--json"] if wanted else words, stdout=subprocess.PIPE, check=False)  # noqa: S603
    if done.returncode:
        raise DataError(f"latentrag {' '.join(words[3:])} ended with {done.returncode}; see above")
    return json.loads(done.stdout) if wanted else None


def questions(source: Path, out: Path) -> Path:
    """The questions to measure on; those about heads of state and government with their answers of 2026."""
    if not source.name.startswith("factbook"):
        return source
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    known = [{**row, "answer": row["answer"][DATE], "title": row["country"]} for row in rows if row["answer"].get(DATE)]
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in known), "utf-8")
    return out


def measured(name: str, data: Path, out: Path, *, model: str, number: int, limit: int, freeze: list[str]) -> list[str]:
    """The lines of the report on one corpus."""
    *files, task = CORPORA[name]
    corpus, asked = (data / file for file in files)
    out.mkdir(parents=True, exist_ok=True)
    memory, pairs = out / "memory.lance", out / "pairs.jsonl"
    command("index", "add", memory, corpus, "-m", model)
    made = command("make-questions", memory, "--out", pairs, "-n", number, "-m", model, wanted="report")
    if not (out / "run" / "model").exists():
        resume = ["--resume"] if (out / "run").exists() else []
        command("train", pairs, "-i", memory, "-m", model, "--out", out / "run", *freeze, *resume)
    rows = questions(asked, out / "questions.jsonl")
    for which, of_model in (("before", model), ("after", str(out / "run" / "model"))):
        how = ("--task", task, "--limit", limit, "--beams", 1, "--out", out / f"{which}.jsonl")
        command("eval", rows, "-i", memory, "-m", of_model, *how)
    compared = command("compare", out / "after.jsonl", out / "before.jsonl", wanted="report")
    counts = made["metrics"]
    share = 1 - made["examples"] / counts["tried"]
    why = ", ".join(f"{reason} {number}" for reason, number in counts["dropped"].items())
    lines = [f"{name}: {made['examples']} pairs of {counts['tried']} tried, {100 * share:.0f} % dropped ({why}).", ""]
    lines += ["| measure | after | before | difference [95 %] |", "|---|---|---|---|"]
    for measure, found in compared["metrics"].items():
        span = "" if found["low"] is None else f" [{found['low']:+.3f}, {found['high']:+.3f}]"
        lines.append(f"| {measure} | {found['ours']:.3f} | {found['theirs']:.3f} | {found['difference']:+.3f}{span} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/made-questions"))
    parser.add_argument("--report", type=Path, default=Path("docs/experiments/made-questions.md"))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--number", type=int, default=500, help="pairs of each corpus")
    parser.add_argument("--limit", type=int, default=471, help="questions that are measured, the first ones")
    parser.add_argument("--freeze", choices=["generator", "retriever"], help="what does not learn; generator for good")
    given = parser.parse_args()
    freeze = ["--freeze", given.freeze] if given.freeze else []
    parts = []
    for name in CORPORA:
        folder = given.out / name.lower().replace(" ", "-")
        lines = measured(
            name, given.data, folder, model=given.model, number=given.number, limit=given.limit, freeze=freeze
        )
        parts.append("\n".join(lines))
    between_marks(given.report, "\n\n".join([f"Model: {given.model}.", *parts]), title="Made questions")
    return 0


if __name__ == "__main__":
    run(main)
