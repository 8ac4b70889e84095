"""The best continuations of a step. Few tokens can be among them, and only those get their marginal.

    max_z a_z ≤ log Σ_z exp a_z ≤ max_z a_z + log K,   a_z = log w_z + log p_θ(y_i|x,z,y_<i)

The left side takes two passes over the vocabulary, the middle seven. What falls short of the best left sides by more
than log K cannot be among the best; the others are few, unless the model knows nothing.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from latentrag.decoding.step import Beams, in_blocks, marginal_step
from latentrag.types import Variant

Continuations = tuple[Tensor, Tensor, Tensor]
"""Score, beam and token, (B', C) each, best first."""

_ROUNDING = 1e-3
"""Nats by which sums of the same numbers may differ, with much to spare."""
_FEW = 32
"""The share of all continuations beyond which it is quicker to look at every one: one in so many."""


def best_continuations(
    beams: Beams, log_p: Tensor, variant: Variant, allowed: Callable[[Tensor], Tensor], count: int
) -> Continuations:
    """The C best (beam, token) of each question by log p(y_≤i|x).

    Args:
        log_p: (B', K, M, V) of the step.
        allowed: sets (B', M, V) to −inf where the options rule a token out; may do so in place.
    """
    log_w = beams.log_weights(variant)
    least = _total(beams, allowed(_largest_share(log_w, log_p)))  # (B', M·V)
    floor = least.topk(count, dim=1).values[:, -1:]
    possible = (least >= floor - (math.log(log_p.shape[1]) + _ROUNDING)) & torch.isfinite(least)
    row, flat = possible.nonzero(as_tuple=True)
    if len(row) > least.numel() // _FEW:
        return every_continuation(beams, log_p, variant, allowed, count)
    beam, token = _parts(flat, log_p)
    shares = log_w[row, :, beam] + log_p[row, :, beam, token]  # (n, K)
    scores = shares.logsumexp(dim=1) + beams.scores[row, beam]
    number = possible.sum(dim=1)
    place = torch.arange(len(row), device=row.device) - (number.cumsum(0) - number)[row]
    width = max(count, int(number.max()))
    table = scores.new_full((len(least), width), float("-inf")).index_put((row, place), scores)
    where = flat.new_zeros(table.shape).index_put((row, place), flat)
    best, at = table.topk(count, dim=1)
    return best, *_parts(where.gather(1, at), log_p)


def every_continuation(
    beams: Beams, log_p: Tensor, variant: Variant, allowed: Callable[[Tensor], Tensor], count: int
) -> Continuations:
    """The same from the marginal of every token."""
    best, flat = _total(beams, allowed(marginal_step(beams, log_p, variant))).topk(count, dim=1)
    return best, *_parts(flat, log_p)


def _largest_share(log_w: Tensor, log_p: Tensor) -> Tensor:
    """max_z of log w_z + log p, (B', M, V)."""
    largest = log_p.new_empty(len(log_p), *log_p.shape[2:])
    for block in in_blocks(log_p):
        torch.amax(log_w[..., None] + log_p[..., block], dim=1, out=largest[..., block])
    return largest


def _total(beams: Beams, step: Tensor) -> Tensor:
    """(B', M·V) log p(y_≤i|x) from the step's (B', M, V), in its place."""
    # A beam that holds nothing has no weights either: its step is not a number.
    nothing = torch.isinf(beams.scores)[:, :, None]
    return step.add_(beams.scores[:, :, None]).masked_fill_(nothing, float("-inf")).flatten(1)


def _parts(flat: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    vocabulary = log_p.shape[3]
    return flat // vocabulary, flat % vocabulary
