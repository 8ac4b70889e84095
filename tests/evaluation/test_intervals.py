"""Intervals and tests against theory and scipy's figures, and by simulation: how often they cover, and cry wolf."""

import itertools
import math

import numpy as np
import pytest
from intervals import (  # experiments/intervals.py
    DIFFERENCES,
    EQUALS,
    F1,
    HARD_LOG_P,
    LOG_P,
    SHARES,
    covered,
    false_alarms,
)

from latentrag.evaluation.intervals import (
    FEWEST_UNBOUNDED,
    UNIT,
    Estimate,
    bounded_interval,
    estimate,
    interval,
    mean_interval,
    paired_difference,
    paired_p,
    share_interval,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (3, 20), (20, 20), (250, 1000)])
def test_share_interval_covers(successes: int, trials: int) -> None:
    low, high = share_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    # The interval's ends are where the share is 1.96 standard errors away: Wilson's definition.
    for end in (low, high):
        if 0 < end < 1:
            error = (end * (1 - end) / trials) ** 0.5
            assert abs(successes / trials - end) == pytest.approx(1.959964 * error, rel=1e-6)


def test_shares_get_wilsons_interval_and_no_other_measure_does() -> None:
    found = estimate([0.0] * 40, UNIT)
    assert (found.mean, found.low, found.num_examples) == (0, 0, 40)
    assert found.high == pytest.approx(0.0876, abs=1e-4)  # R: prop.test(0, 40, correct=FALSE)
    assert estimate([1.0, 0.5], UNIT).low == bounded_interval(np.array([1.0, 0.5]), UNIT)[0]
    assert estimate([0.0, 1.0] * 30, None).high == mean_interval(np.array([0.0, 1.0] * 30))[1]  # type: ignore[index]


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
def test_intervals_stay_within_the_bounds_from_one_value_on(bounds) -> None:
    random = np.random.default_rng(3)
    for n in (*range(1, 30), 1000):
        for x in (np.full(n, bounds[0]), np.full(n, bounds[1]), bounds[0] + random.random(n) * (bounds[1] - bounds[0])):
            low, high = bounded_interval(x, bounds)
            assert bounds[0] <= low < high <= bounds[1]
            assert low <= x.mean() <= high


def test_bounded_intervals_are_agresti_and_coulls_for_shares_and_normal_for_many() -> None:
    low, high = bounded_interval(np.array([1.0] * 3 + [0.0] * 17), UNIT)
    share = (3 + 1.959964**2 / 2) / (20 + 1.959964**2)
    half = 1.959964 * math.sqrt(share * (1 - share) / (20 + 1.959964**2))
    assert (low, high) == pytest.approx((share - half, share + half))
    x = np.random.default_rng(1).beta(2, 5, 4000)
    half = 1.96 * x.std() / len(x) ** 0.5
    assert bounded_interval(x, UNIT) == pytest.approx((x.mean() - half, x.mean() + half), abs=5e-4)


def test_no_interval_of_a_few_values_without_bounds() -> None:
    assert estimate([-1.0] * (FEWEST_UNBOUNDED - 1), None) == Estimate(-1.0, None, None, FEWEST_UNBOUNDED - 1)
    x = np.linspace(-1, 1, 25)  # not skewed: Student's, t = 2.063899 at 24 degrees
    half = 2.063899 * x.std(ddof=1) / 5
    assert mean_interval(x) == pytest.approx((-half, half), rel=1e-4)
    assert mean_interval(np.full(30, 2.0)) == (2, 2)
    low, high = mean_interval(np.append(np.zeros(30), 10.0)) or (0, 0)
    assert high - 10 / 31 > 10 / 31 - low  # the long side of a skewed sample is the uncertain one


def test_paired_difference() -> None:
    random = np.random.default_rng(1)
    theirs = random.integers(0, 2, 400).astype(float)
    ours = np.maximum(theirs, random.integers(0, 2, 400))
    mean, low, high = paired_difference(list(ours), list(theirs))
    assert mean == pytest.approx((ours - theirs).mean())
    half = 1.96 * (ours - theirs).std() / 20
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.01)
    mean, low, high = paired_difference([1.0] * 40, [1.0] * 40)
    assert (mean, low, high) == pytest.approx((0, -0.0872, 0.0872), abs=1e-3)  # none of 40 differs: up to 8.8 % may


# By hand, or by scipy: binomtest(k, n), permutation_test(permutation_type="samples")
P = {
    (1.0,): 1.0,
    (1.0, 1.0, 1.0, 1.0, 1.0): 0.0625,
    (1.0, 1.0, 1.0, 1.0, 1.0, 1.0): 0.03125,
    (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 0.0): 0.0390625,
    (1.0, -1.0): 1.0,
    (0.0, 0.0): 1.0,
    (0.5, 0.25, 0.1): 0.25,
    (0.5, 0.25, -0.1): 0.5,
}


@pytest.mark.parametrize(("differences", "expected"), P.items(), ids=str)
def test_p_is_exact(differences, expected) -> None:
    assert paired_p([*differences, *[0.0] * 35]) == expected
    assert paired_p([-each for each in differences]) == expected
    assert paired_p([0.3 * each for each in differences]) == expected  # sizes that no float has exactly


def test_p_of_many_unequal_differences_is_near_the_exact_one() -> None:
    x = np.random.default_rng(0).normal(0.35, 1, 18)
    sums = np.array([abs(np.dot(signs, np.abs(x))) for signs in itertools.product((1, -1), repeat=18)])
    exact = (sums >= abs(x.sum()) - 1e-9).mean()
    # 10,000 draws: four standard errors.
    assert paired_p(x.tolist()) == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 10_000) ** 0.5)
    assert paired_p(list(range(1, 61))) == 1 / 10_001  # never 0
    assert paired_p([1.0] * 2000) == pytest.approx(2.0**-1999)


# By simulation. The whole table is docs/experiments/intervals.md; tolerances are five standard errors of 400 samples.


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 20, 50, 200, 1000])
def test_bounded_measures_are_covered_from_one_question_on(n) -> None:
    for laws, find, lowest, mean in (
        (SHARES, lambda x: interval(x, UNIT), 0.75, 0.90),  # Wilson's own at n = 1; from 5 on it is above 0.88
        (F1, lambda x: interval(x, UNIT), 0.80, 0.90),
        (DIFFERENCES, lambda x: bounded_interval(x, (-1.0, 1.0)), 0.87, 0.93),
    ):
        found = [covered(law, find, n, repeats=400) for law in laws]
        assert min(found) >= (lowest if n < 5 else 0.87)
        assert np.mean(found) >= mean


@pytest.mark.parametrize("n", [*range(1, 51, 7), FEWEST_UNBOUNDED - 1, FEWEST_UNBOUNDED, 50])
def test_log_p_has_an_interval_where_it_covers_and_none_below(n) -> None:
    for law in LOG_P.values():
        found = covered(law, mean_interval, n, repeats=600)
        assert math.isnan(found) if n < FEWEST_UNBOUNDED else found >= 0.94 - 5 * (0.94 * 0.06 / 600) ** 0.5
    assert n < FEWEST_UNBOUNDED or covered(HARD_LOG_P, mean_interval, n, repeats=600) >= 0.85


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 20, 50, 200])
@pytest.mark.parametrize("kind", EQUALS)
def test_equal_models_differ_in_at_most_five_of_a_hundred_comparisons(kind, n) -> None:
    repeats = 400 if n < 50 else 60
    alarms = false_alarms(EQUALS[kind], n, repeats=repeats)
    assert alarms <= (0 if n <= 5 else 0.05 + 5 * (0.05 * 0.95 / repeats) ** 0.5)
