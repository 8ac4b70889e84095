"""How long two source trees take: the quick benchmarks of each, and its start, in turns.

    python -m benchmarks.beside --before ../before --data FOLDER [--after .] [--rounds 3] [--only PART …] [--json FILE]

Each tree runs its own benchmarks, as `benchmarks.every --quick` calls them, with its own sources and the same
interpreter, so that what it has renamed within is no matter. The trees take turns, and the other begins in every second
round. Compared is every time that both report under one name, and the processor time of the whole process; of what is
counted by the second the reciprocal. Parts besides: ``import latentrag``, ``latentrag --help`` and ``latentrag ask``
in a fresh process. The demo is that of LATENTRAG_HOME. Ratios are after / before, round by round; above 1 is slower.
The exit code is 1 if the processor time of a whole part has a median ratio above --allowed.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.turns import write

ROOT = Path(__file__).parent.parent
QUESTION = "Who wrote the novel Ulysses?"
STARTS = {
    "import": ["-c", "import latentrag"],
    "help": ["-m", "latentrag", "--help"],
    "cold ask": ["-m", "latentrag", "ask", QUESTION, "--json"],
}
WHOLE = "processor time in all"
TIME = re.compile(r"(^|_)s(@\d+)?$")
RATE = re.compile(r"_per_s$")
Figures = dict[str, float]
"""Seconds by name."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Sources, and the commands of their quick benchmarks."""

    path: Path
    python: str

    def commands(self, data: Path, work: Path) -> dict[str, list[str]]:
        """By part. Encoding is of our side alone, so that nothing else need be installed."""
        code = (
            "import json, sys; from pathlib import Path; from benchmarks.every import commands; "
            "data, work = map(Path, sys.argv[1:]); "
            "print(json.dumps(commands(data=data, work=work, runs=1, quick=True)))"
        )
        run = self.run(["-c", code, str(data), str(work)], capture_output=True)
        parts: dict[str, list[str]] = json.loads(run.stdout)
        parts["encoding"] += ["--ways", "ours float32", "ours bfloat16"]
        return parts

    def figures(self, part: str, data: Path) -> Figures:
        """Run a part once. Raises: SystemExit if it fails."""
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch, "report.json")
            if part in STARTS:
                arguments = STARTS[part]
            else:
                module, *options = self.commands(data, Path(scratch))[part]
                arguments = ["-m", f"benchmarks.{module}", *options, "--json", str(report)]
            before = _processor_time()
            self.run(arguments, capture_output=True)
            figures = {WHOLE: _processor_time() - before}
            if report.exists():
                figures |= dict(times(json.loads(report.read_text("utf-8"))))
            return figures

    def run(self, arguments: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[bytes]":
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.path / "src"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        run = subprocess.run(  # noqa: S603
            [self.python, *arguments], cwd=self.path, env=environment, check=False, **options
        )
        if run.returncode:
            raise SystemExit(f"error: {self.path}: {' '.join(arguments)[:200]} failed:\n{run.stderr.decode()[-3000:]}")
        return run


def _processor_time() -> float:
    """Of all processes that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def times(report: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """The times of a report, by the names on the way to them; seconds for one, of what is counted by the second."""
    if isinstance(report, Mapping):
        for name, value in report.items():
            if name != "config":
                yield from times(value, (*place, name))
    elif isinstance(report, list):
        for number, value in enumerate(report):
            label = value.get("way", str(number)) if isinstance(value, dict) else str(number)
            yield from times(value, (*place, label))
    elif isinstance(report, int | float) and report > 0:
        if any(RATE.search(name) for name in place):
            yield " / ".join(place), 1 / report
        elif any(TIME.search(name) for name in place):
            yield " / ".join(place), float(report)


def ratios(before: Sequence[Figures], after: Sequence[Figures]) -> dict[str, list[float]]:
    """After / before of each round, by figure; figures that only one side has are left out."""
    names = [name for name in before[0] if all(name in figures for figures in (*before, *after))]
    return {name: [b[name] / a[name] for a, b in zip(before, after, strict=True)] for name in names}


def rows(part: str, before: Sequence[Figures], after: Sequence[Figures], smallest: float) -> Iterator[str]:
    """Of times from ``smallest`` seconds on."""
    for name, of_rounds in ratios(before, after).items():
        a, b = (statistics.median(figures[name] for figures in side) for side in (before, after))
        if max(a, b) >= smallest:
            yield (
                f"| {part} | {name} | {a:.3g} | {b:.3g} | {statistics.median(of_rounds):.2f} | {min(of_rounds):.2f} "
                f"| {max(of_rounds):.2f} |"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a source tree with its benchmarks")
    parser.add_argument("--after", type=Path, default=ROOT, help="another; default: this one")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="PART", help="these alone; default: all that this tree has")
    parser.add_argument("--smallest", type=float, default=0.005, help="seconds; shorter times are not shown")
    parser.add_argument("--allowed", type=float, default=1.15, help="highest ratio of processor times")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    data = given.data.absolute()
    before, after = (Tree(path.absolute(), given.python) for path in (given.before, given.after))
    parts = given.only or [*STARTS, *after.commands(data, data)]
    print("| part | figure | before, s | after, s | ratio | lowest | highest |")
    print("|---|---|---|---|---|---|---|")
    measured: dict[str, dict[str, list[Figures]]] = {}
    slower = []
    for part in parts:
        sides: dict[str, list[Figures]] = {"before": [], "after": []}
        for number in range(given.rounds):
            order = [("before", before), ("after", after)]
            for name, tree in order if number % 2 == 0 else reversed(order):
                print(f"{part}, round {number + 1}/{given.rounds}: {name}", file=sys.stderr, flush=True)
                sides[name].append(tree.figures(part, data))
        measured[part] = sides
        print("\n".join(rows(part, sides["before"], sides["after"], given.smallest)), flush=True)
        of_rounds = ratios(sides["before"], sides["after"])[WHOLE]
        slower += [part] * (statistics.median(of_rounds) > given.allowed)
    write(given.json, {"config": {"rounds": given.rounds}, "figures": measured})
    print(f"\nabove {given.allowed}: {', '.join(slower) or 'none'}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
