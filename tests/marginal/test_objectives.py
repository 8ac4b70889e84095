"""The objectives against float64 loops over every z and i, their closed gradients, and what they must not change."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentrag.errors import InputError, ShapeError
from latentrag.marginal import (
    emdr2,
    log_likelihood,
    log_prior,
    loop,
    marginal_weights,
    nll,
    pdist,
    prefix_posterior,
    sequence_posterior,
    smoothed_nll,
    token_posterior,
    without_passage,
)
from latentrag.types import Variant
from tests.marginal.test_marginal import loop_sequence, loop_token, problem, shapes
from tests.toy import Tolerance, grad_of

VARIANTS: list[Variant] = ["sequence", "token"]
LOOPS = {"sequence": loop_sequence, "token": loop_token}
EXACT: Tolerance = {"rtol": 0, "atol": 1e-12}  # float64, at most some hundred terms of a few nats
SMOOTHING = 0.1


def vocabulary(seed: int, *, batch: int = 2, passages: int = 3, tokens: int = 4, words: int = 5) -> tuple[Tensor, ...]:
    """Scores, log p_θ of every token (B, K, T, V), gold tokens (B, T) and their mask."""
    scores, _, mask = problem(seed, batch=batch, passages=passages, tokens=tokens)
    random = torch.Generator().manual_seed(seed + 1)
    logits = 2 * torch.randn(batch, passages, tokens, words, generator=random, dtype=torch.float64)
    gold = torch.randint(0, words, (batch, tokens), generator=random)
    return scores, torch.log_softmax(logits, dim=-1), gold, mask


def of_gold(everything: Tensor, gold: Tensor) -> Tensor:
    """(B, K, T) the gold tokens' entries of (B, K, T, V)."""
    index = gold[:, None, :, None].expand(*everything.shape[:3], 1)
    return everything.gather(3, index)[..., 0]


def loop_marginal(log_p_eta: Tensor, everything: Tensor, gold: Tensor, b: int, variant: Variant) -> Tensor:
    """(T, V) log p(v|x,y_<i) of question b, by explicit sums over z."""
    _, num_passages, num_tokens, num_words = everything.shape
    weights = [math.exp(log_p_eta[b, k]) for k in range(num_passages)]
    rows = torch.empty(num_tokens, num_words, dtype=torch.float64)
    for i in range(num_tokens):
        total = sum(weights)
        for v in range(num_words):
            terms = [weights[k] / total * math.exp(everything[b, k, i, v]) for k in range(num_passages)]
            rows[i, v] = math.log(sum(terms))
        if variant == "sequence":
            weights = [weights[k] * math.exp(everything[b, k, i, gold[b, i]]) for k in range(num_passages)]
    return rows


def loop_kl(target_logits: list[float], log_p_eta: Tensor) -> float:
    top = max(target_logits)
    total = sum(math.exp(value - top) for value in target_logits)
    target = [math.exp(value - top) / total for value in target_logits]
    return sum(t * (math.log(t) - float(log_p)) for t, log_p in zip(target, log_p_eta, strict=True) if t > 0)


def loop_pdist(
    log_p_eta: Tensor, log_p_theta: Tensor, mask: Tensor, variant: Variant, temperature: float
) -> list[float]:
    losses = []
    for b, log_p in enumerate(LOOPS[variant](log_p_eta, log_p_theta, mask)):
        num_tokens = int(mask[b].sum())
        means = [
            sum(float(log_p_theta[b, k, i]) for i in range(mask.shape[1]) if mask[b, i]) / num_tokens / temperature
            for k in range(log_p_eta.shape[1])
        ]
        losses.append(-log_p + loop_kl(means, log_p_eta[b]))
    return losses


def loop_loop(
    log_p_eta: Tensor, log_p_theta: Tensor, mask: Tensor, variant: Variant, temperature: float
) -> list[float]:
    num_passages = log_p_eta.shape[1]
    without = []
    for k in range(num_passages):
        others = [j for j in range(num_passages) if j != k]
        prior = log_p_eta[:, others] - log_p_eta[:, others].logsumexp(dim=1, keepdim=True)
        without.append(LOOPS[variant](prior, log_p_theta[:, others], mask))
    return [
        -log_p + loop_kl([-without[k][b] / temperature for k in range(num_passages)], log_p_eta[b])
        for b, log_p in enumerate(LOOPS[variant](log_p_eta, log_p_theta, mask))
    ]


def objectives(variant: Variant, seed: int, batch: int, tokens: int) -> dict[str, Callable[..., Tensor]]:
    """Every objective as a function of log_p_eta, log_p_theta and mask; what else they read does not change."""
    random = torch.Generator().manual_seed(seed + 2)
    other = -torch.rand(batch, tokens, generator=random, dtype=torch.float64)
    return {
        "nll": partial(nll, variant=variant),
        "smoothed_nll": lambda eta, theta, mask: smoothed_nll(
            eta, theta, other, mask, variant=variant, smoothing=SMOOTHING
        ),
        "emdr2": lambda eta, theta, mask: emdr2(eta, theta, mask, other, variant=variant),
        "pdist": partial(pdist, variant=variant, temperature=0.5),
        "loop": partial(loop, variant=variant, temperature=0.5),
    }


@settings(max_examples=20)
@given(**shapes)
@pytest.mark.parametrize("variant", VARIANTS)
def test_objectives_equal_loops(variant: Variant, seed, batch, passages, tokens) -> None:
    scores, log_p_theta, mask = problem(seed, batch=batch, passages=passages, tokens=tokens)
    log_p_eta = log_prior(scores)
    of = objectives(variant, seed, batch, tokens)
    minus_log_p = [-value for value in LOOPS[variant](log_p_eta, log_p_theta, mask)]
    together = -torch.rand(batch, tokens, dtype=torch.float64)
    sums = [sum(float(together[b, i]) for i in range(tokens) if mask[b, i]) for b in range(batch)]
    expected = {
        "nll": (of["nll"](log_p_eta, log_p_theta, mask), minus_log_p),
        "emdr2": (
            emdr2(log_p_eta, log_p_theta, mask, together, variant=variant),
            [loss - total for loss, total in zip(minus_log_p, sums, strict=True)],
        ),
        "pdist": (
            of["pdist"](log_p_eta, log_p_theta, mask),
            loop_pdist(log_p_eta, log_p_theta, mask, variant, 0.5),
        ),
    }
    if passages > 1:
        slow = loop_loop(log_p_eta, log_p_theta, mask, variant, 0.5)
        expected["loop"] = (of["loop"](log_p_eta, log_p_theta, mask), slow)
    for fast, slow in expected.values():
        torch.testing.assert_close(fast, torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(4))
def test_smoothing_is_that_of_the_marginal_over_the_whole_vocabulary(variant: Variant, seed: int) -> None:
    """Against torch's own label smoothing, given the marginal's log-probabilities as logits."""
    scores, everything, gold, mask = vocabulary(seed)
    log_p_eta, log_p_theta = log_prior(scores), of_gold(everything, gold)
    weights = marginal_weights(log_p_eta, log_p_theta, mask, variant=variant)
    mean = (weights[..., None] + everything).logsumexp(dim=1).mean(dim=2)  # (B, T)
    loss = smoothed_nll(log_p_eta, log_p_theta, mean, mask, variant=variant, smoothing=SMOOTHING)
    for b in range(len(scores)):
        marginal = loop_marginal(log_p_eta, everything, gold, b, variant)[mask[b]]
        expected = torch.nn.functional.cross_entropy(
            marginal, gold[b][mask[b]], label_smoothing=SMOOTHING, reduction="sum"
        )
        torch.testing.assert_close(loss[b], expected, **EXACT)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_smoothing_is_the_nll_whatever_the_mean(variant: Variant) -> None:
    scores, log_p_theta, mask = problem(0)
    mean = torch.full(mask.shape, -torch.inf, dtype=torch.float64)
    loss = smoothed_nll(log_prior(scores), log_p_theta, mean, mask, variant=variant, smoothing=0.0)
    torch.testing.assert_close(loss, nll(log_prior(scores), log_p_theta, mask, variant=variant), rtol=0, atol=0)


@settings(max_examples=20)
@given(**shapes)
@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_distributions_and_their_marginals_add_up(variant: Variant, seed, batch, passages, tokens) -> None:
    scores, log_p_theta, mask = problem(seed, batch=batch, passages=passages, tokens=tokens)
    log_p_eta = log_prior(scores)
    weights = marginal_weights(log_p_eta, log_p_theta, mask, variant=variant)
    torch.testing.assert_close(weights.logsumexp(dim=1), torch.zeros_like(weights[:, 0]), **EXACT)
    torch.testing.assert_close(weights[:, :, 0], log_p_eta, **EXACT)
    if variant == "sequence":
        torch.testing.assert_close(
            weights[:, :, 1:].exp(), prefix_posterior(log_p_eta, log_p_theta, mask)[:, :, :-1], **EXACT
        )
    of_tokens = (weights + log_p_theta).logsumexp(dim=1).masked_fill(~mask, 0.0)
    torch.testing.assert_close(
        of_tokens.sum(dim=1), log_likelihood(log_p_eta, log_p_theta, mask, variant=variant), **EXACT
    )


def test_a_passage_that_cannot_say_a_token_has_no_weight_after_it() -> None:
    log_p_theta = torch.full((1, 2, 3), -1.0)
    log_p_theta[0, 0, 1] = -torch.inf
    log_p_theta.requires_grad_()
    log_p_eta, mask = torch.log(torch.tensor([[0.75, 0.25]])), torch.ones(1, 3, dtype=torch.bool)
    weights = marginal_weights(log_p_eta, log_p_theta, mask, variant="sequence")
    expected = torch.tensor([[[0.75, 0.75, 0.0], [0.25, 0.25, 1.0]]])
    torch.testing.assert_close(weights.exp(), expected, rtol=0, atol=1e-6)  # float32
    of_tokens = (weights + log_p_theta).logsumexp(dim=1)
    assert of_tokens.sum().item() == pytest.approx(math.log(0.25) - 3, abs=1e-5)
    of_tokens.sum().backward()
    assert torch.isfinite(grad_of(log_p_theta)).all()


@settings(max_examples=20)
@given(**shapes)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_order_of_the_passages_and_the_padding_do_not_matter(
    variant: Variant, seed, batch, passages, tokens
) -> None:
    scores, log_p_theta, mask = problem(seed, batch=batch, passages=passages, tokens=tokens)
    order = torch.randperm(passages, generator=torch.Generator().manual_seed(seed))
    garbage = log_p_theta.masked_fill(~mask[:, None, :], math.nan)
    for name, objective in objectives(variant, seed, batch, tokens).items():
        expected = objective(log_prior(scores), log_p_theta, mask)
        shuffled = objective(log_prior(scores[:, order]), log_p_theta[:, order], mask)
        torch.testing.assert_close(shuffled, expected, **EXACT, msg=partial("{}: {}".format, name))
        masked = objective(log_prior(scores), garbage, mask)
        torch.testing.assert_close(masked, expected, **EXACT, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("name", ["mean_log_p", "log_p_together"])
def test_masked_positions_of_the_other_tensors_are_not_read(name: str) -> None:
    scores, log_p_theta, mask = problem(1)
    log_p_eta = log_prior(scores)
    clean = -torch.rand(mask.shape, dtype=torch.float64)
    losses = []
    for other in (clean, clean.masked_fill(~mask, math.nan)):
        if name == "mean_log_p":
            losses.append(smoothed_nll(log_p_eta, log_p_theta, other, mask, variant="token", smoothing=0.5))
        else:
            losses.append(emdr2(log_p_eta, log_p_theta, mask, other, variant="token"))
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)


def test_one_token_makes_the_variants_equal() -> None:
    scores, log_p_theta, mask = problem(2, tokens=1)
    token = objectives("token", 2, 3, 1)
    for name, objective in objectives("sequence", 2, 3, 1).items():
        one, two = (f(log_prior(scores), log_p_theta, mask) for f in (objective, token[name]))
        torch.testing.assert_close(one, two, **EXACT)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_passage_has_no_retriever_loss(variant: Variant) -> None:
    scores, log_p_theta, mask = problem(3, passages=1)
    log_p_eta = log_prior(scores)
    expected = nll(log_p_eta, log_p_theta, mask, variant=variant)
    for objective in (pdist, loop):
        torch.testing.assert_close(objective(log_p_eta, log_p_theta, mask, variant=variant), expected, **EXACT)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["nll", "smoothed_nll", "emdr2", "pdist", "loop"])
def test_gradcheck(variant: Variant, name: str) -> None:
    """Finite differences, with the stopped side held fixed: it is not what the loss is differentiated in."""
    scores, log_p_theta, mask = problem(5, batch=2, passages=3, tokens=3)
    objective = objectives(variant, 5, 2, 3)[name]
    scores.requires_grad_()
    if name in ("nll", "smoothed_nll"):
        log_p_theta.requires_grad_()
        assert torch.autograd.gradcheck(lambda s, t: objective(log_prior(s), t, mask), (scores, log_p_theta))
    elif name == "emdr2":
        assert torch.autograd.gradcheck(lambda s: objective(log_prior(s), log_p_theta, mask), (scores,))
    else:  # the value has the prior in both of its terms, the gradient in the second only
        stopped = log_prior(scores.detach())
        fixed = objective(stopped, log_p_theta, mask) - nll(stopped, log_p_theta, mask, variant=variant)
        assert (fixed > 0).all()
        closed, found = kl_gradient(name, variant, scores, log_p_theta, mask)
        torch.testing.assert_close(found, closed, **EXACT)


def kl_gradient(
    name: str, variant: Variant, scores: Tensor, log_p_theta: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Prior − target, and the gradient of the loss with respect to the scores."""
    prior = log_prior(scores)
    if name == "pdist":
        usefulness = log_p_theta.masked_fill(~mask[:, None], 0.0).sum(dim=2) / mask.sum(dim=1, keepdim=True)
    else:
        usefulness = -without_passage(prior, log_p_theta, mask, variant=variant)
    closed = (prior.exp() - torch.softmax(usefulness / 0.5, dim=1)).detach()
    objective = {"pdist": pdist, "loop": loop}[name]
    loss = objective(prior, log_p_theta, mask, variant=variant, temperature=0.5).sum()
    return closed, torch.autograd.grad(loss, scores)[0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_closed_gradients_of_the_scores(variant: Variant, seed: int) -> None:
    scores, log_p_theta, mask = problem(seed)
    scores.requires_grad_()
    prior = log_prior(scores)
    if variant == "sequence":
        closed = prior.exp() - sequence_posterior(prior, log_p_theta, mask)
    else:
        closed = (prior.exp()[:, :, None] - token_posterior(prior, log_p_theta, mask)).sum(dim=2)
    (gradient,) = torch.autograd.grad(nll(prior, log_p_theta, mask, variant=variant).sum(), scores)
    torch.testing.assert_close(gradient, closed, **EXACT)
    for name in ("pdist", "loop"):
        expected, found = kl_gradient(name, variant, scores, log_p_theta, mask)
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("objective", [pdist, loop])
def test_the_generator_learns_from_the_reader_loss_alone(variant: Variant, objective: Callable[..., Tensor]) -> None:
    scores, log_p_theta, mask = problem(6)
    log_p_theta.requires_grad_()
    log_p_eta = log_prior(scores)
    (found,) = torch.autograd.grad(objective(log_p_eta, log_p_theta, mask, variant=variant).sum(), log_p_theta)
    (expected,) = torch.autograd.grad(nll(log_p_eta, log_p_theta, mask, variant=variant).sum(), log_p_theta)
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("variant", VARIANTS)
def test_emdr2_stops_the_gradient_of_single_passages(variant: Variant) -> None:
    scores, log_p_theta, mask = problem(7)
    together = -torch.rand(mask.shape, dtype=torch.float64)
    for tensor in (scores, log_p_theta, together):
        tensor.requires_grad_()
    emdr2(log_prior(scores), log_p_theta, mask, together, variant=variant).sum().backward()
    assert log_p_theta.grad is None
    torch.testing.assert_close(together.grad, -mask.double(), rtol=0, atol=0)
    assert (grad_of(scores).abs() > 1e-6).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_emdr2_with_the_marginal_as_reader_has_the_gradients_of_the_nll(variant: Variant) -> None:
    scores, log_p_theta, mask = problem(8)
    scores.requires_grad_()
    log_p_theta.requires_grad_()
    prior = log_prior(scores)
    weights = marginal_weights(prior.detach(), log_p_theta, mask, variant=variant)
    together = (weights + log_p_theta).logsumexp(dim=1)  # (B, T) of the marginal, the prior stopped
    loss = emdr2(prior, log_p_theta, mask, together, variant=variant)
    found = torch.autograd.grad(loss.sum(), (scores, log_p_theta), retain_graph=True)
    expected = torch.autograd.grad(nll(prior, log_p_theta, mask, variant=variant).sum(), (scores, log_p_theta))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, **EXACT)


@pytest.mark.parametrize("objective", [pdist, loop])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_passage_that_is_out_stays_out(variant: Variant, objective: Callable[..., Tensor]) -> None:
    scores, log_p_theta, mask = problem(9, passages=3)
    expected = objective(log_prior(scores), log_p_theta, mask, variant=variant)
    more = torch.cat([scores, torch.full_like(scores[:, :1], -torch.inf)], dim=1).requires_grad_()
    theta = torch.cat([log_p_theta, torch.zeros_like(log_p_theta[:, :1])], dim=1)  # it would explain y best
    loss = objective(log_prior(more), theta, mask, variant=variant)
    torch.testing.assert_close(loss, expected, **EXACT)
    loss.sum().backward()
    assert torch.isfinite(grad_of(more)).all()
    assert (grad_of(more)[:, 3] == 0).all()


@settings(max_examples=20)
@given(temperature=st.floats(0.05, 20.0))
def test_a_lower_temperature_sharpens_the_target(temperature: float) -> None:
    """With a flat prior over K passages, KL = log K − H(target), which falls as the temperature rises."""
    _, log_p_theta, mask = problem(10)
    flat = log_prior(torch.zeros(log_p_theta.shape[:2], dtype=torch.float64))
    for objective in (pdist, loop):
        sharp = objective(flat, log_p_theta, mask, variant="sequence", temperature=temperature)
        blunt = objective(flat, log_p_theta, mask, variant="sequence", temperature=2 * temperature)
        assert (sharp > blunt).all()


@pytest.mark.parametrize("name", ["nll", "smoothed_nll", "emdr2", "pdist", "loop"])
def test_half_precision_is_accumulated_in_float32(name: str) -> None:
    scores, log_p_theta, mask = problem(11)
    objective = objectives("sequence", 11, 3, 5)[name]
    low = objective(log_prior(scores.bfloat16()).bfloat16(), log_p_theta.bfloat16(), mask)
    assert low.dtype in (torch.float32, torch.float64)  # float64 where the fixed other tensor is
    exact = objective(log_prior(scores), log_p_theta, mask)
    # Inputs of up to some 10 nats rounded to 8 bits, 5 of them, temperature 1/2: rounding of the inputs alone.
    torch.testing.assert_close(low.double(), exact, rtol=0, atol=0.3)


def test_bad_arguments_are_refused() -> None:
    scores, log_p_theta, mask = problem(12)
    log_p_eta = log_prior(scores)
    other = torch.zeros(mask.shape, dtype=torch.float64)
    for smoothing in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="needed 0 to 1"):
            smoothed_nll(log_p_eta, log_p_theta, other, mask, variant="token", smoothing=smoothing)
    for objective in (pdist, loop):
        for temperature in (0.0, -1.0, math.nan):
            with pytest.raises(InputError, match="needed more than 0"):
                objective(log_p_eta, log_p_theta, mask, variant="token", temperature=temperature)
    with pytest.raises((ShapeError, TypeError)):  # TypeError where the run-time shape check sees it first
        emdr2(log_p_eta, log_p_theta, mask, other[:, 1:], variant="token")
    for bad in (nll, pdist, loop, marginal_weights, log_likelihood):
        with pytest.raises((InputError, TypeError)):
            bad(log_p_eta, log_p_theta, mask, variant="both")  # type: ignore[arg-type]  # on purpose
