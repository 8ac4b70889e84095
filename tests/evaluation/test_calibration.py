"""Reliability of shares."""

import numpy as np
import pytest

from latentrag.errors import InputError
from latentrag.evaluation.calibration import reliability


def drawn(number: int, *, seed: int, power: float = 1.0) -> tuple[list[list[float]], list[list[bool]]]:
    """Shares of three passages a question; each holds the answer with the probability share ** power."""
    random = np.random.default_rng(seed)
    shares = random.dirichlet([0.4] * 3, size=number)
    holds = random.random(shares.shape) < shares**power
    return shares.tolist(), holds.tolist()


def test_bins_and_error_by_hand():
    shares = [[0.95, 0.05], [0.91, 0.09], [0.55, 0.45]]
    holds = [[True, False], [False, False], [True, True]]
    found = reliability(shares, holds)
    assert [(each.low, each.num_passages) for each in found.bins] == [(0.0, 2), (0.4, 1), (0.5, 1), (0.9, 2)]
    last = found.bins[-1]
    assert last.share == pytest.approx(0.93)
    assert last.holds == 0.5
    expected = (2 * 0.07 + 0.55 + 0.45 + 2 * 0.43) / 6
    assert found.error == pytest.approx(expected)


def test_a_share_of_one_is_in_the_last_bin():
    found = reliability([[1.0, 0.0]], [[True, False]])
    assert [each.low for each in found.bins] == [0.0, 0.9]
    assert found.error == 0


def test_true_shares_are_found_true_and_false_ones_false():
    true, false = (reliability(*drawn(3000, seed=1, power=power)) for power in (1.0, 3.0))
    assert true.error < 0.02
    assert abs(true.error - true.error_if_true) < 0.01
    assert false.error_low > 0.05
    assert all(each.holds_low <= each.share <= each.holds_high for each in true.bins[1:-1:3])


def test_the_interval_covers():
    """In 40 samples the interval of a bin misses the truth about as often as it says: 2 times, 8 at most."""
    missed = 0
    for seed in range(40):
        last = reliability(*drawn(150, seed=seed)).bins[-1]
        missed += not last.holds_low <= last.share <= last.holds_high
    assert missed <= 8


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="differ in their numbers"):
        reliability([[0.5, 0.5]], [[True]])
    with pytest.raises(InputError, match="no passage"):
        reliability([], [])


def test_questions_without_a_passage_change_nothing() -> None:
    shares, holds = [[0.5, 0.2], [0.9]], [[True, False], [False]]
    assert reliability([*shares, [], [], []], [*holds, [], [], []]) == reliability(shares, holds)
