"""Less memory for more time: activations are dropped after the forward pass and computed again for the backward pass
(Chen et al. 2016, gradient checkpointing), layer by layer.

Differs: transformers' own switch works in train mode only, with dropout, and takes the cache away from the layers.
Here the layers are wrapped instead, so that the mode stays what it is and results stay what they were.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from latentrag.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn


def recompute_activations(model: nn.Module) -> None:
    """Have every layer of a transformers model keep its inputs alone for the backward pass.

    It has an effect where gradients are wanted, and where a layer is given no cache or a ``fixed`` one: a second run
    would add to a cache what the first has added already.

    Raises: ModelError if the model has no layers that transformers marks as fit for it.
    """
    layers = list(_layers(model))
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no layers that can be computed again; needed for recompute; leave it out"
        )
    for layer in layers:
        wrapped: Any = layer
        wrapped.forward = partial(_forward, layer)


def fixed(cache: Any) -> Any:
    """The cache itself, which from now on stays as it is: a layer sees its keys and values and the new ones after
    them, and the new ones are forgotten."""
    layers = cache.layers  # not the cache, which would hold itself and be freed late

    def update(keys: Tensor, values: Tensor, layer: int, *rest: Any, **more: Any) -> tuple[Tensor, Tensor]:
        if layer >= len(layers):
            return keys, values
        # The copy's tensors are replaced by longer ones; those of the layer itself are not written to.
        found: tuple[Tensor, Tensor] = copy.copy(layers[layer]).update(keys, values, *rest, **more)
        return found

    cache.update = update
    cache.is_fixed = True
    return cache


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost layers that can be computed again."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from _layers(child)


def _forward(layer: nn.Module, *inputs: Any, **named: Any) -> Any:
    from transformers import Cache

    forward = partial(type(layer).forward, layer, **named)
    caches = [value for value in (*inputs, *named.values()) if isinstance(value, Cache)]
    if torch.is_grad_enabled() and all(getattr(cache, "is_fixed", False) for cache in caches):
        return checkpoint(forward, *inputs, use_reentrant=False)
    return forward(*inputs)
