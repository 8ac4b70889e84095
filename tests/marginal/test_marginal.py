"""The marginal against float64 loops over every z, and its properties."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentrag.errors import InputError, ShapeError
from latentrag.marginal import (
    log_prior,
    prefix_posterior,
    sequence_log_likelihood,
    sequence_posterior,
    token_log_likelihood,
    token_posterior,
    without_passage,
)
from latentrag.types import Variant
from tests.toy import grad_of

LIKELIHOODS = [sequence_log_likelihood, token_log_likelihood]
Problem = tuple[Tensor, Tensor, Tensor]


def problem(
    seed: int, *, batch: int = 3, passages: int = 4, tokens: int = 5, dtype: torch.dtype = torch.float64
) -> Problem:
    """Scores, token log-probabilities and a ragged mask (at least one token a row)."""
    random = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(batch, passages, generator=random, dtype=torch.float64)
    log_p_theta = -3 * torch.rand(batch, passages, tokens, generator=random, dtype=torch.float64)
    lengths = torch.randint(1, tokens + 1, (batch,), generator=random)
    mask = torch.arange(tokens)[None, :] < lengths[:, None]
    return scores.to(dtype), log_p_theta.to(dtype), mask


def loop_sequence(log_p_eta: Tensor, log_p_theta: Tensor, mask: Tensor) -> list[float]:
    out = []
    for b in range(len(log_p_eta)):
        total = 0.0
        for k in range(log_p_eta.shape[1]):
            p = math.exp(log_p_eta[b, k])
            for t in range(mask.shape[1]):
                if mask[b, t]:
                    p *= math.exp(log_p_theta[b, k, t])
            total += p
        out.append(math.log(total))
    return out


def loop_token(log_p_eta: Tensor, log_p_theta: Tensor, mask: Tensor) -> list[float]:
    out = []
    for b in range(len(log_p_eta)):
        log_p = 0.0
        for t in range(mask.shape[1]):
            if mask[b, t]:
                terms = zip(log_p_eta[b].tolist(), log_p_theta[b, :, t].tolist(), strict=True)
                log_p += math.log(sum(math.exp(eta) * math.exp(theta) for eta, theta in terms))
        out.append(log_p)
    return out


shapes = {
    "seed": st.integers(0, 2**31),
    "batch": st.integers(1, 3),
    "passages": st.integers(1, 6),
    "tokens": st.integers(1, 6),
}


@settings(max_examples=60, deadline=None)
@given(**shapes)
@pytest.mark.parametrize(
    ("fast", "slow"), [(sequence_log_likelihood, loop_sequence), (token_log_likelihood, loop_token)]
)
def test_likelihood_equals_loop(fast: Callable, slow: Callable, seed, batch, passages, tokens) -> None:
    scores, log_p_theta, mask = problem(seed, batch=batch, passages=passages, tokens=tokens)
    log_p_eta = log_prior(scores)
    expected = torch.tensor(slow(log_p_eta, log_p_theta, mask), dtype=torch.float64)
    # float64 sums of at most 36 terms: rounding stays far below 1e-12.
    torch.testing.assert_close(fast(log_p_eta, log_p_theta, mask), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
    ("dtype", "atol"),
    # Inputs of a few nats rounded to 8, 11 and 24 bits, 5 tokens: the inputs' rounding, nothing added to it.
    [(torch.bfloat16, 0.1), (torch.float16, 0.02), (torch.float32, 1e-5)],
)
def test_low_precision_inputs_are_accumulated_in_float32(likelihood, dtype, atol) -> None:
    scores, log_p_theta, mask = problem(1)
    exact = likelihood(log_prior(scores), log_p_theta, mask)
    result = likelihood(log_prior(scores.to(dtype)), log_p_theta.to(dtype), mask)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=atol)


def test_many_bfloat16_tokens_do_not_drift() -> None:
    tokens = torch.full((1, 1, 4096), -0.25, dtype=torch.bfloat16)
    total = sequence_log_likelihood(torch.zeros(1, 1), tokens, torch.ones(1, 4096, dtype=torch.bool))
    assert total.item() == -1024.0  # in bfloat16 the sum would stop growing at −64


@settings(max_examples=40, deadline=None)
@given(**shapes)
def test_invariances(seed, batch, passages, tokens) -> None:
    scores, log_p_theta, mask = problem(seed, batch=batch, passages=passages, tokens=tokens)
    order = torch.randperm(passages, generator=torch.Generator().manual_seed(seed))
    garbage = torch.full((batch, passages, 2), float("nan"), dtype=torch.float64)
    padded = torch.cat([log_p_theta, garbage], dim=2)
    padded_mask = torch.cat([mask, torch.zeros(batch, 2, dtype=torch.bool)], dim=1)
    for likelihood in LIKELIHOODS:
        expected = likelihood(log_prior(scores), log_p_theta, mask)
        shuffled = likelihood(log_prior(scores[:, order]), log_p_theta[:, order], mask)
        shifted = likelihood(log_prior(scores + 7.5), log_p_theta, mask)
        with_padding = likelihood(log_prior(scores), padded, padded_mask)
        for other in (shuffled, shifted, with_padding):
            torch.testing.assert_close(other, expected, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(**shapes)
def test_posteriors_are_distributions(seed, batch, passages, tokens) -> None:
    scores, log_p_theta, mask = problem(seed, batch=batch, passages=passages, tokens=tokens)
    log_p_eta = log_prior(scores)
    for posterior in (sequence_posterior, token_posterior, prefix_posterior):
        p = posterior(log_p_eta, log_p_theta, mask)
        assert (p >= 0).all()
        torch.testing.assert_close(p.sum(dim=1), torch.ones_like(p.sum(dim=1)), rtol=0, atol=1e-12)
    prior_where_masked = token_posterior(log_p_eta, log_p_theta, mask)[(~mask)[:, None, :].expand_as(log_p_theta)]
    expected = log_p_eta.exp()[:, :, None].expand_as(log_p_theta)[(~mask)[:, None, :].expand_as(log_p_theta)]
    torch.testing.assert_close(prior_where_masked, expected, rtol=0, atol=1e-12)


def test_one_passage_or_one_token_makes_the_models_equal() -> None:
    for passages, tokens in ((1, 5), (6, 1)):
        scores, log_p_theta, mask = problem(3, passages=passages, tokens=tokens)
        log_p_eta = log_prior(scores)
        torch.testing.assert_close(
            sequence_log_likelihood(log_p_eta, log_p_theta, mask),
            token_log_likelihood(log_p_eta, log_p_theta, mask),
            rtol=0,
            atol=1e-12,
        )


def test_prefix_posterior_ends_in_the_sequence_posterior_and_starts_in_the_token_posterior() -> None:
    scores, log_p_theta, mask = problem(4)
    log_p_eta = log_prior(scores)
    prefix = prefix_posterior(log_p_eta, log_p_theta, mask)
    torch.testing.assert_close(prefix[:, :, -1], sequence_posterior(log_p_eta, log_p_theta, mask))
    torch.testing.assert_close(prefix[:, :, 0], token_posterior(log_p_eta, log_p_theta, mask)[:, :, 0])


@pytest.mark.parametrize("seed", range(5))
def test_gradient_of_the_scores_is_posterior_minus_prior(seed: int) -> None:
    scores, log_p_theta, mask = problem(seed)
    scores.requires_grad_()
    prior = log_prior(scores)
    (sequence_gradient,) = torch.autograd.grad(
        -sequence_log_likelihood(prior, log_p_theta, mask).sum(), scores, retain_graph=True
    )
    closed = prior.exp() - sequence_posterior(prior, log_p_theta, mask)
    torch.testing.assert_close(sequence_gradient, closed, rtol=0, atol=1e-12)

    (token_gradient,) = torch.autograd.grad(-token_log_likelihood(prior, log_p_theta, mask).sum(), scores)
    per_token = prior.exp()[:, :, None] - token_posterior(prior, log_p_theta, mask)  # 0 where masked
    torch.testing.assert_close(token_gradient, per_token.sum(dim=2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradcheck(likelihood) -> None:
    scores, log_p_theta, mask = problem(5, batch=2, passages=3, tokens=3)
    scores.requires_grad_()
    log_p_theta.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: likelihood(log_prior(s), t, mask), (scores, log_p_theta))


def test_gradient_is_finite_with_a_passage_taken_out() -> None:
    scores = torch.tensor([[0.5, float("-inf"), 1.0]], requires_grad=True)
    log_p_theta = torch.full((1, 3, 2), -1.0, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = sequence_log_likelihood(log_prior(scores), log_p_theta, mask)
    loss.sum().backward()
    assert loss.item() == pytest.approx(-2.0, abs=1e-6)
    assert torch.isfinite(grad_of(scores)).all()
    assert torch.isfinite(grad_of(log_p_theta)).all()


@pytest.mark.parametrize("variant", ["sequence", "token"])
@pytest.mark.parametrize("seed", range(5))
def test_without_passage_equals_recomputation(variant: Variant, seed: int) -> None:
    scores, log_p_theta, mask = problem(seed)
    result = without_passage(log_prior(scores), log_p_theta, mask, variant=variant)
    slow = loop_sequence if variant == "sequence" else loop_token
    for k in range(scores.shape[1]):
        others = [j for j in range(scores.shape[1]) if j != k]
        expected = slow(log_prior(scores[:, others]), log_p_theta[:, others], mask)
        torch.testing.assert_close(result[:, k], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_without_passage_equals_the_closed_form_of_the_sequence_model(seed: int) -> None:
    scores, log_p_theta, mask = problem(seed)
    log_p_eta = log_prior(scores)
    posterior = sequence_posterior(log_p_eta, log_p_theta, mask)
    log_p = sequence_log_likelihood(log_p_eta, log_p_theta, mask)
    closed = log_p[:, None] + torch.log1p(-posterior) - torch.log1p(-log_p_eta.exp())
    torch.testing.assert_close(without_passage(log_p_eta, log_p_theta, mask), closed, rtol=0, atol=1e-10)


def test_without_passage_keeps_its_digits_when_one_passage_explains_everything() -> None:
    scores = torch.tensor([[40.0, 0.0, 0.0]])  # 1 − posterior is 0 in float32
    log_p_theta = torch.tensor([[[-0.1], [-30.0], [-20.0]]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    result = without_passage(log_prior(scores), log_p_theta, mask)
    expected = math.log((math.exp(-30.0) + math.exp(-20.0)) / 2)
    assert result[0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    eta, theta, mask = torch.zeros(2, 3), torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool)
    for bad in (
        (torch.zeros(2, 4), theta, mask),
        (eta, torch.zeros(2, 3), mask),
        (eta, theta, torch.ones(2, 5, dtype=torch.bool)),
    ):
        for function in (*LIKELIHOODS, sequence_posterior, token_posterior, prefix_posterior, without_passage):
            with pytest.raises((ShapeError, TypeError)):  # TypeError where the run-time shape check sees it first
                function(*bad)
    with pytest.raises(ShapeError, match="K ≥ 2"):
        without_passage(torch.zeros(1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises((InputError, TypeError)):
        without_passage(eta, theta, mask, variant="both")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ShapeError, match="K ≥ 1"):
        log_prior(torch.zeros(2, 0))
