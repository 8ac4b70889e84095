"""The output layer in chunks against all logits at once: values, gradients, and how much is held."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from latentrag.generator import gold
from latentrag.generator.gold import OutputHead
from latentrag.packed import pack
from tests.toy import Tolerance, grad_of

B, K, T, H, V = 2, 3, 4, 5, 11
# float32, sums of 11 terms: chunks change their order and nothing else.
TOLERANCE: Tolerance = {"rtol": 1e-5, "atol": 1e-6}


def head(*, cap: float | None = None) -> OutputHead:
    """An output layer and what a model's class does to its result."""
    config = SimpleNamespace(final_logit_softcapping=cap)
    config.get_text_config = lambda decoder: config
    linear = nn.Linear(H, V)
    nn.init.normal_(linear.weight)
    nn.init.normal_(linear.bias)
    return OutputHead(SimpleNamespace(get_output_embeddings=lambda: linear, config=config))


def question() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden (B·K, T, H), log_weights (B, K, T), ids (B, T) and a ragged mask (B, T)."""
    weights = torch.log_softmax(torch.randn(B, K, T), dim=1)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    return torch.randn(B * K, T, H), weights, torch.randint(0, V, (B, T)), mask


def naive_mean(of: OutputHead, hidden: Tensor, log_weights: Tensor, mask: Tensor) -> Tensor:
    log_p = torch.log_softmax(of.after(of.linear(hidden)), dim=-1).view(B, K, T, V)
    return (log_weights[..., None] + log_p).logsumexp(dim=1).mean(dim=2).masked_fill(~mask, 0.0)


def naive_gold(of: OutputHead, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    log_p = torch.log_softmax(of.after(of.linear(hidden)), dim=-1)
    return log_p.gather(2, ids[..., None])[..., 0].masked_fill(~mask, 0.0)


@pytest.fixture(params=[1, 4, 1000], ids=lambda rows: f"{rows} rows at a time")
def chunks(request, monkeypatch) -> None:
    """A chunk of a single row, of some, of all; a mean takes at least one position, which is K rows."""
    monkeypatch.setattr(gold, "CHUNK_ELEMENTS", request.param * V)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("what", ["gold", "gold in chunks", "mean"])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_values_and_gradients_equal_those_of_all_logits(what: str, trained: bool, cap: float | None) -> None:
    of = head(cap=cap)
    of.linear.requires_grad_(trained)
    hidden, log_weights, ids, mask = question()
    if what == "gold in chunks":
        of.linear.register_forward_hook(lambda module, inputs, output: output)  # more than a matrix and a bias
    inputs: list[Tensor]
    fast: Callable[..., Tensor]
    slow: Callable[..., Tensor]
    if what != "mean":
        ids, mask = (tensor.repeat_interleave(K, dim=0) for tensor in (ids, mask))
        inputs, fast, slow = [hidden], of.gold_log_probs, naive_gold
        rest = [ids, mask]
    else:
        inputs, fast, slow = [hidden, log_weights], of.mean_log_probs, naive_mean
        rest = [mask]
    for tensor in inputs:
        tensor.requires_grad_()
    found, expected = fast(*inputs, *rest), slow(of, *inputs, *rest)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert found.dtype == torch.float32
    assert (found[~mask] == 0).all()
    from_above = torch.randn_like(found)  # a different number for every row
    learning = [*inputs, *(of.linear.parameters() if trained else [])]
    gradients = torch.autograd.grad(found, learning, from_above)
    for one, two in zip(gradients, torch.autograd.grad(expected, learning, from_above), strict=True):
        torch.testing.assert_close(one, two, **TOLERANCE)
    with torch.no_grad():
        torch.testing.assert_close(fast(*inputs, *rest), expected, **TOLERANCE)


@pytest.mark.parametrize("trained", [False, True])
def test_only_the_weights_learn(trained: bool) -> None:
    """As in query-side training, where no parameter of the generator has a gradient."""
    of = head()
    of.linear.requires_grad_(trained)
    hidden, log_weights, _, mask = question()
    log_weights.requires_grad_()
    (found,) = torch.autograd.grad(of.mean_log_probs(hidden, log_weights, mask).sum(), log_weights)
    (expected,) = torch.autograd.grad(naive_mean(of, hidden, log_weights, mask).sum(), log_weights)
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_nothing_learns() -> None:
    of = head()
    of.linear.requires_grad_(False)
    hidden, log_weights, ids, mask = question()
    assert not of.mean_log_probs(hidden, log_weights, mask).requires_grad
    assert not of.gold_log_probs(hidden[:B], ids, mask).requires_grad


@pytest.mark.parametrize("trained", [False, True])
def test_a_passage_without_weight_adds_nothing(trained: bool) -> None:
    of = head()
    of.linear.requires_grad_(trained)
    hidden, log_weights, _, mask = question()
    log_weights[0, 1] = -torch.inf
    log_weights = log_weights.log_softmax(dim=1).requires_grad_()
    hidden.requires_grad_()
    mean = of.mean_log_probs(hidden, log_weights, mask)
    torch.testing.assert_close(mean, naive_mean(of, hidden, log_weights, mask), **TOLERANCE)
    of_hidden, of_weights = torch.autograd.grad(mean.sum(), [hidden, log_weights])
    assert torch.isfinite(of_hidden).all()
    assert torch.isfinite(of_weights).all()
    assert (of_hidden[1] == 0).all()  # row b·K + k = 1
    assert (of_hidden[[0, 2]] != 0).any()


def test_one_passage_of_full_weight_is_torchs_label_smoothing() -> None:
    of = head()
    hidden, _, ids, mask = question()
    hidden = hidden[:B]
    mean = of.mean_log_probs(hidden, torch.zeros(B, 1, T), mask)
    log_p = of.gold_log_probs(hidden, ids, mask)
    expected = torch.nn.functional.cross_entropy(
        of.linear(hidden)[mask], ids[mask], label_smoothing=0.2, reduction="sum"
    )
    torch.testing.assert_close(-(0.8 * log_p + 0.2 * mean).sum(), expected, **TOLERANCE)


@pytest.mark.parametrize("is_packed", [False, True])
@torch.no_grad()
def test_no_scored_position(is_packed: bool) -> None:
    of = head()
    if is_packed:
        pack(of.linear)
    hidden, log_weights, ids, mask = question()
    nothing = torch.zeros_like(mask)
    assert (of.mean_log_probs(hidden, log_weights, nothing) == 0).all()
    assert (of.gold_log_probs(hidden[:B], ids, nothing) == 0).all()


@pytest.mark.parametrize(("trained", "times"), [(False, 1), (True, 2)])
def test_what_is_held_and_how_often_it_is_computed(trained: bool, times: int, monkeypatch) -> None:
    """One chunk of logits at a time; of a frozen layer computed once, of a trained one twice."""
    monkeypatch.setattr(gold, "CHUNK_ELEMENTS", 2 * K * V)
    of = head()
    of.linear.requires_grad_(trained)
    sizes: list[int] = []
    of.linear.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    hidden, log_weights, ids, mask = question()
    for name in ("mean", "gold"):
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            if name == "mean":
                result = of.mean_log_probs(hidden.requires_grad_(), log_weights.requires_grad_(), mask)
                num_rows = K * int(mask.sum())
            else:
                result = of.gold_log_probs(hidden.requires_grad_()[:B], ids, mask)
                num_rows = int(mask.sum())
        result.sum().backward()
        assert max(sizes) <= gold.CHUNK_ELEMENTS
        assert sum(sizes) == times * num_rows * V
    assert max(kept) < V * K * int(mask.sum())
    assert (of.linear.weight.grad is not None) == trained


def test_half_precision_hidden_states() -> None:
    """bfloat16 in, float32 out; the gradient comes back as what went in."""
    of = head()
    of.linear.requires_grad_(False).bfloat16()
    hidden, log_weights, _, mask = question()
    low = hidden.bfloat16().requires_grad_()
    mean = of.mean_log_probs(low, log_weights, mask)
    assert mean.dtype == torch.float32
    mean.sum().backward()
    assert grad_of(low).dtype == torch.bfloat16
    of.linear.float()
    exact = low.detach().float().requires_grad_()
    expected = naive_mean(of, exact, log_weights, mask)
    expected.sum().backward()
    # Logits of a few units in 8 bits: errors of 2⁻⁷ each, of which the mean over 11 tokens keeps less.
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.05)
    torch.testing.assert_close(grad_of(low).float(), exact.grad, rtol=0.05, atol=0.02)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("at_a_time", [1, 1000])
@torch.no_grad()
def test_packed_weights_give_the_same_without_gradients(cap: float | None, at_a_time: int, monkeypatch) -> None:
    of = head(cap=cap)
    hidden, _, ids, mask = question()
    ids, mask = (tensor.repeat_interleave(K, dim=0) for tensor in (ids, mask))
    expected = of.gold_log_probs(hidden, ids, mask)
    monkeypatch.setattr(gold, "CHUNK_ELEMENTS", at_a_time * V)
    monkeypatch.setattr(gold, "fused_gold_log_probs", None)
    pack(of.linear)
    torch.testing.assert_close(of.gold_log_probs(hidden, ids, mask), expected, **TOLERANCE)


@torch.no_grad()
def test_packed_weights_in_half_precision_and_beside_far_logits(monkeypatch) -> None:
    of = head()
    assert isinstance(of.linear, nn.Linear)
    of.linear.weight.zero_()
    of.linear.bias.zero_()
    of.linear.weight[:3, 0] = torch.tensor([1.0, 0.0, -1.0])
    hidden = torch.zeros(1, 3, of.linear.in_features)
    hidden[0, :, 0] = 300
    ids, mask = torch.tensor([[0, 1, 2]]), torch.ones(1, 3, dtype=torch.bool)
    pack(of.linear)
    multiplies_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for dtype in (torch.float32, torch.bfloat16) if multiplies_bfloat16 else (torch.float32,):
        of.linear.to(dtype)
        monkeypatch.setattr(gold, "fused_gold_log_probs", None)
        found = of.gold_log_probs(hidden.to(dtype), ids, mask)
        torch.testing.assert_close(found, torch.tensor([[0.0, -300.0, -600.0]]))
