"""Orders of passages, by what taking them away does to log p(y|x)."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentrag.errors import InputError, ShapeError
from latentrag.evaluation.removal import (
    area_over,
    descending,
    fall_curve,
    greedy_order,
    log_p_without,
    near_duplicate,
    without_near_duplicates,
)
from latentrag.types import Passage


def made(seed: int, num_passages: int, num_tokens: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    log_p_eta = torch.log_softmax(2 * torch.randn(num_passages, generator=random, dtype=torch.float64), dim=0)
    log_p_theta = -3 * torch.rand(num_passages, num_tokens, generator=random, dtype=torch.float64)
    return log_p_eta, log_p_theta


def looped(log_p_eta: torch.Tensor, log_p_theta: torch.Tensor, gone: set[int], variant: str) -> float:
    """log p(y|x) without some passages, written out."""
    kept = [z for z in range(len(log_p_eta)) if z not in gone]
    prior = [math.exp(log_p_eta[z]) for z in kept]
    prior = [each / sum(prior) for each in prior]
    tokens = [[math.exp(each) for each in log_p_theta[z].tolist()] for z in kept]
    if variant == "sequence":
        return math.log(sum(p * math.prod(of_one) for p, of_one in zip(prior, tokens, strict=True)))
    return sum(
        math.log(sum(p * of_one[i] for p, of_one in zip(prior, tokens, strict=True))) for i in range(len(tokens[0]))
    )


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_log_p_without_is_that_of_a_loop(variant):
    log_p_eta, log_p_theta = made(0, 4)
    for number in range(4):
        for gone in map(set, itertools.combinations(range(4), number)):
            found = log_p_without(log_p_eta, log_p_theta, gone, variant=variant)
            assert found == pytest.approx(looped(log_p_eta, log_p_theta, gone, variant), abs=1e-12)
    with pytest.raises(ShapeError, match="all 4 passages"):
        log_p_without(log_p_eta, log_p_theta, range(4), variant=variant)


@given(st.integers(0, 10_000))
def test_no_order_falls_further_at_the_first_step_than_the_greedy_one(seed):
    log_p_eta, log_p_theta = made(seed, 4)
    greedy = greedy_order(log_p_eta, log_p_theta)
    assert sorted(greedy) == [0, 1, 2, 3]
    first = fall_curve(log_p_eta, log_p_theta, greedy)[0]
    for order in itertools.permutations(range(4)):
        assert first >= fall_curve(log_p_eta, log_p_theta, order)[0] - 1e-12


@given(st.integers(0, 10_000))
def test_with_equal_priors_no_order_is_better_than_that_of_the_posterior(seed):
    _, log_p_theta = made(seed, 4)
    log_p_eta = torch.full((4,), -math.log(4), dtype=torch.float64)
    posterior = torch.softmax(log_p_eta + log_p_theta.sum(dim=1), dim=0)
    area = area_over(fall_curve(log_p_eta, log_p_theta, descending(posterior.tolist())))
    others = [area_over(fall_curve(log_p_eta, log_p_theta, order)) for order in itertools.permutations(range(4))]
    assert area == pytest.approx(max(others), abs=1e-12)


def test_the_area_is_the_mean_fall():
    log_p_eta, log_p_theta = made(3, 3)
    falls = fall_curve(log_p_eta, log_p_theta, [2, 0, 1])
    whole = looped(log_p_eta, log_p_theta, set(), "sequence")
    expected = [whole - looped(log_p_eta, log_p_theta, gone, "sequence") for gone in ({2}, {2, 0})]
    assert falls == pytest.approx(expected, abs=1e-12)
    assert area_over(falls) == pytest.approx(sum(expected) / 2)


def test_what_is_no_order_is_refused():
    log_p_eta, log_p_theta = made(0, 3)
    with pytest.raises(InputError, match=r"order=\[0, 1, 1\]; needed each of 0 … 2 once"):
        fall_curve(log_p_eta, log_p_theta, [0, 1, 1])
    with pytest.raises(InputError, match="one passage"):
        fall_curve(log_p_eta[:1], log_p_theta[:1], [0])


def test_near_duplicates():
    first = "The cooper of the Petrel keeps the keys of the hold"
    assert near_duplicate(first, first.upper()) == 1
    assert near_duplicate(first, first + " and nobody else has ever seen them") == 1  # a longer text that holds it
    assert near_duplicate(first, "Nobody knows who keeps these keys") == 0
    assert near_duplicate("two words", "TWO words") == 1
    assert near_duplicate("", "") == 0
    texts = [first, "Another text about something else", first + ".", "Another text about something different"]
    passages = [Passage(str(i), text) for i, text in enumerate(texts)]
    assert without_near_duplicates(passages) == [0, 1]
    assert without_near_duplicates(passages, near=0.8) == [0, 1, 3]
