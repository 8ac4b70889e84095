"""Intervals against theory, and resampling against a plain loop."""

import numpy as np
import pytest

from latentrag.evaluation.intervals import (
    Estimate,
    estimates,
    paired_difference,
    resampled_means,
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


def test_paired_difference() -> None:
    random = np.random.default_rng(1)
    theirs = random.integers(0, 2, 400).astype(float)
    ours = np.maximum(theirs, random.integers(0, 2, 400))
    mean, low, high = paired_difference(list(ours), list(theirs))
    assert mean == pytest.approx((ours - theirs).mean())
    half = 1.96 * (ours - theirs).std() / 20
    assert low == pytest.approx(mean - half, abs=0.01)
    assert high == pytest.approx(mean + half, abs=0.01)
    assert paired_difference([1.0, 0.0], [1.0, 0.0]) == (0.0, 0.0, 0.0)


def test_resampled_means_are_those_of_a_plain_loop() -> None:
    random = np.random.default_rng(3)
    parts = random.normal(size=(7, 3, 2))
    parts[:, :, 1] = random.integers(0, 3, size=(7, 3))
    found = resampled_means(parts, resamples=50, seed=4)
    drawn = np.random.default_rng(4).integers(0, 7, size=(50, 7))
    for r, places in enumerate(drawn):
        for m in range(3):
            size = sum(parts[i, m, 1] for i in places)
            expected = sum(parts[i, m, 0] for i in places) / size if size else np.nan
            assert found[r, m] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_estimates() -> None:
    random = np.random.default_rng(5)
    hits = random.integers(0, 2, 500).astype(float)
    parts = np.zeros((500, 2, 2))
    parts[:, 0] = np.stack([hits, np.ones(500)], axis=1)
    parts[:100, 1] = np.stack([hits[:100] * 3, np.full(100, 3.0)], axis=1)  # measured on the first hundred
    whole, part = estimates(parts)
    assert (whole.mean, part.mean) == pytest.approx((hits.mean(), hits[:100].mean()))
    assert (whole.num_examples, part.num_examples) == (500, 100)
    # The normal approximation, whose error at these sizes is below a hundredth.
    for found, values in ((whole, hits), (part, hits[:100])):
        half = 1.96 * values.std() / len(values) ** 0.5
        assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert estimates(parts) == [whole, part]
    assert estimates(np.ones((3, 1, 2))) == [Estimate(1, 1, 1, 3)]
