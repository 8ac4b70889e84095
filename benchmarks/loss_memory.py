"""What the loss over a large vocabulary costs: peak memory and time of one forward and backward pass.

    python -m benchmarks.loss_memory [--runs 5] [--threads 1 2] [--json FILE]

The loss is −log p(y|x) of RAG-Sequence over the generator's hidden states (B, K, T, H). ``naive`` holds the logits
(B, K, T, V) and their log-softmax; the other ways are those of this library. Every run is a process of its own, and
the ways take turns, so that what else the machine does meets all of them. A table goes to stdout.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.turns import peak_bytes
from latentrag.generator.gold import OutputHead
from latentrag.marginal import log_prior, sequence_log_likelihood

MIB = 1 << 20
LAYERS = {"frozen": "output layer frozen (LoRA)", "trained": "output layer trained"}


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes, in the symbols of latentrag.types; H is the generator's width."""

    B: int = 4
    K: int = 5
    T: int = 32
    H: int = 640
    V: int = 262_144
    seed: int = 0


TINY = Config(B=1, K=2, T=4, H=16, V=64)
"""Run before anything is measured, so that code and thread pools are loaded."""


class Model(nn.Module):
    """As much of a transformers model as ``OutputHead`` looks at."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = nn.Linear(config.H, config.V, bias=False)
        nn.init.normal_(self.layer.weight, std=0.05)
        self.config = SimpleNamespace(get_text_config=lambda **_: SimpleNamespace())

    def get_output_embeddings(self) -> nn.Linear:
        return self.layer


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """hidden: (B·K, T, H), ids: (B·K, T), mask: (B, T), scores: (B, K)."""

    config: Config
    model: Model
    hidden: Tensor
    ids: Tensor
    mask: Tensor
    scores: Tensor

    @classmethod
    def drawn(cls, config: Config, layer: str) -> "Problem":
        torch.manual_seed(config.seed)
        model = Model(config).requires_grad_(layer == "trained")
        rows = config.B * config.K
        return cls(
            config,
            model,
            torch.randn(rows, config.T, config.H).requires_grad_(),
            torch.randint(config.V, (config.B, config.T)).repeat_interleave(config.K, dim=0),
            torch.ones(config.B, config.T, dtype=torch.bool),
            torch.randn(config.B, config.K).requires_grad_(),
        )

    def loss(self, log_probs: Callable[["Problem"], Tensor]) -> Tensor:
        log_p_theta = log_probs(self).view(self.config.B, self.config.K, self.config.T)
        return -sequence_log_likelihood(log_prior(self.scores), log_p_theta, self.mask).sum()

    def gradients(self) -> dict[str, Tensor]:
        """Taken away, so that the next backward pass starts anew."""
        tensors = {"hidden": self.hidden, "scores": self.scores, "layer": self.model.layer.weight}
        found = {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}
        for tensor in tensors.values():
            tensor.grad = None
        return found


def naive(problem: Problem) -> Tensor:
    logits = problem.model.layer(problem.hidden)  # (B·K, T, V)
    return torch.log_softmax(logits, dim=-1).gather(-1, problem.ids[..., None])[..., 0]


def ours(problem: Problem) -> Tensor:
    mask = problem.mask.repeat_interleave(problem.config.K, dim=0)
    return OutputHead(problem.model).gold_log_probs(problem.hidden, problem.ids, mask)


WAYS: dict[str, Callable[[Problem], Tensor]] = {"naive": naive, "ours": ours}


def measure(way: str, layer: str) -> dict[str, float]:
    """One forward and backward pass in this process, which must be fresh: peaks cannot be reset."""
    Problem.drawn(TINY, layer).loss(WAYS[way]).backward()
    problem = Problem.drawn(Config(), layer)
    baseline = resident_bytes()
    if peak_bytes() - baseline > 16 * MIB:
        raise SystemExit("setting up took more memory than what is left of it; the peak would be hidden")
    wall, cpu = time.perf_counter(), time.process_time()
    problem.loss(WAYS[way]).backward()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    gradient = problem.gradients().get("layer")
    gradient_bytes = 0 if gradient is None else gradient.nbytes
    above = peak_bytes() - baseline
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_bytes": peak_bytes(),
        "above_baseline_bytes": above,
        "loss_bytes": above - gradient_bytes,
    }


def resident_bytes() -> int:
    """Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def differences(layer: str) -> dict[str, dict[str, float]]:
    """For each way, its loss's distance from the naive one, and its gradients' relative to their norm."""
    problem = Problem.drawn(Config(), layer)
    expected_loss = problem.loss(naive)
    expected_loss.backward()
    expected = problem.gradients()
    found: dict[str, dict[str, float]] = {}
    for name in [way for way in WAYS if way != "naive"]:
        loss = problem.loss(WAYS[name])
        loss.backward()
        found[name] = {"loss": abs(loss.item() / expected_loss.item() - 1)}
        for key, gradient in problem.gradients().items():
            found[name][key] = float((gradient - expected[key]).norm() / expected[key].norm())
    return found


def in_process(*arguments: str, threads: int) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.loss_memory", *arguments]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return json.loads(done.stdout)


def plan(num_runs: int, threads: list[int]) -> Iterator[dict[str, Any]]:
    """The ways take turns within each run."""
    for number, num_threads, layer, way in itertools.product(range(num_runs), threads, LAYERS, WAYS):
        yield {"run": number + 1, "threads": num_threads, "layer": layer, "way": way}


def table(rows: list[dict[str, Any]]) -> str:
    """Medians, with the ratio to the naive way of the same column."""
    lines = []
    for num_threads in sorted({row["threads"] for row in rows}):
        for layer, description in LAYERS.items():
            lines += [
                "",
                f"{description}, {num_threads} thread{'s' if num_threads > 1 else ''}:",
                "",
                "| | process, MiB | above its start | without the layer's gradient | wall, s | processor, s |",
                "|---|---|---|---|---|---|",
            ]
            of_way = {
                way: [r for r in rows if (r["threads"], r["layer"], r["way"]) == (num_threads, layer, way)]
                for way in WAYS
            }
            lines += [f"| {way} | " + " | ".join(cells(of_way[way], of_way["naive"])) + " |" for way in WAYS]
    return "\n".join(lines[1:])


def cells(rows: list[dict[str, Any]], peers: list[dict[str, Any]]) -> Iterator[str]:
    for key in ("peak_bytes", "above_baseline_bytes", "loss_bytes", "wall_s", "cpu_s"):
        found, peer = (statistics.median(row[key] for row in group) for group in (rows, peers))
        value = f"{found / MIB:,.0f}" if key.endswith("bytes") else f"{found:.2f}"
        yield value if rows is peers else f"{value} (÷ {peer / found:.3g})"


def processor() -> str:
    info = Path("/proc/cpuinfo").read_text()
    return next((line.split(": ")[1] for line in info.splitlines() if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="where to write all figures; one cut short is continued")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "LAYER"), help=argparse.SUPPRESS)
    parser.add_argument("--differences", choices=LAYERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one or arguments.differences:
        print(json.dumps(measure(*arguments.one) if arguments.one else differences(arguments.differences)))
        return
    report = described(arguments.runs)
    if arguments.json and arguments.json.exists():
        before = json.loads(arguments.json.read_text(encoding="utf-8"))
        if any(before[key] != report[key] for key in report):
            raise SystemExit(f"{arguments.json} is of another machine, version or configuration; name another file")
        report = before
    report.setdefault(
        "relative differences", {layer: in_process("--differences", layer, threads=2) for layer in LAYERS}
    )
    rows = report.setdefault("rows", [])
    for row in list(plan(arguments.runs, arguments.threads))[len(rows) :]:
        rows.append({**row, **in_process("--one", row["way"], row["layer"], threads=row["threads"])})
        print(", ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    print("\nRelative differences from naive:", json.dumps(report["relative differences"]))


def described(num_runs: int) -> dict[str, Any]:
    return {
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "config": {**asdict(Config()), "dtype": "float32", "runs": num_runs},
    }


if __name__ == "__main__":
    main()
