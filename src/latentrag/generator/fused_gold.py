"""Log-probabilities of gold tokens and their gradient in one pass over the vocabulary, a block of it at a time.

The state that is carried from block to block is that of an online softmax (Milakov & Gimelshein 2018): the largest
logit so far, and sums relative to it. Next to Σ exp(z_v) runs Σ exp(z_v) ∂z_v/∂h, so that the gradient with respect
to the hidden states is known when the pass ends and no logit is computed twice. With R rows, z = after(h Wᵀ + b) and
the gold token y,

    log p(y) = −softplus(o − z_y),  o = log Σ_{v≠y} exp(z_v)
    ∂ log p(y) / ∂h = (1 − p(y)) · (∂z_y/∂h − Σ_{v≠y} exp(z_v − o) ∂z_v/∂h)

The gold token is kept apart because 1 − p(y) would otherwise be a difference of two numbers near one, which
half-precision products cannot tell apart.

The gradient of W depends on what comes from above the loss (the posterior of each passage), which is not known in
the forward pass: a layer that is trained has its logits computed a second time, block by block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812  (its name everywhere)

BLOCK_ELEMENTS = 1 << 21
"""Logits held at a time: 8 MiB in float32, so that what is done to them stays in a processor's cache."""
ACCELERATOR_BLOCK_ELEMENTS = 1 << 25
"""The same elsewhere than on a CPU, where every operation has a price of its own: 128 MiB."""

Columns = slice | Tensor
"""Tokens of the vocabulary: from one to another, or these."""

After = Callable[[Tensor, Columns], Tensor]
"""(logits (R, C), columns) → logits (R, C), elementwise; columns says which tokens of the vocabulary the C are."""


def fused_gold_log_probs(hidden: Tensor, gold: Tensor, *, weight: Tensor, bias: Tensor | None, after: After) -> Tensor:
    """log softmax(after(hidden weightᵀ + bias)) at gold, differentiable once in hidden, weight and bias.

    Args:
        hidden: (R, H).
        gold: (R,) int64.
        weight: (V, H) and bias: (V,) of the output layer.
        after: what the model does to the layer's result; holds no parameter that is trained.
    Returns: (R,) float32 nats.
    """
    layer = _Layer(weight, bias, after)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias)):
        log_probs: Tensor = _FusedGoldLogProbs.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, gold, layer
        )
        return log_probs
    with torch.no_grad():
        return _one_pass(layer, hidden, gold, want_gradient=False).log_probs


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """The output layer. weight: (V, H), bias: (V,)."""

    weight: Tensor
    bias: Tensor | None
    after: After

    def blocks(self, num_rows: int) -> Iterator[slice]:
        elements = BLOCK_ELEMENTS if self.weight.device.type == "cpu" else ACCELERATOR_BLOCK_ELEMENTS
        size = max(1, elements // max(1, num_rows))
        vocabulary = self.weight.shape[0]
        for start in range(0, vocabulary, size):
            yield slice(start, min(start + size, vocabulary))

    def logits(self, hidden: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
        """(R, C) the layer's result, a leaf, and what the model makes of it, float32, differentiable in the first."""
        bias = None if self.bias is None else self.bias[columns]
        raw = F.linear(hidden, self.weight[columns], bias).detach().requires_grad_()
        with torch.enable_grad():
            return raw, self.after(raw, columns).float()


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """log_probs, others, gold_logits: (R,) float32, others = log Σ_{v≠y} exp(z_v). gradient: (R, H) float32."""

    log_probs: Tensor
    others: Tensor
    gold_logits: Tensor
    gradient: Tensor | None


def _one_pass(layer: _Layer, hidden: Tensor, gold: Tensor, *, want_gradient: bool) -> _Pass:
    """log p(gold) of every row and, where wanted, its gradient with respect to hidden."""
    column = hidden.new_zeros(len(gold), 1, dtype=torch.float32)
    # The smallest finite number: −inf − −inf would be NaN in a first block of −inf alone.
    top, total = column + torch.finfo(torch.float32).min, column
    gold_raw, gold_logits = column, column
    pull = torch.zeros_like(hidden, dtype=torch.float32) if want_gradient else None  # Σ_{v≠y} exp(z_v − top) ∂z_v/∂h
    for columns in layer.blocks(len(gold)):
        raw, logits = layer.logits(hidden, columns)
        z = logits.detach()
        here, local = _place(gold, columns)
        gold_logits = torch.where(here, z.gather(1, local), gold_logits)
        gold_raw = torch.where(here, raw.detach().gather(1, local), gold_raw)
        old, top = top, torch.maximum(top, z.amax(dim=1, keepdim=True))
        exp = (z - top).exp_()
        exp.scatter_(1, local, exp.gather(1, local).masked_fill_(here, 0.0))
        shrink = (old - top).exp()
        total = total * shrink + exp.sum(dim=1, keepdim=True)
        if pull is not None:
            (slope,) = torch.autograd.grad(logits, raw, exp)
            pull.mul_(shrink).add_(slope @ layer.weight[columns])
    total = total.clamp(min=torch.finfo(torch.float32).tiny)  # a gold token that all others vanish beside
    others = top + total.log()
    log_probs = -F.softplus(others - gold_logits)
    gradient = None
    if pull is not None:
        push = _slope_at(layer, gold_raw, gold) * layer.weight[gold]  # ∂z_y/∂h
        gradient = (others - gold_logits).sigmoid() * (push - pull / total)
    return _Pass(log_probs[:, 0], others[:, 0], gold_logits[:, 0], gradient)


def _place(gold: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """(R, 1) whether the gold token is among the columns, and where (anywhere, if it is not)."""
    here = (gold >= columns.start) & (gold < columns.stop)
    return here[:, None], (gold - columns.start).clamp(0, columns.stop - columns.start - 1)[:, None]


def _slope_at(layer: _Layer, gold_raw: Tensor, gold: Tensor) -> Tensor:
    """(R, 1) ∂z_y/∂(the layer's result)."""
    row = gold_raw.T.requires_grad_()  # (1, R)
    with torch.enable_grad():
        logits = layer.after(row, gold).float()
    (slope,) = torch.autograd.grad(logits, row, torch.ones_like(logits))
    return slope.T


def _autocast_as_now(hidden: Tensor) -> torch.autocast:
    """Mixed precision as it is now, for the backward pass, which runs without."""
    kind = hidden.device.type
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))


class _FusedGoldLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, gold: Tensor, layer: _Layer) -> Tensor:
        made = _one_pass(layer, hidden, gold, want_gradient=ctx.needs_input_grad[0])
        gradient = None if made.gradient is None else made.gradient.to(hidden.dtype)
        ctx.layer_is_trained = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        if ctx.layer_is_trained:
            ctx.after, ctx.autocast = layer.after, _autocast_as_now(hidden)
            ctx.save_for_backward(gradient, hidden, weight, bias, gold, made.others, made.gold_logits)
        else:
            ctx.save_for_backward(gradient)
        return made.log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, from_above: Tensor) -> tuple[Tensor | None, ...]:
        gradient = ctx.saved_tensors[0]
        of_hidden = None if gradient is None else (from_above[:, None] * gradient).to(gradient.dtype)
        of_weight = of_bias = None
        if ctx.layer_is_trained:
            with ctx.autocast:
                of_weight, of_bias = _layer_gradients(ctx, from_above)
        return of_hidden, of_weight, of_bias, None, None


def _layer_gradients(ctx: Any, from_above: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weight and bias: the logits once more, each block's rows written once."""
    _, hidden, weight, bias, gold, others, gold_logits = ctx.saved_tensors
    layer = _Layer(weight, bias, ctx.after)
    of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
    of_bias = torch.empty_like(bias) if ctx.needs_input_grad[2] else None
    log_total = torch.logaddexp(others, gold_logits)[:, None]
    above = from_above.float()[:, None]
    of_gold = above * (others - gold_logits).sigmoid()[:, None]
    for columns in layer.blocks(len(gold)):
        raw, logits = layer.logits(hidden, columns)
        here, local = _place(gold, columns)
        of_logits = (logits.detach() - log_total).exp_().mul_(-above)  # −g p(v)
        of_logits.scatter_(1, local, torch.where(here, of_gold, of_logits.gather(1, local)))
        (of_raw,) = torch.autograd.grad(logits, raw, of_logits)
        if of_weight is not None:
            of_weight[columns] = of_raw.T @ hidden
        if of_bias is not None:
            of_bias[columns] = of_raw.sum(dim=0)
    return of_weight, of_bias
