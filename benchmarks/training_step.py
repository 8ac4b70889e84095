"""A training step beside transformers' RAG and beside plain BART on the same rows: time and peak memory.

    python -m benchmarks.training_step [--size base|large] [--passages 5] [--lengths even|real] [--runs 5] [--json FILE]

Weights are random and equal on all sides, and so are contexts, scores and targets; the loss of RAG is compared. A step
is the forward and the backward pass and AdamW's update of the generator; the retriever's scores are given. ``even``:
all contexts have L tokens, targets T. ``real``: lengths as those of 400 clues of jeopardy-vital with 5 passages each of
the demo's memory (word pieces: 100 on average, standard deviation 42, from 15 to 209; answers 4). Transformers' RAG
pads them to 300, we to the longest of a micro-batch. Every measurement is a process of its own with one thread, whose
second step counts; the ways take turns.

    their token, their sequence    RagTokenForGeneration, RagSequenceForGeneration
    bart                           cross-entropy of the bare BART on the B·K rows, untrimmed; another loss
    token, sequence                ours
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.beside_transformers import BEGIN, END, PAD, Tokenizer, bart, parser, rag_of
from benchmarks.turns import in_turns, measured, report
from latentrag.types import Variant

WAYS = ["their token", "their sequence", "bart", "token", "sequence"]
RATIOS = [
    ("their token", "token"),
    ("their sequence", "sequence"),
    ("bart", "token"),
    ("bart", "sequence"),
]
VARIANTS: dict[str, Variant] = {"token": "token", "sequence": "sequence"}
PADDED = 300
"""Tokens of a context, as their retriever pads it."""


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes, in the symbols of latentrag.types; L is the contexts' length."""

    size: str = "base"
    B: int = 4
    K: int = 5
    L: int = 128
    T: int = 20
    lengths: str = "even"
    micro_batch_size: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """ids, mask: (B·K, S) contexts; scores: (B, K); targets: (B, T), the last one is the end."""

    ids: Tensor
    mask: Tensor
    scores: Tensor
    targets: Tensor


def batch(config: Config) -> Batch:
    random = torch.Generator().manual_seed(config.seed)
    rows = config.B * config.K
    lengths = torch.full((rows,), config.L)
    width = config.L
    if config.lengths == "real":
        lengths = (100 + 42 * torch.randn(rows, generator=random)).round().long().clamp(15, 209)
        width = PADDED
    mask = (torch.arange(width) < lengths[:, None]).long()
    ids = torch.randint(10, 50_000, (rows, width), generator=random) * mask + PAD * (1 - mask)
    num_targets = 4 if config.lengths == "real" else config.T
    targets = torch.randint(10, 50_000, (config.B, num_targets), generator=random)
    targets[:, -1] = END
    return Batch(ids, mask, 2 * torch.randn(config.B, config.K, generator=random), targets)


def their_loss(model: Any, variant: Variant, config: Config, of: Batch) -> Callable[[], Tensor]:
    rag = rag_of(model, variant, config.K)
    labels = torch.cat([torch.full((config.B, 1), BEGIN), of.targets], dim=1)

    def loss() -> Tensor:
        found = rag(
            context_input_ids=of.ids,
            context_attention_mask=of.mask,
            doc_scores=of.scores,
            labels=labels,
            n_docs=config.K,
            reduce_loss=True,
        )
        total: Tensor = found.loss
        return total

    return loss


def bart_loss(model: Any, config: Config, of: Batch) -> Callable[[], Tensor]:
    labels = of.targets.repeat_interleave(config.K, dim=0)

    def loss() -> Tensor:
        decoder_ids = torch.cat([torch.full((len(labels), 1), BEGIN), labels[:, :-1]], dim=1)
        logits = model(input_ids=of.ids, attention_mask=of.mask, decoder_input_ids=decoder_ids).logits
        total: Tensor = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return total

    return loss


def our_losses(model: Any, variant: Variant, config: Config, of: Batch) -> list[Callable[[], Tensor]]:
    """One for each micro-batch, whose contexts are padded to its longest."""
    from latentrag.generator.seq2seq import PreparedContexts, Seq2SeqGenerator
    from latentrag.marginal import log_prior, nll
    from latentrag.types import Targets

    generator = Seq2SeqGenerator(model, Tokenizer(), decoder_prefix=[BEGIN])
    per_question = of.mask.view(config.B, config.K, -1)
    order = per_question.sum(dim=2).amax(dim=1).argsort()

    def loss(questions: Tensor) -> Tensor:
        mask = per_question[questions].flatten(0, 1)
        width = int(mask.sum(dim=1).max())
        ids = of.ids.view(config.B, config.K, -1)[questions].flatten(0, 1)[:, :width]
        states = model.get_encoder()(input_ids=ids, attention_mask=mask[:, :width]).last_hidden_state
        prepared = PreparedContexts(states, mask[:, :width].bool(), len(questions), config.K)
        targets = of.targets[questions]
        asked = Targets(targets, torch.ones_like(targets, dtype=torch.bool))
        log_p_theta = generator.log_p_theta(prepared, asked)
        return nll(log_prior(of.scores[questions]), log_p_theta, asked.mask, variant=variant).sum()

    return [partial(loss, part) for part in order.split(config.micro_batch_size)]


def step(way: str, config: Config) -> Callable[[], list[float]]:
    """A training step that returns its loss, rounded to what float32 can say of it."""
    model, of = bart(config.size, seed=config.seed), batch(config)
    if way == "bart":
        losses = [bart_loss(model, config, of)]
    elif way.startswith("their "):
        losses = [their_loss(model, VARIANTS[way.removeprefix("their ")], config, of)]
    else:
        losses = our_losses(model, VARIANTS[way], config, of)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def run() -> list[float]:
        total = 0.0
        for loss in losses:
            found = loss()
            found.backward()
            total += found.item()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return [] if way == "bart" else [round(total, 2)]

    return run


def measure(way: str, config: Config) -> dict[str, Any]:
    """In a process of its own. The first step of a process makes AdamW's moments: it is the second that counts."""
    run = step(way, config)
    tiny = step(way, Config(size="tiny", B=1, K=2, L=8, T=3))
    first: list[list[float]] = []

    def warm_up() -> None:
        tiny()
        first.append(run())

    found = measured(run, warm_up)
    found["found"] = first[0]
    return found


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], Config(**json.loads(sys.argv[3])))))
        return 0
    options = parser(__doc__, WAYS)
    options.add_argument("--lengths", choices=["even", "real"], default="even")
    options.add_argument("--micro-batch-size", type=int, default=4)
    given = options.parse_args()
    config = Config(given.size, K=given.passages, lengths=given.lengths, micro_batch_size=given.micro_batch_size)
    results = in_turns("benchmarks.training_step", given.ways, given.malloc, given.runs, config)
    contexts = f"L {config.L}, T {config.T}" if config.lengths == "even" else f"real lengths, theirs padded to {PADDED}"
    about = f"BART-{config.size}, float32, B {config.B}, K {config.K}, {contexts}"
    report(results, RATIOS, config, about=about, file=given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
