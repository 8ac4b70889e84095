"""Log-probabilities of gold tokens without the (B, K, T, V) tensor.

Both likelihoods of the paper need one number for each position: the log-probability of the token that is there.
The model's output layer is therefore applied to a few positions at a time and, where gradients are wanted, applied
again in the backward pass rather than kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from latentrag.errors import ModelError

CHUNK_ELEMENTS = 1 << 24
"""Logits held at a time: 64 MiB in float32."""


class OutputHead:
    """The output layer of a transformers model: logits = after(linear(hidden)).

    ``run`` calls the model with the layer narrowed to the last position, and hands out the layer's inputs for all
    positions. Whatever an architecture does to the logits afterwards (BART's bias, soft capping, scaling) is read
    from its attributes; ``agrees`` tells whether that reproduces the model's own logits, and where it does not,
    gold tokens are scored from the model's own logits instead.

    Raises: ModelError if the model has no output layer.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.linear = model.get_output_embeddings()
        if self.linear is None:
            raise ModelError(f"{type(model).__name__} has no output layer; needed a model that generates text")

    def after(self, logits: Tensor) -> Tensor:
        """What the model does to its output layer's result."""
        config = self.model.config.get_text_config(decoder=True)
        bias = getattr(self.model, "final_logits_bias", None)
        if bias is not None:
            logits = logits + bias.to(logits)
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
        """Hidden states (R, S, H) that enter the output layer, and the model's output, whose logits are those of
        the last position only."""
        with self._narrowed() as seen:
            output = self.model(**inputs)
        return seen[0], output

    @contextmanager
    def _narrowed(self) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []

        def narrow(_module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen.append(arguments[0])
            return (arguments[0][:, -1:],)

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
        rounding = 64 * torch.finfo(self.linear.weight.dtype).eps
        return bool(torch.allclose(own, ours, rtol=rounding, atol=rounding * float(own.abs().max())))

    def gold_log_probs(self, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """log p(ids) at every scored position.

        Args:
            hidden: (R, T, H) inputs of the output layer.
            ids: (R, T) gold tokens.
            mask: (R, T) bool, True = scored.
        Returns: (R, T) float32 nats, 0 where masked.
        """
        scored, gold = hidden[mask], ids[mask]  # (n, H), (n,)
        size = max(1, CHUNK_ELEMENTS // self.linear.weight.shape[0])
        pieces = []
        for start in range(0, len(gold), size):
            piece = (scored[start : start + size], gold[start : start + size])
            if torch.is_grad_enabled():
                pieces.append(checkpoint(self._piece, *piece, use_reentrant=False))
            else:
                pieces.append(self._piece(*piece))
        log_probs = torch.cat(pieces) if pieces else scored.new_zeros(0, dtype=torch.float32)
        return torch.zeros(mask.shape, device=hidden.device).masked_scatter(mask, log_probs)

    def _piece(self, hidden: Tensor, gold: Tensor) -> Tensor:
        return pick(self.after(self.linear(hidden)), gold)  # (n,)


def pick(logits: Tensor, gold: Tensor) -> Tensor:
    """log softmax(logits) at gold. logits: (..., V), gold: (...). Returns float32 (...)."""
    logits = logits.float()
    return logits.gather(-1, gold[..., None])[..., 0] - logits.logsumexp(dim=-1)
