"""Whether shares are true: of the passages with a share of 80 %, do 80 of 100 hold the answer?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentrag.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

NUM_BINS = 10
NUM_DRAWS = 2_000


@dataclass(frozen=True, slots=True)
class Bin:
    """Passages with shares in [low, high), the last bin with its upper end.

    Attributes:
        share: their mean share.
        holds: the share of them that hold the answer, and its 95 % interval.
    """

    low: float
    high: float
    num_passages: int
    share: float
    holds: float
    holds_low: float
    holds_high: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins that are not empty, and the expected calibration error with its 95 % interval.

    Attributes:
        error: Σ over bins of (share of all passages in the bin) · |mean share − share that hold the answer|
            (Naeini et al. 2015). It is above 0 for true shares, too, with few passages.
        error_if_true: what it would be on average if each passage held the answer with the probability of its share.
    """

    bins: tuple[Bin, ...]
    error: float
    error_low: float
    error_high: float
    error_if_true: float
    num_questions: int


def reliability(
    shares: Sequence[Sequence[float]], holds: Sequence[Sequence[bool]], *, num_bins: int = NUM_BINS, seed: int = 0
) -> Reliability:
    """The reliability curve of the shares of passages.

    Intervals are the 2.5th and 97.5th percentile over ``NUM_DRAWS`` draws of as many questions with repetition
    (bootstrap): the passages of one question depend on each other, questions do not.

    Args:
        shares: for each question the share of each of its passages, 0 to 1. Questions without passages do not count.
        holds: whether each of these passages holds the answer.
    Raises: InputError if there is none, or the numbers differ.
    """
    if [len(of_one) for of_one in shares] != [len(of_one) for of_one in holds]:
        raise InputError("shares and holds differ in their numbers; needed one of each for every passage")
    if not any(len(of_one) for of_one in shares):
        raise InputError("got no passage; needed at least one")
    pairs = [(np.asarray(s, float), np.asarray(h, float)) for s, h in zip(shares, holds, strict=True) if len(s)]
    counts = np.stack([_counts(of_one, held, num_bins) for of_one, held in pairs])
    random = np.random.default_rng(seed)
    drawn = np.stack([counts[random.integers(0, len(counts), len(counts))].sum(axis=0) for _ in range(NUM_DRAWS)])
    total = counts.sum(axis=0)
    curves = np.divide(drawn[:, 2], drawn[:, 0], out=np.full(drawn[:, 0].shape, np.nan), where=drawn[:, 0] > 0)
    bins = []
    for b in np.flatnonzero(total[0]):
        low, high = np.nanpercentile(curves[:, b], [2.5, 97.5])
        number, share, held = total[:, b]
        bins.append(
            Bin(b / num_bins, (b + 1) / num_bins, int(number), share / number, held / number, float(low), float(high))
        )
    low, high = np.percentile([_error(each) for each in drawn], [2.5, 97.5])
    all_shares = np.concatenate([of_one for of_one, _ in pairs])
    coins = ((random.random(len(all_shares)) < all_shares).astype(float) for _ in range(200))
    made = [_error(_counts(all_shares, each, num_bins)) for each in coins]
    return Reliability(tuple(bins), _error(total), float(low), float(high), float(np.mean(made)), len(counts))


def _counts(shares: Array, holds: Array, num_bins: int) -> Array:
    """(3, bins): passages, the sum of their shares, how many hold the answer."""
    place = np.minimum((shares * num_bins).astype(int), num_bins - 1)
    weights = (None, shares, holds)
    return np.stack([np.bincount(place, weights=each, minlength=num_bins).astype(float) for each in weights])


def _error(counts: Array) -> float:
    number, share, held = counts
    return float(np.abs(share - held).sum() / number.sum())
