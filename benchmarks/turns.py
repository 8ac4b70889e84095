"""Measurements in turns: every way in a process of its own with one thread, round by round, under two settings of
glibc's allocator; tables of medians and ratios, and everything as JSON."""

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

MIB = 1 << 20
SETTINGS = {"default": {}, "tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}}
"""The second spares the system calls for large blocks."""
Results = dict[tuple[str, str], list[dict[str, Any]]]
"""By setting and way."""


def measured(run: Callable[[], Any], warm_up: Callable[[], Any]) -> dict[str, Any]:
    """Time, processor time and memory of one call, after another that loads code, weights and thread pools."""
    import torch

    torch.set_num_threads(1)
    warm_up()
    before = peak_bytes()
    started, cpu = time.perf_counter(), time.process_time()
    found = run()
    took, busy = time.perf_counter() - started, time.process_time() - cpu
    peak = peak_bytes()
    return {"s": took, "cpu_s": busy, "peak_bytes": peak, "added_bytes": peak - before, "found": found}


def peak_bytes() -> int:
    """The most that the process ever held. On Linux what getrusage has is at least what its parent held."""
    if sys.platform.startswith("linux"):
        return int(Path("/proc/self/status").read_text("utf-8").partition("VmHWM:")[2].split()[0]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_turns(module: str, ways: Sequence[str], settings: Sequence[str], runs: int, config: Any) -> Results:
    """``python -m MODULE --one WAY CONFIG`` prints what ``measured`` has found, as JSON; the ways take turns."""
    results: Results = {}
    for number, setting, way in itertools.product(range(runs), settings, ways):
        print(f"round {number + 1}/{runs}, {setting}: {way}", file=sys.stderr)
        results.setdefault((setting, way), []).append(_apart(module, way, setting, config))
    return results


def _apart(module: str, way: str, setting: str, config: Any) -> dict[str, Any]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", module, "--one", way, json.dumps(asdict(config))],
        env={**others, **SETTINGS[setting], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"error: {way} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: Results) -> Iterator[str]:
    """Medians."""
    yield "| way | malloc | s | CPU s | peak MiB | of it in this call |"
    yield "|---|---|---|---|---|---|"
    for (setting, way), runs in results.items():
        s, cpu, peak, added = (
            statistics.median(run[name] for run in runs) for name in ("s", "cpu_s", "peak_bytes", "added_bytes")
        )
        yield f"| {way} | {setting} | {s:.2f} | {cpu:.2f} | {peak / MIB:.0f} | {added / MIB:.0f} |"


def ratios(results: Results, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Of processor time, round by round, of peak memory, and how many of what was found is the same."""
    yield "| ratio | malloc | median | lowest | highest | peak memory | same |"
    yield "|---|---|---|---|---|---|---|"
    for setting in SETTINGS:
        for one, other in pairs:
            if (setting, one) in results and (setting, other) in results:
                yield _ratio(results, setting, one, other)


def _ratio(results: Results, setting: str, one: str, other: str) -> str:
    a, b = results[setting, one], results[setting, other]
    quotients = [x["cpu_s"] / y["cpu_s"] for x, y in zip(a, b, strict=True)]
    memory = statistics.median(y["peak_bytes"] for y in b) / statistics.median(x["peak_bytes"] for x in a)
    comparable = 0 < len(a[0]["found"]) == len(b[0]["found"])
    same = sum(x == y for x, y in zip(a[0]["found"], b[0]["found"], strict=True)) if comparable else None
    shown = "–" if same is None else f"{same} of {len(b[0]['found'])}"
    return (
        f"| {one} / {other} | {setting} | {statistics.median(quotients):.2f} | {min(quotients):.2f} | "
        f"{max(quotients):.2f} | {memory:.2f} | {shown} |"
    )


def report(
    results: Results,
    pairs: Sequence[tuple[str, str]],
    config: Any,
    *,
    about: str,
    file: Path | None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Tables on stdout, and everything as JSON in a file, with what is known besides."""
    print(f"{about}; one thread; medians\n")
    print("\n".join([*table(results), "", *ratios(results, pairs)]))
    runs = [{"malloc": setting, "way": way, "runs": each} for (setting, way), each in results.items()]
    write(file, {"config": asdict(config), "ways": runs, **(more or {})})


def write(file: Path | None, content: Mapping[str, Any]) -> None:
    """A report as JSON, with the machine and the versions that it was made with."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**content, **machine()}) + "\n", "utf-8")


def machine() -> dict[str, Any]:
    """Processor, system, versions."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {"platform": platform.platform(), "processor": _processor(), "python": platform.python_version(), **versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def parser(description: str | None, ways: Sequence[str]) -> argparse.ArgumentParser:
    """The options that all of them have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--runs", type=int, default=5)
    made.add_argument("--ways", nargs="+", choices=ways, default=list(ways))
    made.add_argument("--malloc", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    made.add_argument("--json", type=Path)
    return made
