"""Whether two source trees give the same results: answers, scores, losses, recall, and what the commands print.

    python -m benchmarks.same_results --before ../before [--after .] [--reference FILE] [--parts PART …]
        [--questions 50] [--python PYTHON] [--work build/same-results] [--json FILE]

Each part runs under each tree, in a process of its own, with the same interpreter, one thread and the demo of
LATENTRAG_HOME (`make demo` makes it); see `benchmarks.results_of_tree` for what the parts do. What the tree before gave
is kept in the reference file and not computed again; delete the file, or name another, to measure it anew. With fewer
questions (8 or more) than the file has, the cases of these are compared.

The table has a row for each kind of value: how many numbers and texts were compared, the largest difference of two
numbers, and how far numbers may differ: 1e-5 (nats, probabilities, scores, losses), with bfloat16 5e-3. Texts must be
equal. Fields that only the tree after has are no difference. The exit code is 1 if anything differs by more. Parts:

    float32, bfloat16, bm25   answers, scores and classifications of the demo
    training                  20 steps of tiny models by every objective, and what the saved models answer
    demo training             5 steps of the demo
    searching                 20,000 vectors, index flat and ivf-rabitq
    commands                  what the commands print with --json, on tiny models
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.results_of_tree import PARTS
from benchmarks.turns import machine

ROOT = Path(__file__).parent.parent
ALLOWED, ALLOWED_BFLOAT16 = 1e-5, 5e-3
NOT_COMPARED = {"created", "time", "model_files", "sha256", "freed_bytes", "size_bytes"}
"""Of what commands print: times, sizes of files, and hashes of files that name folders."""
FIELDS = {"commands": 0}
"""How many names of fields make a row of the table; of other parts one."""
Leaf = tuple[tuple[str, ...], Any]


@dataclass(slots=True)
class Difference:
    """Of the values of one kind."""

    numbers: int = 0
    texts: int = 0
    largest: float = 0.0
    examples: list[str] = field(default_factory=list)
    """Where texts differ, numbers by too much, or values are missing."""

    def add(self, place: str, before: Any, after: Any, allowed: float) -> None:
        if _is_number(before) and _is_number(after):
            self.numbers += 1
            distance = 0.0 if before == after else abs(before - after)
            self.largest = max(self.largest, math.inf if math.isnan(distance) else distance)
            same = distance <= allowed
        else:
            self.texts += 1
            same = before == after
        if not same:
            self.examples.append(f"{place}: {before!r}, now {after!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def leaves(value: Any, place: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every number and text with the names on the way to it. An empty list is a value too."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            if name not in NOT_COMPARED:
                yield from leaves(item, (*place, name))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from leaves(item, (*place, str(number)))
    else:
        yield place, value


def compare(
    before: Mapping[str, Any], after: Mapping[str, Any], *, allowed: float, depth: int = 1
) -> dict[str, Difference]:
    """Differences by kind of value: what the case does, and the names of so many fields.

    A case's name is "what it does: for which question". Fields that only ``after`` has are no difference.
    """
    differences: dict[str, Difference] = {}
    old, new = dict(leaves(before)), dict(leaves(after))
    known = {_fields(place) for place in old}
    for place in [*old, *(place for place in new if place not in old and _fields(place) in known)]:
        case, *fields = _fields(place)
        kind = " · ".join([case.partition(":")[0], *fields[:depth]])
        difference = differences.setdefault(kind, Difference())
        difference.add(" / ".join(place), old.get(place, "nothing"), new.get(place, "nothing"), allowed)
    return differences


def _fields(place: tuple[str, ...]) -> tuple[str, ...]:
    """The case and the names of its fields, without places in lists."""
    return (place[0], *(name for name in place[1:] if not name.isdigit()))


def table(part: str, differences: Mapping[str, Difference], *, allowed: float) -> Iterator[str]:
    for kind, difference in differences.items():
        same = not difference.examples
        numbers = f"{difference.numbers:,} | {difference.largest:.2g}" if difference.numbers else " | "
        texts = f"{difference.texts:,}" if difference.texts else ""
        ok = "yes" if same else f"NO: {len(difference.examples):,}"
        yield f"| {part} | {kind} | {numbers} | {texts} | {allowed:g} | {ok} |"


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs parts under a tree."""

    work: Path
    python: str
    questions: int

    def results(self, tree: Path, part: str) -> dict[str, Any]:
        """Raises: SystemExit if the part fails, with the end of what it wrote."""
        scratch = self.work / f"scratch-{os.getpid()}"
        file = self.work / f"results-{os.getpid()}.json"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        plan = {
            "tree": str(tree),
            "scratch": str(scratch),
            "models": str(tiny_models(self.work / "models")),
            "questions": self.questions,
        }
        command = [self.python, "-m", "benchmarks.results_of_tree", part, json.dumps(plan), str(file)]
        environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        try:
            run = subprocess.run(  # noqa: S603
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
            )
            if run.returncode:
                raise SystemExit(f"error: {part} failed under {tree}:\n{run.stderr.decode(errors='replace')[-3000:]}")
            results: dict[str, Any] = json.loads(file.read_text("utf-8"))
            return results
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            file.unlink(missing_ok=True)


def tiny_models(folder: Path) -> Path:
    """Folders of an encoder and two generators with random weights, made once by transformers alone."""
    if folder.exists():
        return folder
    from tests import tiny
    from tests.encoder.tiny import write_sentence_encoder

    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    write_sentence_encoder(scratch / "encoder", head=["Normalize"])
    tiny.save_tokenizer(scratch / "bart")
    tiny.save_bart(scratch / "bart")
    tiny.save_tokenizer(scratch / "llama", end=False)
    tiny.save_llama(scratch / "llama")
    scratch.rename(folder)
    return folder


class Reference:
    """What the tree before gave, in a file."""

    def __init__(self, file: Path, *, tree: Path | None, runner: Runner) -> None:
        self.file, self.tree, self.runner = file, tree, runner
        self.parts: dict[str, Any] = {}
        self.questions = runner.questions
        if file.exists():
            content = json.loads(file.read_text("utf-8"))
            if content["questions"] < runner.questions:
                raise SystemExit(f"error: {file} is of {content['questions']} questions; ask no more, or name another")
            self.parts, self.questions = content["parts"], content["questions"]

    def results(self, part: str) -> dict[str, Any]:
        if part not in self.parts:
            if self.tree is None:
                raise SystemExit(f"error: {self.file} has no {part!r}; name the tree before with --before")
            self.parts[part] = replace(self.runner, questions=self.questions).results(self.tree, part)
            content = {"questions": self.questions, "parts": self.parts, **machine()}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(content) + "\n", "utf-8")
        results: dict[str, Any] = self.parts[part]
        return results


def report(parts: Sequence[str], reference: Reference, runner: Runner, after: Path) -> dict[str, dict[str, Difference]]:
    """Run and compare part by part; rows on stdout, examples of what differs on stderr."""
    print("| part | what | numbers | largest difference | texts | allowed | same |")
    print("|---|---|---|---|---|---|---|")
    reports = {}
    for part in parts:
        before = reference.results(part)
        started = time.monotonic()
        now = runner.results(after, part)
        if runner.questions < reference.questions:
            before = {case: before[case] for case in now}
        allowed = ALLOWED_BFLOAT16 if part == "bfloat16" else ALLOWED
        differences = compare(before, now, allowed=allowed, depth=FIELDS.get(part, 1))
        reports[part] = differences
        print("\n".join(table(part, differences, allowed=allowed)), flush=True)
        print(f"{part}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        for kind, difference in differences.items():
            for example in difference.examples[:3]:
                print(f"  {kind}: {example[:400]}", file=sys.stderr, flush=True)
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a tree of sources; not needed where the reference has all parts")
    parser.add_argument("--after", type=Path, default=ROOT, help="another; default: this one")
    parser.add_argument("--reference", type=Path, help="default: reference.json in the work folder")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--questions", type=int, default=50, help="about the demo, 8 to 50")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of both; default: this one")
    parser.add_argument("--work", type=Path, default=Path("build/same-results"))
    parser.add_argument("--json", type=Path, help="a file for the table")
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    runner = Runner(work, given.python, given.questions)
    before = None if given.before is None else given.before.absolute()
    reference = Reference(given.reference or work / "reference.json", tree=before, runner=runner)
    reports = report(given.parts, reference, runner, given.after.absolute())
    if given.json is not None:
        rows = {
            part: {
                kind: {"numbers": of.numbers, "texts": of.texts, "largest": of.largest, "differ": len(of.examples)}
                for kind, of in differences.items()
            }
            for part, differences in reports.items()
        }
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"parts": rows, **machine()}, indent=1) + "\n", "utf-8")
    differ = [part for part, of in reports.items() if any(difference.examples for difference in of.values())]
    print(f"\n{'different: ' + ', '.join(differ) if differ else 'all the same'}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
