"""Log-probabilities of gold tokens without the (B, K, T, V) tensor.

Both likelihoods of the paper need one number for each position: the log-probability of the token that is there.
Label smoothing needs one more: the mean over the vocabulary of the marginal's log-probabilities. The model's output
layer is therefore never applied to everything at once. There are two ways: a block of the vocabulary at a time
(``fused_gold``), for gold tokens and an output layer that is a matrix and a bias; and a few positions at a time, for
everything else. With gradients, neither keeps its logits for the backward pass: the gradients of a frozen layer's input
are taken at once, a layer that is trained is applied a second time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from latentrag.errors import ModelError
from latentrag.generator.fused_gold import Columns, fused_gold_log_probs
from latentrag.generator.probe import ERRORS
from latentrag.packed import LINEAR, PackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

CHUNK_ELEMENTS = 1 << 24
"""Logits of a chunk: 64 MiB in float32. With gradients a chunk takes five to seven times that."""
STEP_BLOCK_ELEMENTS = 1 << 20
"""Logits that a decoding step normalises at a time: 4 MiB in float32, which stay in a processor's caches."""


class OutputHead:
    """The output layer of a transformers model: logits = after(linear(hidden)).

    ``run`` calls the model with nothing for the layer to do, and hands out its inputs at all positions. Whatever an
    architecture does to the logits afterwards (BART's bias, soft capping, scaling) is read from its attributes;
    ``agrees`` tells whether that reproduces the model's own logits. Where it does not, ``OwnLogits`` takes its place.

    Args:
        ends: tokens that all end y. They count as one token, the first, whose probability is the sum of theirs.
    Raises: ModelError if the model has no output layer.
    """

    linear: nn.Module

    def __init__(self, model: PreTrainedModel, ends: Sequence[int] = ()) -> None:
        self.model = model
        self.ends = list(ends)
        self.lock = threading.RLock()
        """To be held while the model computes: ``run`` changes its output layer for a moment."""
        self.linear = model.get_output_embeddings()
        if self.linear is None:
            raise ModelError(f"{type(model).__name__} has no output layer; needed a model that generates text")

    @classmethod
    def of(cls, model: PreTrainedModel, ends: Sequence[int], **probe: Tensor) -> OutputHead:
        """The head of this model.

        Args:
            ends: as for the class.
            probe: a small input of the model.
        """
        head = cls(model, ends)
        return head if head.agrees(**probe) else OwnLogits(model, ends)

    def after(self, logits: Tensor, columns: Columns | EllipsisType = ...) -> Tensor:
        """What the model does to its output layer's result. logits: (…, V), or those of the tokens ``columns``."""
        config = self.model.config.get_text_config(decoder=True)
        bias = getattr(self.model, "final_logits_bias", None)
        if bias is not None:
            logits = logits + bias[..., columns].to(logits)
        scale = getattr(config, "logit_scale", None)
        if scale is not None:
            logits = logits * scale
        scaling = getattr(config, "logits_scaling", None)
        if scaling is not None:
            logits = logits / scaling
        cap = getattr(config, "final_logit_softcapping", None)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def run(self, **inputs: object) -> tuple[Tensor, ModelOutput]:
        """Hidden states (R, S, H) that enter the output layer, and the model's output, which has no logits."""
        with self._narrowed() as seen:
            output = self.model(**inputs)
        return seen[0], output

    @contextmanager
    def _narrowed(self) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []

        def narrow(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen.append(arguments[0])
            return (arguments[0][:, :0],)

        handle = self.linear.register_forward_pre_hook(narrow)
        try:
            yield seen
        finally:
            handle.remove()

    @torch.no_grad()
    def agrees(self, **probe: Tensor) -> bool:
        """Whether after(linear(hidden)) equals the model's own logits on a probe, up to its dtype's rounding."""
        own = self.model(**probe).logits.float()
        try:
            hidden, _ = self.run(**probe)
            ours = self.after(self.linear(hidden)).float()
        except ERRORS:  # it cannot do with an output layer that has nothing to do
            return False
        if own.shape != ours.shape:
            return False
        rounding = 64 * torch.finfo(hidden.dtype).eps
        return bool(torch.allclose(own, ours, rtol=rounding, atol=rounding * float(own.abs().max())))

    def next_token_log_probs(self, hidden: Tensor) -> Tensor:
        """log softmax over the vocabulary, (R, V) float32, without gradients. hidden: (R, H)."""
        return self.with_one_end(_log_softmax(self.after(self.linear(hidden))))

    def with_one_end(self, log_p: Tensor) -> Tensor:
        """Log-probabilities (…, V), changed in place: the first end token has the probability of all."""
        if len(self.ends) > 1:
            log_p_end = log_p[..., self.ends].logsumexp(dim=-1)
            log_p[..., self.ends] = float("-inf")
            log_p[..., self.ends[0]] = log_p_end
        return log_p

    def gold_log_probs(self, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """log p(ids) at every scored position.

        Args:
            hidden: (R, T, H) inputs of the output layer.
            ids: (R, T) gold tokens.
            mask: (R, T) bool, True = scored.
        Returns: (R, T) float32 nats, 0 where masked.
        """
        if len(self.ends) > 1:
            ends = mask & (ids == self.ends[0])
            any_end = torch.tensor([self.ends], device=hidden.device).expand(int(ends.sum()), -1)
            of_ends = self._in_chunks(self._gold_of_chunk, self._rows_of_chunk(hidden), hidden[ends], any_end)
            return self._single_gold(hidden, ids, mask & ~ends).masked_scatter(ends, of_ends)
        return self._single_gold(hidden, ids, mask)

    def _single_gold(self, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """``gold_log_probs`` where each token counts for itself."""
        rows, gold, layer = hidden[mask], ids[mask], self.linear
        if _is_plain(layer) and not (isinstance(layer, PackedLinear) and layer.packs(rows)):
            log_probs = fused_gold_log_probs(rows, gold, weight=layer.weight, bias=layer.bias, after=self.after)
        else:
            log_probs = self._in_chunks(self._gold_of_chunk, self._rows_of_chunk(hidden), rows, gold[:, None])
        return torch.zeros(mask.shape, device=hidden.device).masked_scatter(mask, log_probs)

    def mean_log_probs(self, hidden: Tensor, log_weights: Tensor, mask: Tensor) -> Tensor:
        """Mean over the vocabulary of the marginal's log-probabilities, at every scored position.

            mean[b, i] = 1/V Σ_v log Σ_z w_{b,z,i} p_θ(v|x,z,y_<i)

        Args:
            hidden: (B·K, T, H) inputs of the output layer, row b·K + k for question b with passage k.
            log_weights: (B, K, T) nats, log w, normalised over K; −inf for a passage without weight.
            mask: (B, T) bool, True = scored.
        Returns: (B, T) float32 nats, 0 where masked.
        """
        num_questions, num_passages, _ = log_weights.shape
        states = hidden.unflatten(0, (num_questions, num_passages)).transpose(1, 2)[mask]  # (n, K, H)
        weights = log_weights.transpose(1, 2)[mask]  # (n, K)
        size = max(1, self._rows_of_chunk(hidden) // num_passages)
        means = self._in_chunks(self._mean_of_chunk, size, states, weights)
        return torch.zeros(mask.shape, device=hidden.device).masked_scatter(mask, means)

    def _rows_of_chunk(self, hidden: Tensor) -> int:
        weight: Tensor | None = getattr(self.linear, "weight", None)
        return max(1, CHUNK_ELEMENTS // (hidden.shape[-1] if weight is None else len(weight)))

    def _gold_of_chunk(self, hidden: Tensor, gold: Tensor) -> Tensor:
        """As the pass over blocks has it: the gold tokens (n, G), any of which will do, apart from the others, for the
        sake of probabilities near one."""
        logits = self.after(self.linear(hidden)).float()
        gold_logits = logits.gather(1, gold).logsumexp(dim=1)
        hide = logits.scatter if torch.is_grad_enabled() else logits.scatter_
        others = hide(1, gold, -torch.inf).logsumexp(dim=1)
        return -functional.softplus(others - gold_logits)  # (n,)

    def _mean_of_chunk(self, hidden: Tensor, log_weights: Tensor) -> Tensor:
        logits = self.after(self.linear(hidden)).float()  # (n, K, V)
        # log w and the normaliser are numbers of a whole row: added together first, one chunk of logits is saved.
        row = log_weights - logits.logsumexp(dim=2)
        return (logits + row[:, :, None]).logsumexp(dim=1).mean(dim=1)  # (n,)

    def _in_chunks(self, of_chunk: Callable[..., Tensor], size: int, *inputs: Tensor) -> Tensor:
        """of_chunk(*inputs), float32 (n,), ``size`` of the n rows at a time."""
        chunks = [tuple(tensor[i : i + size] for tensor in inputs) for i in range(0, len(inputs[0]), size)]
        if not chunks:
            return inputs[0].new_zeros(0, dtype=torch.float32)
        if not torch.is_grad_enabled():
            return torch.cat([of_chunk(*chunk) for chunk in chunks])
        if any(parameter.requires_grad for parameter in self.linear.parameters()):
            return torch.cat([checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks])
        return torch.cat([_GradientsAtOnce.apply(of_chunk, *chunk) for chunk in chunks])  # type: ignore[no-untyped-call]


class OwnLogits(OutputHead):
    """For models whose output layer's result is changed in ways that ``OutputHead`` does not know: what it calls hidden
    states are the model's own logits, all of them held."""

    def __init__(self, model: PreTrainedModel, ends: Sequence[int] = ()) -> None:
        super().__init__(model, ends)
        self.linear = nn.Identity()

    def after(self, logits: Tensor, columns: Columns | EllipsisType = ...) -> Tensor:
        return logits[..., columns]

    def run(self, **inputs: object) -> tuple[Tensor, ModelOutput]:
        output = self.model(**inputs)
        return output.logits, output


def _log_softmax(logits: Tensor) -> Tensor:
    """log softmax over the vocabulary, (R, V) float32."""
    if logits.device.type != "cpu":
        return torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    # A few rows at a time, which stay in the processor's caches between the passes over them, and one at least for
    # each thread, as torch divides them.
    log_p = torch.empty(logits.shape, dtype=torch.float32)
    size = max(torch.get_num_threads(), STEP_BLOCK_ELEMENTS // logits.shape[1])
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        torch.log_softmax(logits[rows].float(), dim=-1, out=log_p[rows])
    return log_p


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the layer is hidden Wᵀ + b and nothing else: no adapter, no quantised weights, no hook."""
    hooks = len(layer._forward_hooks) + len(layer._forward_pre_hooks)  # noqa: SLF001  (torch has no other way to ask)
    return type(layer) in LINEAR and not hooks


class _GradientsAtOnce(torch.autograd.Function):
    """of_chunk(*inputs) (n,), its gradients taken in the forward pass.

    Row r of the result depends on row r of the inputs alone, so the gradient that comes from above only scales what
    is known already, and no logit is computed twice. Parameters that of_chunk uses get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, of_chunk: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.learns = ctx.needs_input_grad[1:]
        if not any(ctx.learns):
            return of_chunk(*inputs)
        own = [tensor.detach().requires_grad_(learns) for tensor, learns in zip(inputs, ctx.learns, strict=True)]
        with torch.enable_grad():
            values = of_chunk(*own)
        learning = [tensor for tensor in own if tensor.requires_grad]
        ctx.save_for_backward(*torch.autograd.grad(values, learning, torch.ones_like(values)))
        return values.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, from_above: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        return None, *(_scaled(next(saved), from_above) if learns else None for learns in ctx.learns)


def _scaled(gradient: Tensor, from_above: Tensor) -> Tensor:
    """Every row of gradient (n, …) times its number in from_above (n,)."""
    factor = from_above.view(-1, *[1] * (gradient.dim() - 1))
    return (gradient * factor).to(gradient.dtype)
