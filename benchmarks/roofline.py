"""How far a decoder's step is from what the machine can do: FLOPs and bytes of a step, and the time that they take.

    python -m benchmarks.roofline [--size base|large] [--passages 5] [--runs 5] [--json FILE]

The step is that of the beam with BART's dimensions and random weights in float32: B·K·M rows with ``--tokens`` tokens
written each, one thread. FLOPs of linear layers are counted as they run, those of attention from its shapes. Bytes are
the least that must come from memory or go there: every weight once, the keys and values of each passage once (beams
share them), those of the tokens written, and the logits once each way. What the machine can do is measured beside it:
products of square matrices, and sums over an array that no cache holds. No step can be faster than its FLOPs at that
rate, nor than its bytes: the faster of PyTorch's own product and oneDNN's from packed weights counts.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.beside_transformers import BEGIN, Tokenizer, bart
from benchmarks.decoding import Config, contexts
from benchmarks.turns import machine, write

GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Work:
    """Of one step."""

    flops: float
    bytes: float


def linear_work(model: nn.Module, step: Callable[[], Any]) -> Work:
    """Of all linear layers in a call, which reads their weights once."""
    flops, weights = 0, {}

    def count(layer: nn.Linear, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        nonlocal flops
        rows = inputs[0].numel() // layer.in_features
        flops += 2 * rows * layer.weight.numel()
        weights[layer.weight.data_ptr()] = layer.weight.nbytes

    hooks = [each.register_forward_hook(count) for each in model.modules() if isinstance(each, nn.Linear)]
    step()
    for hook in hooks:
        hook.remove()
    return Work(flops, sum(weights.values()))


def attention_work(config: Any, of: Config, num_tokens: int) -> Work:
    """Over L tokens of a passage and those written, in every layer of the decoder; and the logits."""
    rows, width, layers = of.B * of.K * of.M, config.d_model, config.decoder_layers
    seen = of.L + num_tokens
    flops = layers * 4 * rows * seen * width  # scores, and sums of values
    held = layers * 2 * width * (of.B * of.K * of.L + rows * num_tokens)  # keys and values
    return Work(flops, 4 * (held + 2 * rows * config.vocab_size))


def seconds(call: Callable[[], Any]) -> float:
    """Of the processor."""
    started = time.process_time()
    call()
    return time.process_time() - started


def measure(of: Config, *, runs: int, side: int, mib: int) -> dict[str, float]:
    """A step, and what the machine can do, in turns."""
    from latentrag.generator.seq2seq import PreparedContexts, Seq2SeqGenerator
    from latentrag.packed import PackedLinear

    torch.set_num_threads(1)
    model = bart(of.size, seed=of.seed, forced_eos_token_id=None)
    generator = Seq2SeqGenerator(model, Tokenizer(), decoder_prefix=[BEGIN])
    ids, mask, _ = contexts(of)
    states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    context = PreparedContexts(states, mask.bool(), of.B, of.K)
    stay = torch.arange(of.B * of.M).view(of.B, of.M)
    tokens, first = torch.full_like(stay, 7), torch.arange(of.B)[:, None].expand(of.B, of.M)

    def written() -> Any:
        """The state after as many tokens; a step adds one to it."""
        _, state = generator.start(context)
        for number in range(of.tokens):
            _, state = generator.step(state, first if number == 0 else stay, tokens)
        return state

    def step_s() -> float:
        state = written()
        return seconds(lambda: generator.step(state, stay, tokens))

    state = written()
    linear = linear_work(model, lambda: generator.step(state, stay, tokens))
    attention = attention_work(model.config, of, of.tokens + 1)
    square, array, layer = torch.randn(side, side), torch.ones(mib << 18), PackedLinear(side, side, bias=False)
    calls: list[Callable[[], object]] = [lambda: square @ square, lambda: layer(square), array.sum]
    for call in calls:
        call()
    rounds = [(step_s(), *map(seconds, calls)) for _ in range(runs)]
    took, plain, packed, total = (statistics.median(each) for each in zip(*rounds, strict=True))
    return {
        "step_s": took,
        "flops": linear.flops + attention.flops,
        "bytes": linear.bytes + attention.bytes,
        "flops_per_s": 2 * side**3 / min(plain, packed),
        "bytes_per_s": array.nbytes / total,
    }


def table(of: Config, found: dict[str, float]) -> str:
    """One line, and what it is of."""
    by_flops, by_bytes = found["flops"] / found["flops_per_s"], found["bytes"] / found["bytes_per_s"]
    bound = max(by_flops, by_bytes)
    row = [
        f"{of.B * of.K * of.M}",
        f"{found['flops'] / GIGA:.1f}",
        f"{found['bytes'] / 1e6:.0f}",
        f"{found['flops_per_s'] / GIGA:.0f}",
        f"{found['bytes_per_s'] / GIGA:.1f}",
        f"{by_flops * 1e3:.0f}",
        f"{by_bytes * 1e3:.0f}",
        f"{found['step_s'] * 1e3:.0f}",
        f"{bound / found['step_s']:.2f}",
    ]
    head = ["rows", "GFLOP", "MB", "machine, GFLOP/s", "machine, GB/s", "FLOPs alone, ms", "bytes alone, ms"]
    head += ["step, ms", "share of the limit"]
    lines = [head, ["---"] * len(head), row]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "base", "large"], default="base")
    parser.add_argument("--passages", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--side", type=int, default=2_048, help="of the square matrices that are multiplied")
    parser.add_argument("--mib", type=int, default=1_024, help="of the array that is summed")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    of = Config(size=given.size, K=given.passages, tokens=given.tokens)
    with torch.no_grad():
        found = measure(of, runs=given.runs, side=given.side, mib=given.mib)
    about = (
        f"BART-{of.size}, float32, B {of.B}, K {of.K}, L {of.L}, {of.M} beams, {of.tokens} tokens written; one thread"
    )
    print(f"{about}; {machine()['processor']}; medians of {given.runs}\n\n{table(of, found)}")
    write(given.json, {"config": asdict(of), **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
