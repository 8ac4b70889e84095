"""Log-probabilities of gold tokens without the (B, K, T, V) tensor.

Both likelihoods of the paper need one number for each position: the log-probability of the token that is there.
Label smoothing needs one more: the mean over the vocabulary of the marginal's log-probabilities. The model's output
layer is therefore never applied to everything at once: for gold tokens to a block of the vocabulary at a time
(``fused_gold``), for the mean, and where the layer is more than a matrix and a bias, to a few positions. With
gradients, no part keeps its logits for the backward pass: of a frozen layer the gradients are taken at once, one that
is trained is applied a second time.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from latentrag.errors import ModelError
from latentrag.generator.fused_gold import fused_gold_log_probs
from latentrag.packed import LINEAR, PackedLinear

CHUNK_ELEMENTS = 1 << 24
"""Logits of a chunk: 64 MiB in float32. With gradients it takes five to seven times that while it is worked on."""

PACKED_CHUNK_ELEMENTS = 1 << 23
"""The same where the layer's weights are packed and no gradients are taken."""

_BLOCK_ELEMENTS = 1 << 18


class OutputHead:
    """The output layer of a transformers model: logits = after(linear(hidden)).

    ``run`` calls the model with nothing for the layer to do, and hands out its inputs at all positions. Whatever an
    architecture does to the logits afterwards (BART's bias, soft capping, scaling) is read from its attributes;
    ``agrees`` tells whether that reproduces the model's own logits. Where it does not, ``OwnLogits`` takes its place.

    Raises: ModelError if the model has no output layer.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.lock = threading.RLock()
        """For who uses the model from several threads: ``run`` changes its output layer for a moment."""
        self.linear = model.get_output_embeddings()
        if self.linear is None:
            raise ModelError(f"{type(model).__name__} has no output layer; needed a model that generates text")

    def after(self, logits: Tensor, columns: Any = ...) -> Tensor:
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

    def run(self, **inputs: Any) -> tuple[Tensor, Any]:
        """Hidden states (R, S, H) that enter the output layer, and the model's output, which has no logits."""
        with self._narrowed() as seen:
            output = self.model(**inputs)
        return seen[0], output

    @contextmanager
    def _narrowed(self) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []

        def narrow(_module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen.append(arguments[0])
            return (arguments[0][:, :0],)

        handle = self.linear.register_forward_pre_hook(narrow)
        try:
            yield seen
        finally:
            handle.remove()

    @torch.no_grad()
    def agrees(self, **probe: Any) -> bool:
        """Whether after(linear(hidden)) equals the model's own logits on a probe, up to its dtype's rounding."""
        own = self.model(**probe).logits.float()
        hidden, _ = self.run(**probe)
        ours = self.after(self.linear(hidden)).float()
        if own.shape != ours.shape:
            return False
        rounding = 64 * torch.finfo(hidden.dtype).eps
        return bool(torch.allclose(own, ours, rtol=rounding, atol=rounding * float(own.abs().max())))

    def gold_log_probs(self, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """log p(ids) at every scored position.

        Args:
            hidden: (R, T, H) inputs of the output layer.
            ids: (R, T) gold tokens.
            mask: (R, T) bool, True = scored.
        Returns: (R, T) float32 nats, 0 where masked.
        """
        rows, gold, num_logits = hidden[mask], ids[mask], self.linear.weight.shape[0]
        if not _is_plain(self.linear):
            log_probs = self._in_chunks(self._piece, max(1, CHUNK_ELEMENTS // num_logits), rows, gold)
        elif self._is_faster_row_by_row(rows):
            log_probs = self._in_chunks(self._packed_piece, max(1, PACKED_CHUNK_ELEMENTS // num_logits), rows, gold)
        else:
            log_probs = fused_gold_log_probs(
                rows, gold, weight=self.linear.weight, bias=self.linear.bias, after=self.after
            )
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
        size = max(1, CHUNK_ELEMENTS // (num_passages * self.linear.weight.shape[0]))
        means = self._in_chunks(self._mean_piece, size, states, weights)
        return torch.zeros(mask.shape, device=hidden.device).masked_scatter(mask, means)

    def _is_faster_row_by_row(self, rows: Tensor) -> bool:
        """Whether all logits of a few rows at a time are faster than all rows and a block of the vocabulary."""
        if not (isinstance(self.linear, PackedLinear) and self.linear.packs(rows)):
            return False
        return rows.dtype == torch.float32 or len(rows) * self.linear.out_features <= CHUNK_ELEMENTS

    def _packed_piece(self, hidden: Tensor, gold: Tensor) -> Tensor:
        """As the pass over blocks has it: the gold token apart from the others. Without gradients."""
        logits = self.after(self.linear(hidden)).float()
        gold_logits = logits.gather(1, gold[:, None])
        others = logits.scatter_(1, gold[:, None], -torch.inf).logsumexp(dim=1)
        return -functional.softplus(others - gold_logits[:, 0])  # (n,)

    def _piece(self, hidden: Tensor, gold: Tensor) -> Tensor:
        return pick(self.after(self.linear(hidden)), gold)  # (n,)

    def _mean_piece(self, hidden: Tensor, log_weights: Tensor) -> Tensor:
        logits = self.after(self.linear(hidden)).float()  # (n, K, V)
        # log w and the normaliser are numbers of a whole row: added together first, one chunk of logits is saved.
        row = log_weights - logits.logsumexp(dim=2)
        return (logits + row[:, :, None]).logsumexp(dim=1).mean(dim=1)  # (n,)

    def _in_chunks(self, piece: Callable[..., Tensor], size: int, *inputs: Tensor) -> Tensor:
        """piece(*inputs), float32 (n,), ``size`` of the n rows at a time."""
        chunks = [tuple(tensor[i : i + size] for tensor in inputs) for i in range(0, len(inputs[0]), size)]
        if not chunks:
            return inputs[0].new_zeros(0, dtype=torch.float32)
        if not torch.is_grad_enabled():
            return torch.cat([piece(*chunk) for chunk in chunks])
        if any(parameter.requires_grad for parameter in self.linear.parameters()):
            return torch.cat([checkpoint(piece, *chunk, use_reentrant=False) for chunk in chunks])
        return torch.cat([_GradientsAtOnce.apply(piece, *chunk) for chunk in chunks])  # type: ignore[no-untyped-call]


def _is_plain(layer: nn.Module) -> bool:
    """Whether the layer is hidden Wᵀ + b and nothing else: no adapter, no quantised weights, no hook."""
    hooks = len(layer._forward_hooks) + len(layer._forward_pre_hooks)  # noqa: SLF001  (torch has no other way to ask)
    return type(layer) in LINEAR and not hooks


class _GradientsAtOnce(torch.autograd.Function):
    """piece(*inputs) (n,), its gradients taken in the forward pass.

    Row r of the result depends on row r of the inputs alone, so the gradient that comes from above only scales what
    is known already, and no logit is computed twice. Parameters that piece uses get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, piece: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.learns = ctx.needs_input_grad[1:]
        if not any(ctx.learns):
            return piece(*inputs)
        own = [tensor.detach().requires_grad_(learns) for tensor, learns in zip(inputs, ctx.learns, strict=True)]
        with torch.enable_grad():
            values = piece(*own)
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


class Room:
    """Memory for the log-probabilities of a decoding, the same for each step: new memory comes from the system page by
    page, each of them cleared, which takes longer than what is written there."""

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def like(self, logits: Tensor) -> Tensor:
        """Float32, of that shape, its content undefined; what was there before is lost."""
        if self._flat is None or self._flat.numel() < logits.numel():
            self._flat = torch.empty(logits.numel(), dtype=torch.float32, device=logits.device)
        return self._flat[: logits.numel()].view(logits.shape)


def log_probabilities(logits: Tensor, room: Room) -> Tensor:
    """log softmax over the vocabulary, float32, in that room. logits: (R, V), any dtype. A few rows at a time, which
    stay in the processor's caches between the passes, and one at least for each thread, as torch divides them."""
    log_p = room.like(logits)
    in_blocks = logits.device.type == "cpu"
    size = max(torch.get_num_threads(), _BLOCK_ELEMENTS // logits.shape[1]) if in_blocks else len(logits)
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        torch.log_softmax(logits[rows].float(), dim=-1, out=log_p[rows])
    return log_p


def pick(logits: Tensor, gold: Tensor) -> Tensor:
    """log softmax(logits) at gold. logits: (..., V), gold: (...). Returns float32 (...)."""
    logits = logits.float()
    return logits.gather(-1, gold[..., None])[..., 0] - logits.logsumexp(dim=-1)
