"""Decoding beside transformers' RAG and beside the limit: time, peak memory, and whether the answers are the same.

    python -m benchmarks.decoding [--size base|large] [--passages 5] [--runs 5] [--ways NAME …] [--json FILE]

Weights are random, equal on all sides, and so are the contexts; every way writes exactly ``--tokens`` tokens, since
the bias of the end token's logit rules it out. Every measurement is a process of its own with one thread; the ways
take turns, under glibc's usual settings and with MALLOC_MMAP_MAX_=0, which spares the system calls for large blocks.
A table goes to stdout.

    their token      RagTokenForGeneration.generate          token       marginal beam, RAG-Token
    their thorough   RagSequenceForGeneration.generate       exact       marginal beam, RAG-Sequence
    their generate   the bare BART's, a beam a passage       thorough    Thorough Decoding
                                                             fast        Fast Decoding
    encode           the encoder alone                       each        a beam a passage, nothing more
    bare loop        encoder, and the decoder's steps of a beam that never moves
"""

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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

MIB = 1 << 20
THEIRS = ["their token", "their thorough", "their generate"]
OURS = ["encode", "bare loop", "token", "exact", "each", "fast", "thorough"]
SETTINGS = {"default": {}, "tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}}
RATIOS = [
    ("their token", "token"),
    ("their thorough", "exact"),
    ("their thorough", "thorough"),
    ("fast", "each"),
    ("exact", "bare loop"),
]
BEGIN, PAD, END = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes, in the symbols of latentrag.types; L is the contexts' length, M the number of beams."""

    size: str = "base"
    B: int = 4
    K: int = 5
    L: int = 128
    M: int = 4
    tokens: int = 20
    seed: int = 0


def bart(config: Config) -> Any:
    """BART with random weights, sharp enough that beams differ."""
    from transformers import BartConfig, BartForConditionalGeneration

    width, layers, heads = {"tiny": (16, 1, 2), "base": (768, 6, 12), "large": (1024, 12, 16)}[config.size]
    torch.manual_seed(config.seed)
    made = BartForConditionalGeneration(
        BartConfig(
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            init_std=0.06,
            forced_eos_token_id=None,
        )
    )
    made.final_logits_bias[0, END] = -1e9
    return made.eval()


def contexts(config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and mask (B·K, L), and the retriever's scores (B, K)."""
    random = torch.Generator().manual_seed(config.seed)
    ids = torch.randint(10, 50_000, (config.B * config.K, config.L), generator=random)
    ids[:, 0], ids[:, -1] = BEGIN, END
    return ids, torch.ones_like(ids), 2 * torch.randn(config.B, config.K, generator=random)


# Ways. Each is prepared once and then called; it returns for every question the best sequence of tokens.

Found = list[list[int]]


def theirs(way: str, config: Config) -> Callable[[], Found]:
    from transformers import DPRConfig, DPRQuestionEncoder, RagConfig, RagSequenceForGeneration, RagTokenForGeneration

    model = bart(config)
    ids, mask, scores = contexts(config)
    asked = {
        "num_beams": config.M,
        "num_return_sequences": 1,
        "decoder_start_token_id": BEGIN,
        "length_penalty": 0.0,
    }
    if way == "their generate":
        asked |= {"input_ids": ids, "attention_mask": mask, "max_new_tokens": config.tokens, "do_sample": False}
        return lambda: [row[1:] for row in model.generate(**asked).tolist()]
    reader = DPRQuestionEncoder(DPRConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, vocab_size=64))
    joint = RagConfig.from_question_encoder_generator_configs(
        reader.config,
        model.config,
        n_docs=config.K,
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
        decoder_start_token_id=BEGIN,
        forced_eos_token_id=None,
    )
    kind = RagTokenForGeneration if way == "their token" else RagSequenceForGeneration
    rag = kind(joint, question_encoder=reader, generator=model).eval()
    rag.generator.generation_config.decoder_start_token_id = BEGIN
    asked |= {"max_length": config.tokens + 1}
    if way == "their thorough":
        asked["do_deduplication"] = True
    return lambda: [
        row[1:]
        for row in rag.generate(
            context_input_ids=ids, context_attention_mask=mask, doc_scores=scores, n_docs=config.K, **asked
        ).tolist()
    ]


def ours(way: str, config: Config) -> Callable[[], Found]:
    from latentrag.decoding import DecodingOptions, fast, marginal_beam, thorough
    from latentrag.generator.seq2seq import PreparedContexts, Seq2SeqGenerator
    from latentrag.marginal import log_prior

    generator = Seq2SeqGenerator(bart(config), Tokenizer(), decoder_prefix=[BEGIN])
    ids, mask, scores = contexts(config)
    log_p_eta = log_prior(scores)
    options = DecodingOptions(num_beams=config.M, max_tokens=config.tokens, length_penalty=0.0)

    def prepared() -> PreparedContexts:
        with torch.no_grad():
            states = generator.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        return PreparedContexts(states, mask.bool(), config.B, config.K)

    def bare() -> Found:
        rows = torch.arange(config.B)[:, None] * torch.ones(1, config.M, dtype=torch.long)
        stay = torch.arange(config.B * config.M).view(config.B, config.M)
        with torch.no_grad():
            log_p, state = generator.start(prepared())
            for step in range(config.tokens - 1):
                log_p, state = generator.step(state, rows if step == 0 else stay, torch.full_like(stay, 7))
        return [[log_p.shape[0]]]

    def best(found: list[list[Any]]) -> Found:
        return [list(of_one[0].ids) for of_one in found]

    def each() -> Found:
        alone = log_p_eta.new_zeros(config.B * config.K, 1)
        return best(marginal_beam(generator, prepared().each_passage(), alone, variant="sequence", options=options))

    ways: dict[str, Callable[[], Found]] = {
        "encode": lambda: [[len(prepared().states)]],
        "bare loop": bare,
        "token": lambda: best(marginal_beam(generator, prepared(), log_p_eta, variant="token", options=options)),
        "exact": lambda: best(marginal_beam(generator, prepared(), log_p_eta, variant="sequence", options=options)),
        "each": each,
        "fast": lambda: best(fast(generator, prepared(), log_p_eta, options=options)),
        "thorough": lambda: best(thorough(generator, prepared(), log_p_eta, options=options)),
    }
    return ways[way]


class Tokenizer(SimpleNamespace):
    """As much of a tokenizer as the generator asks before it reads text; the contexts are tokens already."""

    def __init__(self) -> None:
        super().__init__(eos_token_id=END, pad_token_id=PAD, bos_token_id=BEGIN, model_max_length=1024)


# Measuring


def measure(way: str, config: Config) -> dict[str, Any]:
    """In a process of its own."""
    torch.set_num_threads(1)
    make = theirs if way in THEIRS else ours
    with torch.no_grad():
        make(way, Config(size="tiny", B=1, K=2, L=8, M=2, tokens=3))()
        run = make(way, config)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        started, cpu = time.perf_counter(), time.process_time()
        found = run()
        took, busy = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"s": took, "cpu_s": busy, "peak_bytes": peak, "added_bytes": peak - before, "found": found}


def measured_apart(way: str, setting: str, config: Config) -> dict[str, Any]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")},
        **SETTINGS[setting],
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "benchmarks.decoding", "--one", way, json.dumps(asdict(config))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"error: {way} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rounds(
    ways: list[str], settings: list[str], runs: int, config: Config
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for number, setting, way in itertools.product(range(runs), settings, ways):
        print(f"round {number + 1}/{runs}, {setting}: {way}", file=sys.stderr)
        yield setting, way, measured_apart(way, setting, config)


def table(results: dict[tuple[str, str], list[dict[str, Any]]], config: Config) -> str:
    sizes = f"BART-{config.size}, B {config.B}, K {config.K}, L {config.L}, {config.M} beams, {config.tokens} tokens"
    lines = [
        f"{sizes}; one thread, float32; medians, s",
        "",
        "| way | malloc | s | CPU s | peak MiB | of it while decoding |",
        "|---|---|---|---|---|---|",
    ]
    for (setting, way), runs in results.items():
        s, cpu, peak, added = (
            statistics.median(run[name] for run in runs) for name in ("s", "cpu_s", "peak_bytes", "added_bytes")
        )
        lines.append(f"| {way} | {setting} | {s:.2f} | {cpu:.2f} | {peak / MIB:.0f} | {added / MIB:.0f} |")
    lines += [
        "",
        "| ratio | malloc | median | lowest | highest | peak memory | same best |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting in SETTINGS:
        for one, other in RATIOS:
            if (setting, one) in results and (setting, other) in results:
                lines.append(_ratio(results, setting, one, other))
    return "\n".join(lines)


def _ratio(results: dict[tuple[str, str], list[dict[str, Any]]], setting: str, one: str, other: str) -> str:
    a, b = results[setting, one], results[setting, other]
    quotients = [x["cpu_s"] / y["cpu_s"] for x, y in zip(a, b, strict=True)]
    memory = statistics.median(y["peak_bytes"] for y in b) / statistics.median(x["peak_bytes"] for x in a)
    same = sum(x == y for x, y in zip(a[0]["found"], b[0]["found"], strict=False))
    number = len(b[0]["found"])
    return (
        f"| {one} / {other} | {setting} | {statistics.median(quotients):.2f} | {min(quotients):.2f} | "
        f"{max(quotients):.2f} | {memory:.2f} | {same} of {number} |"
    )


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], Config(**json.loads(sys.argv[3])))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "base", "large"], default="base")
    parser.add_argument("--passages", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=THEIRS + OURS, default=THEIRS + OURS)
    parser.add_argument("--malloc", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    config = Config(size=given.size, K=given.passages, tokens=given.tokens)
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for setting, way, found in rounds(given.ways, given.malloc, given.runs, config):
        results.setdefault((setting, way), []).append(found)
    print(table(results, config))
    if given.json is not None:
        import transformers

        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        runs = [{"malloc": setting, "way": way, "runs": each} for (setting, way), each in results.items()]
        given.json.write_text(
            json.dumps({"config": asdict(config), "platform": platform.platform(), **versions, "ways": runs}) + "\n",
            "utf-8",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
