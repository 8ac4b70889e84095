"""What training changes in a model: adapters, and activations that are computed again.

**Adapters**: LoRA (Hu et al. 2021) by peft, for generators that are too large to be trained whole. With scope
"question" the adapter works on the question and the answer only, as activated LoRA does (Greenewald et al. 2025):
passages are read by the model as it was before training. Their keys and values stay what they were, so they can be
cached through training, and every adapter of a model shares them. With scope "all" it works on every token of the
prompt.

**Activations computed again** (gradient checkpointing, Chen et al. 2016): less memory for more time. They are dropped
after the forward pass and computed again for the backward pass, layer by layer. Differs: transformers' own switch works
in train mode only, with dropout, and takes the cache away from the layers. Here the layers are wrapped instead, so that
the mode stays what it is and results stay what they were.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentrag.errors import InputError, ModelError
from latentrag.pretrained import one_line, quiet, resolve

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

# Adapters

Scope = Literal["question", "all"]
MARK = "lora_"
"""What peft's names of an adapter's weights contain, and no weight of the model does."""


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter's settings.

    Attributes:
        rank: of the two factors.
        alpha: the update is scaled by alpha / rank.
        scope: which tokens it works on; encoder–decoders know "all" only.
        layers: names of the linear layers it is put on; none: every one but the output layer.
    """

    rank: int = 16
    alpha: int = 32
    scope: Scope = "question"
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise InputError(f"LoRA of rank {self.rank} and alpha {self.alpha} cannot be; both must be above 0")
        if self.scope not in get_args(Scope):
            raise InputError(f"LoRA's scope={self.scope!r} is unknown; needed one of {', '.join(get_args(Scope))}")


def add_lora(model: PreTrainedModel, lora: Lora, *, seed: int = 0) -> None:
    """Put an adapter, as yet without effect, into the model; from then on only its weights need a gradient.

    Raises: ModelError if peft is not installed or the model has none of the layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError("LoRA needs peft; install latentrag[train]") from error
    targets: list[str] | str = list(lora.layers) or "all-linear"
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0)
    # peft draws from the processor's global generator; what the caller draws afterwards must not depend on the model's
    # size. torch.manual_seed would seed the generators of accelerators too, which fork_rng does not restore here.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sets it right itself
        torch.default_generator.manual_seed(seed)
        try:
            inject_adapter_in_model(settings, model)
        except ValueError as error:
            raise ModelError(f"LoRA cannot be put on {', '.join(lora.layers) or 'this model'}: {error}") from error
    for name, parameter in model.named_parameters():
        adapts = MARK in name
        parameter.requires_grad_(adapts)
        if adapts:
            parameter.data = parameter.data.float()
    for layer in _adapted(model):
        layer.cast_input_dtype_enabled = False
        for factors in (layer.lora_A, layer.lora_B):
            factors.update({name: _InTheInputsDtype(factor) for name, factor in factors.items()})


class _InTheInputsDtype(nn.Module):
    """A factor, float32 for the optimiser, which computes in the model's dtype: half of the time in bfloat16."""

    def __init__(self, factor: nn.Linear) -> None:
        super().__init__()
        self.weight = factor.weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))


def has_lora(model: PreTrainedModel) -> bool:
    """Whether the model has an adapter."""
    return bool(_adapted(model))


def _adapted(model: PreTrainedModel) -> list[Any]:
    """The layers that have an adapter."""
    return [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer")]


@contextmanager
def without_lora(model: PreTrainedModel) -> Iterator[None]:
    """Within: the model as it was before training."""
    layers = [(layer, layer._disable_adapters) for layer in _adapted(model)]  # noqa: SLF001
    try:
        for layer, _ in layers:
            layer._disable_adapters = True  # noqa: SLF001 its public switch forgets which weights are trained
        yield
    finally:
        for layer, was_off in layers:
            layer._disable_adapters = was_off  # noqa: SLF001


def split_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the model under its own names, and the adapter's."""
    own = {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items() if MARK not in name}
    return own, {name: tensor for name, tensor in weights.items() if MARK in name}


@torch.no_grad()
def merge_lora(model: PreTrainedModel) -> None:
    """Add the adapter's update to the weights that it was put on, and take it away. On a model without, nothing."""
    layers = {id(layer): layer for layer in _adapted(model)}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if id(child) in layers:
                base = layers[id(child)].get_base_layer()
                (adapter,) = layers[id(child)].active_adapters
                base.weight.add_(layers[id(child)].get_delta_weight(adapter).to(base.weight.dtype))
                setattr(module, name, base)


def merge_peft(model: PreTrainedModel, source: str | os.PathLike[str]) -> PreTrainedModel:
    """The model with an adapter in PEFT's layout added to its weights.

    Args:
        source: a folder, or a hub id.
    Raises: ModelError if peft is not installed, or for an adapter that is pickled, incomplete or another model's.
    """
    folder = resolve(source)
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} has no adapter_config.json; needed an adapter in PEFT's layout")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} has no adapter_model.safetensors; convert its weights to safetensors")
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError("adapters need peft; install latentrag[train]") from error
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("error", UserWarning)  # peft warns of weights that it does not find
            merged: PreTrainedModel = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
            return merged
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, UserWarning, SafetensorError) as error:
        raise ModelError(f"{folder}: the adapter does not fit this generator ({one_line(error)})") from error


def load_adapter(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Give a model with an adapter that adapter's saved weights. Raises: ModelError if they are another's."""
    wanted = {name: parameter for name, parameter in model.named_parameters() if MARK in name}
    if wanted.keys() != weights.keys() or any(wanted[name].shape != weights[name].shape for name in wanted):
        raise ModelError("the saved LoRA adapter does not fit this model; save the model again")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])


def from_settings(settings: Mapping[str, Any]) -> Lora:
    """Lora from JSON values. Raises: ModelError."""
    try:
        layers: Sequence[str] = settings.get("layers", ())
        return Lora(**{**settings, "layers": tuple(layers)})
    except (TypeError, InputError) as error:
        raise ModelError(f"the saved LoRA settings cannot be used ({error}); save the model again") from error


# Activations computed again


def recompute_activations(model: nn.Module) -> None:
    """Have every layer of a transformers model keep its inputs alone for the backward pass.

    It has an effect where gradients are wanted, and where a layer is given no cache or a ``fixed`` one: a second run
    would add to a cache what the first has added already.

    Raises: ModelError if the model has no layers that transformers marks as fit for it.
    """
    layers = list(repeatable_layers(model))
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no layers that can be computed again; needed for recompute; leave it out"
        )
    for layer in layers:
        wrapped: Any = layer
        wrapped.forward = partial(_forward, layer)


def fixed(cache: Cache) -> Cache:
    """The cache itself, which from now on stays as it is: a layer sees its keys and values and the new ones after
    them, and the new ones are forgotten."""
    layers = cache.layers  # not the cache, which would hold itself and be freed late

    def update(keys: Tensor, values: Tensor, layer: int, *rest: object, **more: object) -> tuple[Tensor, Tensor]:
        if layer >= len(layers):
            return keys, values
        # The copy's tensors are replaced by longer ones; those of the layer itself are not written to.
        both: tuple[Tensor, Tensor] = copy.copy(layers[layer]).update(keys, values, *rest, **more)
        return both

    cache.update = update
    cache.is_fixed = True
    return cache


def repeatable_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost layers that can be computed again."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from repeatable_layers(child)


def _forward(layer: nn.Module, *inputs: object, **named: object) -> object:
    from transformers import Cache

    forward = partial(type(layer).forward, layer, **named)
    caches = [value for value in (*inputs, *named.values()) if isinstance(value, Cache)]
    if torch.is_grad_enabled() and all(getattr(cache, "is_fixed", False) for cache in caches):
        return checkpoint(forward, *inputs, use_reentrant=False)
    return forward(*inputs)
