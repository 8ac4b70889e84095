"""Samples from the marginal p(y|x), token by token."""

from typing import Any

import torch
from torch import Tensor

from latentrag.decoding.decoded import Decoded
from latentrag.decoding.step import Beams, forbid, is_end, marginal_step, stopped
from latentrag.decoding.watch import Watcher
from latentrag.options import DecodingOptions
from latentrag.protocols import Generator
from latentrag.types import Variant


@torch.no_grad()
def marginal_sample(
    generator: Generator,
    prepared: Any,
    log_p_eta: Tensor,
    *,
    variant: Variant,
    options: DecodingOptions,
    watcher: Watcher | None = None,
) -> list[list[Decoded]]:
    """``num_beams`` independent samples for each question, most probable first.

    With temperature 1 and no top-k or top-p the samples are drawn from p(y|x) itself, for both variants:
    RAG-Sequence because the weights follow the prefix. ``log_prob`` is always that of the marginal.

    Args:
        prepared: B questions × K passages, from ``generator.prepare``.
        log_p_eta: (B, K) nats, normalised over K.
        variant: "sequence" or "token".
        watcher: who looks on. What is drawn is certain at once where there is one sample, otherwise at the end.
    """
    random = torch.Generator(device=log_p_eta.device)
    if options.seed is None:
        random.seed()
    else:
        random.manual_seed(options.seed)
    num_samples = options.num_beams
    every = torch.arange(len(log_p_eta), device=log_p_eta.device).repeat_interleave(num_samples)
    drawn: list[list[Decoded]] = [[] for _ in range(len(log_p_eta))]
    beams = Beams.initial(log_p_eta[every])  # each sample is a question of its own, with one beam
    log_p, state = generator.start(prepared.rows(every))
    for length in range(1, options.max_tokens + 1):
        step = forbid(marginal_step(beams, log_p, variant), beams, options, generator.end_ids)[:, 0]  # (R, V)
        token = torch.multinomial(shaped(step, options), 1, generator=random)  # (R, 1)
        scores = beams.scores + step.gather(1, token)
        beams = beams.extended(torch.zeros_like(token), token, scores, log_p)
        ended = is_end(token, generator.end_ids)
        done = ended | stopped(beams, options, generator.text) | (length == options.max_tokens)
        for row in done[:, 0].nonzero()[:, 0].tolist():
            sample = Decoded(
                tuple(beams.tokens[row, 0].tolist()),
                beams.scores[row, 0].item(),
                beams.history[row, 0].clone(),
                finished=bool(ended[row, 0]),
            )
            drawn[int(beams.question[row]) // num_samples].append(sample)
        keep = (~done[:, 0]).nonzero()[:, 0]
        if watcher is not None:
            keep = _watched(watcher, beams, keep, num_samples)
        if not len(keep):
            break
        beams = beams.kept(keep)
        log_p, state = generator.step(state, keep[:, None], beams.tokens[:, :, -1])
    return [sorted(of_question, key=lambda sample: -sample.log_prob) for of_question in drawn]


def _watched(watcher: Watcher, beams: Beams, rows: Tensor, num_samples: int) -> Tensor:
    """The rows that are still wanted, of which the watcher has been told what is certain."""
    question = beams.question // num_samples
    wanted = [row for row in rows.tolist() if watcher.is_wanted(int(question[row]))]
    if num_samples == 1:
        for row in wanted:
            watcher.decided(int(question[row]), tuple(beams.tokens[row, 0].tolist()), beams.history[row, 0])
    return rows.new_tensor(wanted)


def shaped(log_p: Tensor, options: DecodingOptions) -> Tensor:
    """Probabilities (R, V) to draw from: temperature first, then top-k, then top-p (nucleus), renormalised."""
    logits = log_p / options.temperature
    if 0 < options.top_k < logits.shape[1]:
        least = logits.topk(options.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = torch.softmax(logits, dim=1)
    if options.top_p < 1:
        ordered, index = probabilities.sort(dim=1, descending=True, stable=True)
        # A token stays if those before it have not reached top_p yet; the first one always does.
        beyond = ordered.cumsum(dim=1) - ordered >= options.top_p
        probabilities = torch.zeros_like(probabilities).scatter(1, index, ordered.masked_fill(beyond, 0.0))
        probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
    return probabilities
