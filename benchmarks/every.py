"""Every benchmark in turn, each with its report under one folder.

    python -m benchmarks.every --data FOLDER [--out build/bench] [--runs N] [--quick] [--only NAME …]

NAME.md gets what a benchmark prints, NAME.json its figures with machine and versions. With ``--quick`` sizes are small:
minutes, to see that all of them run; otherwise it takes hours. One that fails does not keep the others from running.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent

SMALL_LOAD = "--parts saturation open --rounds 1 --changed 4 --clients 4 --seconds 20".split()


def commands(*, data: Path, work: Path, runs: int, quick: bool) -> dict[str, list[str]]:
    """The module and the arguments of each, by the name of its report."""
    clues = ["--data", str(data / "jeopardy-vital.dev.jsonl.gz"), "--prefix-field", "category"]
    turns = ["--runs", str(runs)]
    if quick:
        turns += ["--malloc", "default"]
        return {
            "decoding": ["decoding", *turns, "--size", "tiny"],
            "roofline": ["roofline", "--runs", str(runs), "--size", "tiny"],
            "training": ["training_step", *turns, "--size", "tiny"],
            "encoding": ["encoding", *turns, "--limit", "64"],
            "ask": ["ask", *clues, "--questions", "3"],
            "cache": ["passage_cache", *clues, "--questions", "3", "--stream", "30"],
            "memory": ["memory", "--work", str(work / "memory"), "--runs", "1", "--size", "20000", "--dimension", "64"],
            "swap": ["swap", "--answers", "200", "--swaps", "5"],
            "sync": ["sync", "--work", str(work), "--files", "100"],
            "serving": ["serving", *clues, *SMALL_LOAD],
        }
    return {
        "decoding": ["decoding", *turns],
        "decoding-10": ["decoding", *turns, "--passages", "10"],
        "decoding-large": ["decoding", "--runs", str(min(runs, 3)), "--size", "large"],
        "roofline": ["roofline", "--runs", str(runs)],
        "training": ["training_step", *turns],
        "training-real": ["training_step", *turns, "--lengths", "real"],
        "loss-memory": ["loss_memory", *turns],
        "encoding": ["encoding", *turns],
        "ask": ["ask", *clues],
        "cache": ["passage_cache", *clues],
        "memory": ["memory", "--work", str(work / "memory")],
        "swap": ["swap"],
        "sync": ["sync", "--work", str(work)],
        "serving": ["serving", *clues],
    }


def run(each: Mapping[str, Sequence[str]], out: Path) -> list[str]:
    """Run them. Returns: the names of those that failed."""
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for number, (name, (module, *arguments)) in enumerate(each.items(), 1):
        print(f"{number}/{len(each)} {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--json", str(out / f"{name}.json")]
        with (out / f"{name}.md").open("w", encoding="utf-8") as printed:
            code = subprocess.run(command, cwd=ROOT, stdout=printed, check=False).returncode  # noqa: S603
        ended = "done" if code == 0 else f"failed with {code}"
        print(f"{name}: {ended} after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        failed += [name] * (code != 0)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--runs", type=int, help="of those that take turns; default: 5, quick: 1")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone")
    given = parser.parse_args()
    out = given.out.absolute()
    runs = given.runs or (1 if given.quick else 5)
    each = commands(data=given.data.absolute(), work=out / "work", runs=runs, quick=given.quick)
    if given.only is not None:
        unknown = sorted(set(given.only) - set(each))
        if unknown:
            parser.error(f"there is no {unknown[0]}; name some of {', '.join(each)}")
        each = {name: each[name] for name in given.only}
    failed = run(each, out)
    if failed:
        print(f"error: {', '.join(failed)} failed; see above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
