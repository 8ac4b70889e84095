"""What benchmarks beside transformers share: its BART with random weights, and measurements in turns, each in a process
of its own with one thread, under two settings of glibc's allocator."""

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

MIB = 1 << 20
SETTINGS = {"default": {}, "tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}}
"""The second spares the system calls for large blocks."""
BEGIN, PAD, END = 0, 1, 2
Results = dict[tuple[str, str], list[dict[str, Any]]]
"""By setting and way."""


def bart(size: str, *, seed: int, **changes: Any) -> Any:
    """BART with random weights, sharp enough that beams differ. size: "tiny", "base", "large"."""
    from transformers import BartConfig, BartForConditionalGeneration

    width, layers, heads = {"tiny": (16, 1, 2), "base": (768, 6, 12), "large": (1024, 12, 16)}[size]
    torch.manual_seed(seed)
    shape = {
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
    }
    return BartForConditionalGeneration(BartConfig(**shape, init_std=0.06, **changes)).eval()


def rag_of(model: Any, variant: str, num_passages: int) -> Any:
    """Transformers' RAG around a BART, with a question encoder that is never asked."""
    from transformers import DPRConfig, DPRQuestionEncoder, RagConfig, RagSequenceForGeneration, RagTokenForGeneration

    reader = DPRQuestionEncoder(DPRConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, vocab_size=64))
    config = RagConfig.from_question_encoder_generator_configs(
        reader.config,
        model.config,
        n_docs=num_passages,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
        decoder_start_token_id=BEGIN,
        forced_eos_token_id=None,
    )
    kind = RagTokenForGeneration if variant == "token" else RagSequenceForGeneration
    rag = kind(config, question_encoder=reader, generator=model).eval()
    rag.generator.generation_config.decoder_start_token_id = BEGIN
    return rag


class Tokenizer(SimpleNamespace):
    """As much of a tokenizer as the generator asks before it reads text; the contexts are tokens already."""

    def __init__(self) -> None:
        super().__init__(eos_token_id=END, pad_token_id=PAD, bos_token_id=BEGIN, model_max_length=1024)


def measured(run: Callable[[], Any], warm_up: Callable[[], Any]) -> dict[str, Any]:
    """Time, processor time and memory of one call, after another that loads code and thread pools."""
    torch.set_num_threads(1)
    warm_up()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started, cpu = time.perf_counter(), time.process_time()
    found = run()
    took, busy = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"s": took, "cpu_s": busy, "peak_bytes": peak, "added_bytes": peak - before, "found": found}


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
    comparable = len(a[0]["found"]) == len(b[0]["found"])
    same = sum(x == y for x, y in zip(a[0]["found"], b[0]["found"], strict=True)) if comparable else None
    shown = "–" if same is None else f"{same} of {len(b[0]['found'])}"
    return (
        f"| {one} / {other} | {setting} | {statistics.median(quotients):.2f} | {min(quotients):.2f} | "
        f"{max(quotients):.2f} | {memory:.2f} | {shown} |"
    )


def report(results: Results, pairs: Sequence[tuple[str, str]], config: Any, *, about: str, file: Path | None) -> None:
    """Tables on stdout, and everything as JSON in a file."""
    print(f"{about}; one thread, float32; medians\n")
    print("\n".join([*table(results), "", *ratios(results, pairs)]))
    if file is not None:
        import transformers

        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        runs = [{"malloc": setting, "way": way, "runs": each} for (setting, way), each in results.items()]
        content = {"config": asdict(config), "platform": platform.platform(), **versions, "ways": runs}
        file.write_text(json.dumps(content) + "\n", "utf-8")


def parser(description: str | None, ways: Sequence[str]) -> argparse.ArgumentParser:
    """The options that all of them have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--size", choices=["tiny", "base", "large"], default="base")
    made.add_argument("--passages", type=int, default=5)
    made.add_argument("--runs", type=int, default=5)
    made.add_argument("--ways", nargs="+", choices=ways, default=list(ways))
    made.add_argument("--malloc", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    made.add_argument("--json", type=Path)
    return made
