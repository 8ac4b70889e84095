"""Where each part of a model computes, and in which number format: settled once, when a model is put together, and then
passed on as a value. Nothing else in the package asks what the machine has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, get_args

from latentrag.errors import InputError

if TYPE_CHECKING:
    import torch

NumberFormat = Literal["auto", "float32", "bfloat16", "float16", "int8"]
"""auto: as the files have the weights, if the device computes in that; int8: linear layers in eight bits, everything
else in float32."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part computes.

    Attributes:
        device: as torch names it: "cpu", "cuda:1", …
        number_format: of the part's weights.
    """

    device: str = "cpu"
    number_format: NumberFormat = "auto"

    @property
    def is_cpu(self) -> bool:
        """Whether it is the processor, whatever accelerators the machine has."""
        return self.device.partition(":")[0] == "cpu"

    @property
    def is_int8(self) -> bool:
        """Whether linear layers compute in eight bits."""
        return self.number_format == "int8"

    def dtype(self, saved: object = None) -> torch.dtype:
        """The dtype of weights here.

        Args:
            saved: the dtype that a checkpoint names, with or without "torch."; None: it names none.
        """
        import torch

        name = self.number_format
        if name == "auto":
            name = _number_format(saved) or "auto"
            if self.is_cpu and not (name == "bfloat16" and computes_bfloat16()):
                name = "float32"
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the parts of a model compute, each its own. The memory is searched on the processor."""

    encoder: Place = Place()
    generator: Place = Place()
    memory: Place = Place()

    @classmethod
    def of(
        cls, device: str = "cpu", *, encoder_device: str | None = None, number_format: torch.dtype | str = "auto"
    ) -> Self:
        """From options.

        Args:
            device: of torch, or "auto": the best that this machine has.
            encoder_device: where it is another one.
            number_format: of the generator; a name or a dtype.
        Raises: InputError for an unknown format, or int8 elsewhere than on a processor.
        """
        known = _number_format(number_format)
        if known is None:
            *others, last = get_args(NumberFormat)
            raise InputError(f"dtype={number_format!r} is unknown; needed {', '.join(others)} or {last}")
        generator = Place(_device(device), known)
        if generator.is_int8 and not generator.is_cpu:
            raise InputError(f"dtype='int8' is for processors, device={device!r} is none; use bfloat16 there")
        return cls(Place(_device(encoder_device or device)), generator)


def best_device() -> str:
    """The accelerator of this machine, else its processor."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def computes_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for bfloat16; without them float32 is faster and better."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return any(f" {flag}" in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def _device(name: str) -> str:
    return best_device() if name == "auto" else name


def _number_format(value: object) -> NumberFormat | None:
    """A format by its name or as a dtype of torch; None for any other."""
    name = str(value).removeprefix("torch.")
    return next((known for known in get_args(NumberFormat) if known == name), None)
