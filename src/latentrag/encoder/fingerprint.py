"""A name for what an encoder computes: equal fingerprints, equal vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

    from latentrag.encoder.tokens import TextTokenizer

LENGTH = 32
"""Hexadecimal digits, 128 bits."""

ARCHITECTURE = (
    "model_type",
    "hidden_act",
    "activation",
    "hidden_activation",
    "num_attention_heads",
    "layer_norm_eps",
    "norm_eps",
    "rms_norm_eps",
    "rope_parameters",
    "position_embedding_type",
)
"""Settings that change the vectors without showing in the weights' names and shapes. The whole configuration
would not do: its defaults differ between versions of transformers."""


class Fingerprint:
    """SHA-256 over weights, architecture, tokenizer and settings; computed when asked for, kept until a weight
    is written to.

    Args:
        settings: whatever else decides over a passage's vector (pooling, prompt, length limit), as JSON values.
    """

    def __init__(
        self,
        module: nn.Module,
        config: PretrainedConfig,
        *,
        tokenizer: TextTokenizer,
        settings: Mapping[str, object],
    ) -> None:
        self._module = module
        self._tokenizer = tokenizer
        architecture = {name: getattr(config, name, None) for name in ARCHITECTURE}
        self._settings = json.dumps({"architecture": architecture, **settings}, sort_keys=True)
        self._value: str | None = None
        self._state: tuple[object, ...] = ()

    @property
    def value(self) -> str:
        # torch counts the in-place writes to a tensor, the optimiser's among them.
        state = tuple((p.data_ptr(), p._version, p.dtype) for p in self._module.parameters())  # noqa: SLF001
        if self._value is None or state != self._state:
            self._value, self._state = self._compute(), state
        return self._value

    def _compute(self) -> str:
        digest = hashlib.sha256()
        for part in (self._settings, self._tokenizer.definition):
            digest.update(hashlib.sha256(part.encode()).digest())
        for name, tensor in sorted(self._module.state_dict().items()):
            digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()[:LENGTH]
