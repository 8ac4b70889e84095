"""latentrag_encoder.json: what the layouts of other libraries have no place for."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch

from latentrag.errors import InputError, ModelError
from latentrag.pretrained import read_object, write_json

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["dpr", "sentence"]
Role = Literal["query", "passage", "both"]

FILE_NAME = "latentrag_encoder.json"
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
