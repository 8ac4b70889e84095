"""Decoding and a training step on a GPU: time and peak memory with 5, 10 and 50 passages.

    python -m benchmarks.gpu [--passages 5 10 50] [--runs 5] [--json FILE]
    python -m benchmarks.gpu --device cpu --size tiny        to see that it runs

A BART-large and a Llama of 1.2 billion parameters, both with random weights, in bfloat16; B questions, contexts of L
tokens, M beams, every answer of exactly as many tokens. One process; every way once to warm up, then medians.

    read       what the generator makes of the contexts, and the first token
    token      marginal beam, RAG-Token                exact      marginal beam, RAG-Sequence
    fast       Fast Decoding                           thorough   Thorough Decoding
    train      RAG-Sequence: forward, backward, AdamW
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.beside_transformers import BEGIN, Tokenizer, bart
from benchmarks.turns import MIB, write

MODELS = ("bart", "llama")
WAYS = ("read", "token", "exact", "fast", "thorough", "train")
QUESTION = 4
"""The part of a causal prompt that is the question: one in so many."""


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes, in the symbols of latentrag.types; L is the contexts' length."""

    size: str = "large"
    device: str = "cuda"
    dtype: str = "bfloat16"
    B: int = 4
    L: int = 128
    M: int = 4
    tokens: int = 20
    runs: int = 5
    seed: int = 0


def generator_of(kind: str, config: Config) -> Any:
    """With random weights."""
    from latentrag.generator import CausalGenerator, PromptTemplate, Seq2SeqGenerator

    model = bart(config.size, seed=config.seed, forced_eos_token_id=None) if kind == "bart" else _llama(config)
    model = model.to(config.device, getattr(torch, config.dtype))
    if kind == "bart":
        return Seq2SeqGenerator(model, Tokenizer(), decoder_prefix=[BEGIN])
    return CausalGenerator(model, Tokenizer(), template=PromptTemplate(end=None))


def _llama(config: Config) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, heads, vocabulary = (16, 1, 2, 1000) if config.size == "tiny" else (2048, 16, 32, 128_256)
    shape = LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.06,
    )
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(shape).eval()


def contexts(kind: str, generator: Any, num_passages: int, config: Config) -> Callable[[], Any]:
    """A function that prepares the same contexts anew."""
    from latentrag.generator.prepared import PreparedPrompts, Prompts
    from latentrag.generator.seq2seq import PreparedContexts

    rows = config.B * num_passages
    random = torch.Generator().manual_seed(config.seed)
    ids = torch.randint(10, min(50_000, generator.model.config.vocab_size), (rows, config.L), generator=random)
    if kind == "llama":
        border = config.L - config.L // QUESTION
        passages, questions = ids[:, :border].tolist(), ids[:, border:].tolist()
        index = torch.arange(rows, device=config.device)
        return lambda: PreparedPrompts(Prompts(passages, questions), index, config.B, num_passages)
    ids = ids.to(config.device)
    mask = torch.ones_like(ids)

    def encoded() -> PreparedContexts:
        states = generator.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        return PreparedContexts(states, mask.bool(), config.B, num_passages)

    return encoded


def ways(kind: str, generator: Any, num_passages: int, config: Config) -> dict[str, Callable[[], object]]:
    from latentrag.decoding import fast, marginal_beam, thorough
    from latentrag.marginal import log_prior, nll
    from latentrag.options import DecodingOptions
    from latentrag.types import Targets

    prepared = contexts(kind, generator, num_passages, config)
    random = torch.Generator().manual_seed(config.seed)
    prior = log_prior(2 * torch.randn(config.B, num_passages, generator=random)).to(config.device)
    options = DecodingOptions(
        num_beams=config.M, num_best=config.M, max_tokens=config.tokens, min_tokens=config.tokens - 1
    )
    ids = torch.randint(10, 1000, (config.B, config.tokens), generator=random).to(config.device)
    targets = Targets(ids, torch.ones_like(ids, dtype=torch.bool))
    optimiser = torch.optim.AdamW(generator.model.parameters(), lr=1e-6)

    def train() -> Tensor:
        with torch.enable_grad():
            log_p_theta = generator.log_p_theta(prepared(), targets)
            loss = nll(prior, log_p_theta, targets.mask, variant="sequence").sum()
            loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss

    return {
        "read": lambda: generator.start(prepared()),
        "token": lambda: marginal_beam(generator, prepared(), prior, variant="token", options=options),
        "exact": lambda: marginal_beam(generator, prepared(), prior, variant="sequence", options=options),
        "fast": lambda: fast(generator, prepared(), prior, options=options),
        "thorough": lambda: thorough(generator, prepared(), prior, options=options),
        "train": train,
    }


def measure(run: Callable[[], object], config: Config) -> dict[str, Any]:
    """Seconds of each run after the first, and peak bytes of the device; what did not fit says so."""
    on_gpu = config.device.startswith("cuda")
    times = []
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        for _ in range(config.runs + 1):
            started = time.perf_counter()
            run()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        return {"s": [], "peak_bytes": None, "out_of_memory": True}
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    return {"s": times[1:], "peak_bytes": peak, "out_of_memory": False}


@torch.no_grad()
def measured(config: Config, *, models: list[str], passages: list[int]) -> Iterator[dict[str, Any]]:
    for kind in models:
        generator = generator_of(kind, config)
        for num_passages in passages:
            for way, run in ways(kind, generator, num_passages, config).items():
                print(f"{kind}, K = {num_passages}: {way}", file=sys.stderr)
                yield {"model": kind, "passages": num_passages, "way": way, **measure(run, config)}
        del generator


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| model | K | way | ms, median | lowest | peak MiB |", "|---|---|---|---|---|---|"]
    for row in rows:
        head = f"| {row['model']} | {row['passages']} | {row['way']} | "
        if row["out_of_memory"]:
            lines.append(head + "out of memory | | |")
            continue
        peak = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / MIB:.0f}"
        lines.append(head + f"{1e3 * statistics.median(row['s']):.1f} | {1e3 * min(row['s']):.1f} | {peak} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--passages", type=int, nargs="+", default=[5, 10, 50])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", choices=["tiny", "large"], default="large")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        message = "torch sees no GPU here; run it where there is one, or try it with --device cpu --size tiny"
        print(f"error: {message}", file=sys.stderr)
        return 2
    sizes: dict[str, Any] = {"B": 2, "L": 12, "M": 2, "tokens": 4} if given.size == "tiny" else {}
    config = Config(given.size, given.device, runs=given.runs, **sizes)
    rows = list(measured(config, models=given.models, passages=given.passages))
    name = torch.cuda.get_device_name() if given.device.startswith("cuda") else "processor"
    print(f"{name}, {config.dtype}, B {config.B}, L {config.L}, {config.M} beams, {config.tokens} tokens\n")
    print(table(rows))
    write(given.json, {"config": asdict(config), "device": name, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
