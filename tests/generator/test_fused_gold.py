"""The fused loss against the layer applied at once."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from latentrag.generator import fused_gold
from latentrag.generator.fused_gold import fused_gold_log_probs
from tests.toy import grad_of

R, H, V = 6, 8, 53
TOLERANCE = 1e-5
"""Of a tensor's norm: some hundred float32 roundings, added in another order."""

LATER_BIAS = torch.randn(1, V, generator=torch.Generator().manual_seed(1))
AFTER = {
    "nothing": lambda logits, columns: logits,
    "bias": lambda logits, columns: logits + LATER_BIAS[:, columns].to(logits),
    "scaled": lambda logits, columns: logits * 1.7 / 0.6,
    "capped": lambda logits, columns: torch.tanh((logits + LATER_BIAS[:, columns].to(logits)) / 2.0) * 2.0,
}


@pytest.fixture(params=[1, 7 * R, 1 << 20], ids=["block of 1", "blocks of 7", "one block"])
def blocks(request, monkeypatch) -> None:
    monkeypatch.setattr(fused_gold, "BLOCK_ELEMENTS", request.param)


def layer(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, gold tokens at both edges of the vocabulary and between, weight, bias, and weights of the sum."""
    gold = torch.tensor([0, V - 1, 6, 7, 20, 20])
    hidden, weight, bias = torch.randn(R, H), torch.randn(V, H), torch.randn(V)
    return hidden.to(dtype), gold, weight.to(dtype), bias.to(dtype), torch.randn(R)


def at_once(hidden: Tensor, gold: Tensor, *, weight: Tensor, bias: Tensor | None, after) -> Tensor:
    logits = after(torch.nn.functional.linear(hidden, weight, bias), slice(None)).float()
    return torch.log_softmax(logits, dim=-1).gather(1, gold[:, None])[:, 0]


def assert_near(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    difference = (found.float() - expected.float()).norm()
    assert difference <= tolerance * expected.float().norm(), float(difference / expected.float().norm())


@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.usefixtures("blocks")
def test_log_probs_and_gradients(with_bias: bool, after) -> None:
    for trained in product([False, True], repeat=3):
        hidden, gold, weight, bias, above = layer()
        arguments = [hidden, weight, *([bias] if with_bias else [])]
        wanted = [t for t, is_trained in zip(arguments, trained, strict=False) if is_trained]
        for tensor in wanted:
            tensor.requires_grad_()
        given: dict[str, Any] = {"weight": weight, "bias": bias if with_bias else None, "after": after}
        found, expected = fused_gold_log_probs(hidden, gold, **given), at_once(hidden, gold, **given)
        assert_near(found, expected)
        if wanted:
            for ours, theirs in zip(
                torch.autograd.grad((found * above).sum(), wanted),
                torch.autograd.grad((expected * above).sum(), wanted),
                strict=True,
            ):
                assert_near(ours, theirs)
        else:
            assert not found.requires_grad


@pytest.mark.usefixtures("blocks")
def test_without_gradients() -> None:
    hidden, gold, weight, bias, _ = layer()
    given: dict[str, Any] = {"weight": weight.requires_grad_(), "bias": bias, "after": AFTER["capped"]}
    with torch.no_grad():
        found = fused_gold_log_probs(hidden, gold, **given)
    assert not found.requires_grad
    assert_near(found, at_once(hidden, gold, **given).detach())


def test_no_rows() -> None:
    hidden, gold, weight, _, _ = layer()
    hidden = hidden[:0].requires_grad_()
    found = fused_gold_log_probs(hidden, gold[:0], weight=weight.requires_grad_(), bias=None, after=AFTER["capped"])
    found.sum().backward()
    assert found.shape == (0,)
    assert grad_of(hidden).shape == (0, H)
    assert torch.equal(grad_of(weight), torch.zeros(V, H))


def test_a_token_that_is_certain_keeps_its_gradient_in_bfloat16() -> None:
    """p(y) is nearly one, where 1 − p(y) as a difference of bfloat16 numbers would be off by its own size."""
    hidden, gold, weight, _, _ = layer()
    weight = (0.1 * weight).index_add(0, gold[:1], hidden[:1])
    gradients = []
    for dtype, score in ((torch.bfloat16, fused_gold_log_probs), (torch.float32, at_once)):
        # The same rounded numbers on both sides: what remains is the arithmetic.
        wanted = [tensor.bfloat16().to(dtype).requires_grad_() for tensor in (hidden[:1], weight)]
        log_prob = score(wanted[0], gold[:1], weight=wanted[1], bias=None, after=AFTER["nothing"])
        assert -2 * torch.finfo(torch.bfloat16).eps < log_prob.item() < 0
        gradients.append(torch.autograd.grad(log_prob.sum(), wanted))
    for ours, theirs in zip(*gradients, strict=True):
        # Logits below 16 are rounded by up to 1/32 in bfloat16, and so is log(1 − p).
        assert_near(ours.float(), theirs, 0.05)


def test_far_logits_stay_finite() -> None:
    """Gold tokens beside which all others vanish, or that vanish beside another."""
    weight = torch.tensor([[1.0], [0.0], [-1.0]])
    hidden = torch.tensor([[300.0], [300.0]]).requires_grad_()
    found = fused_gold_log_probs(hidden, torch.tensor([0, 2]), weight=weight, bias=None, after=AFTER["nothing"])
    found.sum().backward()
    torch.testing.assert_close(found.detach(), torch.tensor([0.0, -600.0]))
    torch.testing.assert_close(hidden.grad, torch.tensor([[0.0], [-2.0]]))


def test_mixed_precision_is_that_of_the_forward_pass() -> None:
    results = []
    for score in (fused_gold_log_probs, at_once):
        torch.manual_seed(0)
        hidden, gold, weight, bias, above = layer()
        wanted = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            log_probs = score(hidden, gold, weight=weight, bias=bias, after=AFTER["scaled"])
        results.append([log_probs, *torch.autograd.grad((log_probs * above).sum(), wanted)])
    # bfloat16 keeps 8 bits. The log-probabilities come from the same rounded logits and agree far better.
    assert_near(results[0][0], results[1][0])
    for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
        assert_near(ours, theirs, 0.01)


def test_second_derivatives_are_refused() -> None:
    hidden, gold, weight, _, above = layer()
    hidden.requires_grad_()
    found = fused_gold_log_probs(hidden, gold, weight=weight, bias=None, after=AFTER["nothing"])
    (gradient,) = torch.autograd.grad((found * above.requires_grad_()).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
