"""What tells encoders apart: a fingerprint of what they compute, and latentrag_encoder.json beside their weights, for
what the layouts of other libraries have no place for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch

from latentrag.errors import InputError, ModelError
from latentrag.pretrained import read_object, write_json

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

Kind = Literal["dpr", "sentence"]
Role = Literal["query", "passage", "both"]

FILE_NAME = "latentrag_encoder.json"
MODULES = "modules.json"
"""What makes a folder one of sentence-transformers."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class Saved:
    """An encoder's settings beside its weights.

    Attributes:
        scale: s in p_η(z|x) ∝ exp(s·d(z)·q(x)).
        passage_fingerprint: of the passage encoder that its queries are paired with.
        dtype: of the weights in memory when they were saved.
    """

    kind: Kind
    role: Role
    name: str
    scale: float
    passage_fingerprint: str | None
    dtype: str

    def write(self, folder: Path) -> None:
        write_json(folder / FILE_NAME, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """None where the folder was not saved by latentrag. Raises: ModelError if the file is damaged."""
        path = folder / FILE_NAME
        if not path.exists():
            return None
        content = read_object(path)
        needed: dict[str, type | tuple[type, ...]] = {
            "kind": str,
            "role": str,
            "name": str,
            "scale": (int, float),
            "passage_fingerprint": (str, type(None)),
            "dtype": str,
        }
        wrong = [key for key, kind in needed.items() if not isinstance(content.get(key), kind)]
        if wrong or content["dtype"] not in DTYPES:
            raise ModelError(f"{path} has no usable {(wrong or ['dtype'])[0]}; save the encoder again")
        return cls(**{key: content[key] for key in needed})


def dtype_name(module: nn.Module) -> str:
    """The name of the weights' dtype, as ``DTYPES`` has it."""
    return str(next(module.parameters()).dtype).removeprefix("torch.")


def check_scale(scale: float) -> float:
    """Raises: InputError if a scale is not positive and finite."""
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"scale={scale} is not a positive number; DPR has 1, normalised vectors usually have 20")
    return float(scale)


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


def architecture_of(config: PretrainedConfig) -> dict[str, object]:
    """The settings named in ``ARCHITECTURE``."""
    return {name: getattr(config, name, None) for name in ARCHITECTURE}


class Fingerprint:
    """SHA-256 over weights, architecture, tokenizer and settings; computed when asked for, kept until a weight
    is written to.

    Args:
        architecture: of its transformer; see ``architecture_of``.
        definition: of its tokenizer.
        settings: whatever else decides over a passage's vector (pooling, prompt, length limit), as JSON values.
    """

    def __init__(
        self, module: nn.Module, architecture: object, *, definition: str, settings: Mapping[str, object]
    ) -> None:
        self._module = module
        self._definition = definition
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
        for part in (self._settings, self._definition):
            digest.update(hashlib.sha256(part.encode()).digest())
        for name, tensor in sorted(self._module.state_dict().items()):
            digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()[:LENGTH]
