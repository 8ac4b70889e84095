"""How sure a measured mean is: Wilson's interval of a share, bootstrap intervals of everything else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

Z_95 = 1.959964
RESAMPLES = 10_000
LEVELS = (0.025, 0.975)
_DRAWS_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``num_examples``, and the 95 % interval [low, high] of it."""

    mean: float
    low: float
    high: float
    num_examples: int


def share_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if not trials:
        return 0.0, 1.0
    share, weight = successes / trials, Z_95**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def estimates(parts: "Array", *, resamples: int = RESAMPLES, seed: int = 0) -> list[Estimate]:
    """Bootstrap estimates of M means over the same n examples (Efron 1979; percentile intervals).

        mean_m = Σ_i parts[i, m, 0] / Σ_i parts[i, m, 1]

    Args:
        parts: (n, M, 2) what each example adds to each mean, and how much that counts: 1, or its number of tokens,
            say; (0, 0) where it is not measured. Every mean needs one example at least.
    Returns: M estimates.
    """
    low, high = np.nanquantile(resampled_means(parts, resamples=resamples, seed=seed), LEVELS, axis=0)
    mean, measured = means(parts), (parts[:, :, 1] > 0).sum(axis=0)
    return [Estimate(float(mean[m]), float(low[m]), float(high[m]), int(measured[m])) for m in range(len(mean))]


def means(parts: "Array") -> "Array":
    """(M,) the means of ``estimates``."""
    sums, sizes = parts.sum(axis=0).T
    result: Array = sums / sizes
    return result


def resampled_means(parts: "Array", *, resamples: int = RESAMPLES, seed: int = 0) -> "Array":
    """(R, M) the means over R samples of n examples drawn with replacement, the same samples for all M.

    A sample without an example that measures a mean gives nan there.
    """
    n, num_means, _ = parts.shape
    flat = parts.reshape(n, 2 * num_means)
    random = np.random.default_rng(seed)
    sums = []
    at_once = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = random.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)  # how often each example was drawn
        sums.append(times.astype(float) @ flat)
    totals = np.concatenate(sums).reshape(resamples, num_means, 2)
    with np.errstate(invalid="ignore"):
        resampled: Array = totals[:, :, 0] / totals[:, :, 1]
    return resampled


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of ours − theirs over the same questions, and its 95 % interval by paired bootstrap.

    Args:
        ours, theirs: one value for each question, in the same order.
    Returns: mean, lower and upper end.
    """
    difference = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    parts = np.stack([difference, np.ones_like(difference)], axis=1)[:, None]  # (n, 1, 2)
    (estimate,) = estimates(parts, resamples=resamples, seed=seed)
    return estimate.mean, estimate.low, estimate.high
