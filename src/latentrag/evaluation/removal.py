"""Whether an order of the passages says which of them an answer came from: passages are taken away, the first of the
order first, and log p(y|x) is seen to fall. The sooner it falls, the better the order.

Everything follows from log p_η and log p_θ of the passages; nothing is computed again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from latentrag.errors import InputError, ShapeError
from latentrag.marginal import log_likelihood, log_prior
from latentrag.types import Passage, Variant

if TYPE_CHECKING:
    from torch import Tensor

RUN_OF_WORDS = 3
NEAR = 0.5


def near_duplicate(one: str, other: str) -> float:
    """How much of the shorter text stands in the other: the share of its runs of three words, 0 to 1.

    The containment of Broder (1997), of the smaller set in the larger one; a text of fewer words is one run.
    """
    smaller, larger = sorted((_runs(one), _runs(other)), key=len)
    return len(smaller & larger) / len(smaller) if smaller else 0.0


def without_near_duplicates(passages: Sequence[Passage], *, near: float = NEAR) -> list[int]:
    """The places of passages that are no near duplicate (``near`` or more) of one before them that is kept."""
    kept: list[int] = []
    for place, passage in enumerate(passages):
        if all(near_duplicate(passage.text, passages[other].text) < near for other in kept):
            kept.append(place)
    return kept


def _runs(text: str) -> set[tuple[str, ...]]:
    words = text.casefold().split()
    starts = range(max(1, len(words) - RUN_OF_WORDS + 1)) if words else ()
    return {tuple(words[i : i + RUN_OF_WORDS]) for i in starts}


def log_p_without(
    log_p_eta: Tensor, log_p_theta: Tensor, gone: Collection[int], *, variant: Variant = "sequence"
) -> float:
    """log p(y|x), nats, had the passages ``gone`` not been retrieved; the prior is renormalised over the others.

    Args:
        log_p_eta: (K,) nats, normalised over K.
        log_p_theta: (K, T) nats, of all tokens of y.
    Raises: ShapeError if no passage is left.
    """
    kept = [z for z in range(len(log_p_eta)) if z not in gone]
    if not kept:
        raise ShapeError(f"all {len(log_p_eta)} passages are taken away; leave one")
    mask = log_p_theta.new_ones(1, log_p_theta.shape[1]).bool()
    prior = log_prior(log_p_eta[None, kept])
    return float(log_likelihood(prior, log_p_theta[None, kept], mask, variant=variant))


def fall_curve(
    log_p_eta: Tensor, log_p_theta: Tensor, order: Sequence[int], *, variant: Variant = "sequence"
) -> list[float]:
    """How far log p(y|x) has fallen, nats, after 1, 2, … K − 1 passages are taken away in this order.

    Args:
        order: of all K passages, most important first.
    Raises: InputError for an order that is not one of all passages, or a single passage.
    """
    num_passages = len(log_p_eta)
    if sorted(order) != list(range(num_passages)):
        raise InputError(f"order={list(order)}; needed each of 0 … {num_passages - 1} once")
    if num_passages < 2:
        raise InputError("got one passage; needed two or more, since one stays")
    whole = log_p_without(log_p_eta, log_p_theta, (), variant=variant)
    return [
        whole - log_p_without(log_p_eta, log_p_theta, order[:number], variant=variant)
        for number in range(1, num_passages)
    ]


def area_over(falls: Sequence[float]) -> float:
    """The area over the curve of log p: the mean fall over its steps, nats."""
    return sum(falls) / len(falls)


def greedy_order(log_p_eta: Tensor, log_p_theta: Tensor, *, variant: Variant = "sequence") -> list[int]:
    """The passages in the order in which each next one makes log p(y|x) fall most: at its first step no order does
    better, over all steps it is a ceiling in practice. The one left is last; of equal ones the first in order."""
    order: list[int] = []
    left = list(range(len(log_p_eta)))
    while len(left) > 1:
        worst = min(left, key=lambda z: log_p_without(log_p_eta, log_p_theta, [*order, z], variant=variant))
        order.append(worst)
        left.remove(worst)
    return [*order, *left]


def descending(values: Sequence[float]) -> list[int]:
    """The places of the values, largest first; of equal ones the first first."""
    return sorted(range(len(values)), key=lambda place: -values[place])
