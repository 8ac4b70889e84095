import numpy as np
import pytest

from latentrag.evaluation import (
    contains_answer,
    exact_match,
    normalised,
    paired_difference,
    regex_match,
    share_interval,
)


def test_normalised() -> None:
    assert normalised(" The  Beatles' (1960s) album, a ") == "beatles 1960s album"
    assert normalised("theatre anthem") == "theatre anthem"


def test_exact_match() -> None:
    assert exact_match("the Eiffel Tower.", ["Big Ben", "Eiffel tower"])
    assert not exact_match("Eiffel", ["Eiffel Tower"])


def test_regex_match() -> None:
    assert regex_match(" september 12", "Sept?(ember)?|Feb(ruary)?")
    assert not regex_match("in September", "Sept?(ember)?")


def test_contains_answer() -> None:
    assert contains_answer("It is in Paris, France.", ["paris"])
    assert not contains_answer("Parisian life", ["Paris"])
    assert not contains_answer("anything", ["the", ""])


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
