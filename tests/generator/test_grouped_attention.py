"""Heads that share keys, side by side, against torch's attention over repeated keys."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrag.generator import CausalGenerator, grouped_attention, load_generator
from latentrag.generator.grouped_attention import attend_side_by_side
from latentrag.generator.lora import Lora
from latentrag.types import Passage
from tests import tiny


def repeated(query, key, value, mask, *, scaling):
    """Slow and obvious: every head has keys of its own."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    logits = (query.double() @ key.double().transpose(2, 3)) * scaling
    logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.double()
    return (torch.softmax(logits, dim=3) @ value.double()).transpose(1, 2)


shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(0, 7), st.integers(1, 8)
)


@given(shapes, st.booleans(), st.booleans(), st.integers(0, 1000))
@settings(deadline=None)
def test_values_and_gradients_are_those_of_repeated_keys(shape, plain, added, seed) -> None:
    rows, shared, groups, length, before, width = shape
    torch.manual_seed(seed)
    size = before + length
    query = torch.randn(rows, shared * groups, length, width, requires_grad=True)
    key, value = torch.randn(2, rows, shared, size, width).unbind()
    key.requires_grad_()
    value.requires_grad_()
    seen = torch.ones(length, size, dtype=torch.bool).tril(before) & (torch.rand(rows, 1, 1, size) < 0.7)
    seen |= torch.eye(length, size, dtype=torch.bool).roll(before, 1)  # each sees itself
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min) if added else seen
    learning = (query, key, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped_attention, "_plain_keeps_less", lambda *_: plain)
        found = attend_side_by_side(*learning, mask, scaling=0.3)
    expected = repeated(*learning, seen, scaling=0.3)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    above = torch.randn_like(found)
    of_found = torch.autograd.grad(found, learning, above)
    of_expected = torch.autograd.grad(expected, learning, above.double())
    for ours, theirs in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_a_query_that_sees_nothing_is_no_nan() -> None:
    query = torch.randn(1, 2, 3, 4, requires_grad=True)
    key, value = torch.randn(2, 1, 1, 5, 4)
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    mask[:, :, 1] = False
    assert attend_side_by_side(query, key, value, mask, scaling=None).isfinite().all()


@pytest.mark.parametrize("scope", ["question", "all"])
def test_training_goes_this_way_and_comes_to_the_same(tmp_path, monkeypatch, scope) -> None:
    """Scores and an adapter's gradients, beside those of torch's attention."""
    tiny.save_tokenizer(tmp_path, end=False, max_tokens=64)
    tiny.save_llama(tmp_path, seed=3)
    x, y = ["what is the capital", "which moon is red"], ["paris", "mars and rome"]
    passages = [[Passage("a", "paris is the capital"), Passage("b", "the red moon is a moon of mars and of rome")]] * 2
    ways, calls, numbers = [], [], []
    real = grouped_attention.attend_side_by_side
    monkeypatch.setattr(
        "latentrag.generator.shared_context.attend_side_by_side", lambda *a, **b: calls.append(1) or real(*a, **b)
    )
    for used in (True, False):
        if not used:
            monkeypatch.setattr("latentrag.generator.shared_context.stands_in", lambda *_: False)
        plain = load_generator(tmp_path)
        generator = CausalGenerator(plain.model, plain.tokenizer, lora=Lora(rank=2, alpha=4, scope=scope))
        generator.log_p_theta(generator.prepare(x, passages), generator.targets(y)).sum().backward()
        ways.append([weight.grad for weight in dict(generator.named_parameters()).values() if weight.grad is not None])
        numbers.append(len(calls))
    assert numbers[0] == numbers[1] > 0
    assert len(ways[0]) == len(ways[1]) > 0
    for ours, theirs in zip(*ways, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
