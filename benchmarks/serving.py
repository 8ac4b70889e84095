"""This tree's server beside another tree's: under load, with a large question in the way, for long.

    python -m benchmarks.serving --data CLUES.jsonl[.gz] [--before ../before] [--parts NAME …] [--json FILE]

Each tree's `latentrag serve` runs over the same copy of a memory with two versions, with its own sources and the same
interpreter; the trees take turns, and the other begins in every second round. No question is asked twice in a round,
and both trees get the same ones. Clients ask over streams, in one thread of this process.

    saturation  --clients clients that never pause: answers a second from the first --batch on, times, the share of the
                cores that is used
    open        a Poisson process with --load times the answers a second that the tree before had at saturation
    beside      2 passages a second after a question with 60: its time beside alone
    killed      a client with 60 passages goes after 1.5 s: what the server still computes for it, and how long a
                question with 2 passages that comes then takes, beside alone
    long        --long-seconds of saturation, while the memory is exchanged --swaps times: resident memory by thirds;
                before them --warm-seconds, in which the cache of passages gets full

Every part and round is a row of --json. What is there already, with the same settings, is not measured again, so a run
can be interrupted, and parts can be run one by one. An answer that does not come, or is made of two versions, counts as
failed.
"""

import argparse
import asyncio
import itertools
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.serving_clients import Reply, as_they_come, ask, beside, client, gaps_of, leave, without_pause
from benchmarks.serving_plan import Kept, Plan, prepared

ROOT = Path(__file__).parent.parent
PARTS = ("saturation", "open", "beside", "killed", "long")
TREES = ("before", "after")
LARGE_K, SMALL_K = 60, 2
KILLED_AFTER_S, WATCHED_S = 1.5, 20.0
TRIES = 3
SAMPLED_EVERY_S = 2.0
MIB = 1 << 20
PATIENCE_S = 600
"""How long a request may wait for its turn, too: clients that never pause wait for all others."""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """A process that serves."""

    process: "subprocess.Popen[str]"
    url: str

    def rss_bytes(self) -> int:
        """Resident memory."""
        found = re.search(r"^VmRSS:\s+(\d+) kB", self._of_kernel("status"), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0

    def cpu_s(self) -> float:
        """Processor time, of all threads."""
        user, system = self._of_kernel("stat").rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def steps(self) -> int:
        """How many batches, or steps of the table, it has done."""
        import httpx

        text = httpx.get(f"{self.url}/metrics", timeout=PATIENCE_S).text
        found = re.search(r"^latentrag_batch_size_count (\d+)", text, re.MULTILINE)
        return int(found[1]) if found else 0

    def use(self, version: int) -> None:
        """Exchange the memory."""
        import httpx

        body = {"action": "use", "version": version}
        httpx.post(f"{self.url}/v1/memory", json=body, timeout=PATIENCE_S).raise_for_status()

    def _of_kernel(self, name: str) -> str:
        return Path(f"/proc/{self.process.pid}/{name}").read_text("ascii")


@contextmanager
def serving(given: argparse.Namespace, name: str, tree: Path, memory: Path) -> Iterator[Server]:
    """A tree's server; at the end it must stop in order."""
    model = given.before_model or given.model if name == TREES[0] else given.model
    command = [sys.executable, "-m", "latentrag", "serve", "-m", model, "-i", str(memory), "--port", "0"]
    command += ["--quiet", "--wait", str(PATIENCE_S), "--batch", str(given.batch)]
    paths = os.pathsep.join([str(tree / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(  # noqa: S603
        command, cwd=tree, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            said = next((line for line in process.stderr if " at http://" in line), None)
            assert said is not None, f"the server of {tree} did not start"
            drain = threading.Thread(target=process.stderr.read, daemon=True)
            drain.start()
            yield Server(process, said.split()[-1])
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0, "the server did not stop in order"
        finally:
            process.kill()


@dataclass(frozen=True)
class Run:
    """A tree's turn. start: its first question."""

    given: argparse.Namespace
    plan: Plan
    server: Server
    start: int

    def saturation(self, seconds: float | None = None) -> Figures:
        """Clients that never pause."""
        seconds = seconds or self.given.seconds

        async def asking() -> list[Reply]:
            async with client(self.server.url, PATIENCE_S) as http:
                bodies = self.plan.bodies(self.start)
                return await without_pause(http, bodies, self.plan, clients=self.given.clients, seconds=seconds)

        before, began_s = self.server.cpu_s(), time.monotonic()
        replies = asyncio.run(asking())
        busy = (self.server.cpu_s() - before) / (time.monotonic() - began_s) / (os.cpu_count() or 1)
        rate = answers_per_s(replies, self.given.batch)
        return {**summary(replies), "answers_per_s": rate, "share_of_cores": busy}

    def open(self, rate: float) -> Figures:
        """Clients that come at this rate."""

        async def asking() -> list[Reply]:
            async with client(self.server.url, PATIENCE_S) as http:
                gaps = gaps_of(rate, self.given.seconds, seed=self.start)
                return await as_they_come(http, self.plan.bodies(self.start), self.plan, gaps=gaps)

        return {"rate": rate, **summary(asyncio.run(asking()))}

    def beside(self) -> Figures:
        """A small question alone and beside a large one, several times."""

        async def asking() -> Figures:
            small = self.plan.bodies(self.start, k=SMALL_K)
            large = self.plan.bodies(self.start + len(self.plan.questions) // 2, k=LARGE_K)
            alone, both = [], []
            async with client(self.server.url, PATIENCE_S) as http:
                await ask(http, next(small), self.plan)
                for _ in range(TRIES):
                    alone.append(await ask(http, next(small), self.plan))
                    both.append(await beside(http, next(large), next(small), self.plan, after_s=1.0))
            return {
                "alone_s": [each.whole_s for each in alone],
                "beside_s": [each.whole_s for _, each in both],
                "large_s": [each.whole_s for each, _ in both],
                "failed": sum(bool(each.error) for each in (*alone, *itertools.chain(*both))),
            }

        return asyncio.run(asking())

    def killed(self) -> Figures:
        """A large question whose client goes; then nothing for some time, and in other tries a small question."""

        async def leaving(body: Any) -> bool:
            async with client(self.server.url, PATIENCE_S) as http:
                return await leave(http, body, self.plan, after_s=KILLED_AFTER_S)

        async def small(body: Any) -> float | None:
            async with client(self.server.url, PATIENCE_S) as http:
                return (await ask(http, body, self.plan)).whole_s

        found: dict[str, list[Any]] = {"alone_s": [], "after_s": [], "cpu_s": [], "steps": [], "was_under_way": []}
        large, bodies = self.plan.bodies(self.start, k=LARGE_K), self.plan.bodies(self.start + 100, k=SMALL_K)
        asyncio.run(small(next(bodies)))
        for _ in range(TRIES):
            found["alone_s"].append(asyncio.run(small(next(bodies))))
            found["was_under_way"].append(asyncio.run(leaving(next(large))))
            cpu_s, steps = self.server.cpu_s(), self.server.steps()
            time.sleep(WATCHED_S)
            found["cpu_s"].append(self.server.cpu_s() - cpu_s)
            found["steps"].append(self.server.steps() - steps)
            asyncio.run(leaving(next(large)))
            found["after_s"].append(asyncio.run(small(next(bodies))))
            time.sleep(WATCHED_S)
        return dict(found)

    def long(self) -> Figures:
        """Saturation with exchanges at even distances, and the server's memory looked at."""
        stop, rss, exchanges = threading.Event(), list[tuple[float, int]](), list[float]()
        given = self.given

        def watch() -> None:
            began_s = time.monotonic()
            while not stop.wait(SAMPLED_EVERY_S):
                rss.append((time.monotonic() - began_s, self.server.rss_bytes()))

        def exchange() -> None:
            for count in range(given.swaps):
                if stop.wait(given.long_seconds / (given.swaps + 1) + given.warm_seconds * (count == 0)):
                    return
                began_s = time.monotonic()
                self.server.use(self.plan.versions[count % 2])
                exchanges.append(time.monotonic() - began_s)

        threads = [threading.Thread(target=each) for each in (watch, exchange)]
        for thread in threads:
            thread.start()
        try:
            figures = self.saturation(given.warm_seconds + given.long_seconds)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        warm = [(3 * (at_s - given.warm_seconds) / given.long_seconds, bytes_) for at_s, bytes_ in rss]
        thirds = [statistics.median(bytes_ for at, bytes_ in warm if part <= at < part + 1) for part in range(3)]
        return {**figures, "swaps": len(exchanges), "swap_s": exchanges, "rss_of_thirds_bytes": thirds, "rss": rss}


def answers_per_s(replies: Sequence[Reply], num_first: int) -> float:
    """Right answers a second from the first so many on to the last: how long these take says how the server begins, and
    what is under way at the end is neither lost nor counted."""
    ends = sorted(each.asked_s + each.whole_s for each in replies if each.whole_s is not None and not each.error)
    if len(ends) <= num_first:
        raise SystemExit(f"error: {len(ends)} answers, needed more than {num_first}; measure for longer")
    return (len(ends) - num_first) / (ends[-1] - ends[num_first - 1])


def summary(replies: Sequence[Reply]) -> Figures:
    """Numbers and percentiles of what became of requests."""
    right = [each for each in replies if not each.error]
    found: Figures = {"answers": len(right), "failed": len(replies) - len(right)}
    found["errors"] = sorted({each.error for each in replies if each.error})
    for name in ("first", "whole"):
        times = [value for each in right if (value := getattr(each, f"{name}_s")) is not None]
        found |= {f"{name}_p{percent}_s": percentile(times, percent) for percent in (50, 95)}
    return found


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The least value that so many percent do not exceed; None of nothing."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)] if values else None


def measure(given: argparse.Namespace, kept: Kept, plan: Plan, trees: dict[str, Path]) -> None:
    """Every part and round that is not there yet, the trees in turns."""
    for part in given.parts:
        for number in range(1 if part == "long" else given.rounds):
            order = list(trees) if number % 2 == 0 else list(reversed(trees))
            for tree in order if part != "long" else order[-1:]:
                if kept.has(part, tree, number):
                    continue
                print(f"{part}, round {number + 1}: {tree}", file=sys.stderr, flush=True)
                with serving(given, tree, trees[tree], plan.memory) as server:
                    run = Run(given, plan, server, start=1_000 * number)
                    kept.add(part, tree, number, figures_of(run, part, kept)())


def figures_of(run: Run, part: str, kept: Kept) -> Callable[[], Figures]:
    """What measures a part."""
    if part != "open":
        figures: Callable[[], Figures] = getattr(run, part)
        return figures
    first = kept.of_part("saturation", TREES[0]) or kept.of_part("saturation", TREES[1])
    if not first:
        raise SystemExit("error: the rate of arrivals follows from saturation; run that part first")
    return partial(run.open, run.given.load * statistics.median(row["answers_per_s"] for row in first))


def shown(kept: Kept) -> Iterator[str]:
    """The figures as tables: medians over rounds."""
    for part, names in {
        "saturation": ["answers_per_s", "share_of_cores", "first_p95_s", "whole_p50_s", "whole_p95_s", "failed"],
        "open": ["rate", "first_p50_s", "first_p95_s", "whole_p50_s", "whole_p95_s", "failed"],
        "beside": ["alone_s", "beside_s", "large_s", "failed"],
        "killed": ["alone_s", "after_s", "cpu_s", "steps"],
        "long": ["answers", "failed", "answers_per_s", "whole_p95_s", "swaps", "swap_s"],
    }.items():
        rows = {tree: kept.of_part(part, tree) for tree in TREES if kept.of_part(part, tree)}
        if rows:
            yield f"\n| {part} | {' | '.join(names)} |\n|---|{'---|' * len(names)}"
        for tree, of_tree in rows.items():
            medians = [median_of(of_tree, name) for name in names]
            yield f"| {tree}, {len(of_tree)} rounds | {' | '.join(medians)} |"
    for row in kept.of_part("long", TREES[1]):
        thirds = [f"{each / MIB:.0f}" for each in row["rss_of_thirds_bytes"]]
        yield f"\nresident memory, median of each third: {', '.join(thirds)} MiB"


def median_of(rows: Sequence[Figures], name: str) -> str:
    """The median over rounds, and tries of each."""
    values = [row.get(name) for row in rows]
    known = [each for value in values for each in (value if isinstance(value, list) else [value]) if each is not None]
    return f"{statistics.median(known):.2f}" if known else "–"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="questions, one JSON object a line")
    parser.add_argument("--prefix-field", metavar="NAME", help="put before each question: category, for clues")
    parser.add_argument("--before", type=Path, help="another source tree; default: this one is measured alone")
    parser.add_argument("--before-model", metavar="FOLDER", help="the same model in that tree's format")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--memory", default="demo")
    parser.add_argument("--changed", type=int, default=100, help="questions whose passages differ between the versions")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--long-seconds", type=float, default=600)
    parser.add_argument("--warm-seconds", type=float, default=300)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="where figures are kept; default: nowhere")
    given = parser.parse_args()
    others = {"parts", "json", "before", "before_model", "rounds"}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    kept = Kept(given.json, {name: value for name, value in settings.items() if name not in others})
    trees = {} if given.before is None else {TREES[0]: given.before.absolute()}
    with tempfile.TemporaryDirectory() as scratch:
        measure(given, kept, prepared(given, Path(scratch)), {**trees, TREES[1]: ROOT})
    print("\n".join(shown(kept)))
    return 1 if any(row.get("failed") for row in kept.rows if row["tree"] == TREES[1]) else 0


if __name__ == "__main__":
    sys.exit(main())
