"""How sure a measured mean is, and whether a difference is more than chance.

All are closed formulas or exact counts: nothing is drawn but the signs of many unequal differences. How often each
interval covers, and each test sees a difference where none is, is simulated in docs/experiments/intervals.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

Z_95 = 1.959964
FEWEST_UNBOUNDED = 20
"""Values below which a mean without bounds gets no interval: with fewer the interval of skewed values misses the mean
clearly more often than in 5 of 100 cases."""
NUM_FLIPS = 10_000
_MOST_ENUMERATED = 14
_DRAWS_AT_ONCE = 1 << 20

Bounds = tuple[float, float]
Interval = tuple[float, float]
UNIT: Bounds = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``num_examples``, and the 95 % interval [low, high] of it; None where they are too few for one."""

    mean: float
    low: float | None
    high: float | None
    num_examples: int


def estimate(values: Sequence[float], bounds: Bounds | None) -> Estimate:
    """The mean of at least one value, with the interval that is right for its kind.

    Args:
        bounds: between which every value lies; None: there are none.
    """
    x = np.asarray(values, dtype=float)
    low, high = interval(x, bounds) or (None, None)
    return Estimate(float(x.mean()), low, high, len(x))


def interval(x: "Array", bounds: Bounds | None) -> Interval | None:
    """95 % interval of the mean of values (n,): of a share, of values between bounds, or of values without."""
    if bounds == UNIT and np.isin(x, UNIT).all():
        return share_interval(int(x.sum()), len(x))
    return mean_interval(x) if bounds is None else bounded_interval(x, bounds)


def share_interval(successes: int, trials: int) -> Interval:
    """95 % interval of a share (Wilson 1927)."""
    if not trials:
        return UNIT
    share, weight = successes / trials, Z_95**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def bounded_interval(x: "Array", bounds: Bounds) -> Interval:
    """95 % interval of the mean of values between bounds, from one value on.

    The normal interval after z²/2 observations at either bound are added: Agresti and Coull's (1998) for shares, which
    approximates Wilson's, for values that may lie between the bounds as well.
    """
    low, high = bounds
    added = Z_95**2 / 2
    size = len(x) + 2 * added
    mean = (x.sum() + added * (low + high)) / size
    variance = ((x - mean) ** 2).sum() + added * ((low - mean) ** 2 + (high - mean) ** 2)
    half = Z_95 * math.sqrt(variance) / size
    return max(low, float(mean - half)), min(high, float(mean + half))


def mean_interval(x: "Array") -> Interval | None:
    """95 % interval of the mean of values without bounds; None for fewer than ``FEWEST_UNBOUNDED``.

    The hull of Student's interval, which symmetric values need, and of the same after Hall's (1992) correction for
    skewness, which the log-probabilities of answers need.
    """
    n = len(x)
    if n < FEWEST_UNBOUNDED:
        return None
    mean, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(n)
    if not error:
        return mean, mean
    t = _t_95(n - 1)
    a = float(((x - mean) ** 3).mean()) / float(x.std()) ** 3 / math.sqrt(n)  # of the mean's skewness, 0 for none
    corrected = [3 / a * float(np.cbrt(1 + a * (y - a / 6)) - 1) if abs(a) > 1e-6 else y for y in (t, -t)]
    return mean - error * max(t, corrected[0]), mean - error * min(-t, corrected[1])


def _t_95(freedom: int) -> float:
    """Student's t that is exceeded in 2.5 % of cases, from Cornish and Fisher's expansion: 1e-5 from 19 degrees on."""
    z, v = Z_95, freedom
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)


def paired_p(differences: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p that paired differences have no direction: how often their sum is as large after signs are drawn.

    Exact (the binomial test of signs, McNemar's) where all that are not 0 have one size, and where they are few; else
    over ``NUM_FLIPS`` draws, in which the observed one counts. No p is below that of all differences on one side,
    2^(1−m) of m: with five or fewer none is below 0.05.
    """
    x = np.asarray(differences, dtype=float)
    x = x[x != 0]
    m, size = len(x), np.abs(x)
    if not m:
        return 1.0
    if np.ptp(size) <= 1e-12 * size.max():
        most = max(int((x > 0).sum()), int((x < 0).sum()))
        return min(1.0, 2 * sum(math.comb(m, wins) for wins in range(most, m + 1)) / (1 << m))
    least = abs(x.sum()) - 1e-9 * size.sum()
    if m <= _MOST_ENUMERATED:
        signs = 1 - 2 * (np.arange(2**m)[:, None] >> np.arange(m) & 1)
        return float((np.abs(signs @ size) >= least).mean())
    random, extreme = np.random.default_rng(seed), 1
    at_once = max(1, _DRAWS_AT_ONCE // m)
    for start in range(0, NUM_FLIPS, at_once):
        draws = random.integers(0, 2, size=(min(at_once, NUM_FLIPS - start), m), dtype=np.int8)
        extreme += int((np.abs((1 - 2 * draws) @ size) >= least).sum())
    return extreme / (NUM_FLIPS + 1)


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Mean of ours − theirs over the same questions, of a measure between 0 and 1, and its 95 % interval.

    Args:
        ours, theirs: one value for each question, in the same order.
    Returns: mean, lower and upper end.
    """
    difference = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    low, high = bounded_interval(difference, (-1.0, 1.0))
    return float(difference.mean()), low, high
