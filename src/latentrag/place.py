"""Where each part of a model computes, and in which number format: settled once, when a model is put together, and then
passed on as a value. Nothing else in the package asks what the machine has."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, get_args

from latentrag.errors import InputError, LatentRagError

if TYPE_CHECKING:
    import torch

ACCELERATORS = ("cuda", "xpu", "mps")
"""torch's names of the accelerators that are supported, best first. ROCm's are called cuda."""

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
            found = _number_format(saved)
            name = found if found in formats(self.device) else "float32"
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the parts of a model compute, each its own. The memory is searched on the CPU."""

    encoder: Place = Place()
    generator: Place = Place()
    memory: Place = Place()

    @classmethod
    def of(
        cls, device: str = "auto", *, encoder_device: str | None = None, number_format: torch.dtype | str = "auto"
    ) -> Self:
        """From options.

        Args:
            device: "cpu", "cuda", "cuda:1", …, or "auto": the best that this machine has; for int8 its CPU.
            encoder_device: where it is another one.
            number_format: of the generator; a name or a dtype.
        Raises: InputError for an unknown format, int8 elsewhere than on a CPU, or a device that is not there.
        """
        known = _number_format(number_format)
        if known is None:
            *others, last = get_args(NumberFormat)
            raise InputError(f"dtype={number_format!r} is unknown; needed {', '.join(others)} or {last}")
        of_encoder = encoder_device or device
        if known == "int8":
            if not (device == "auto" or Place(device).is_cpu):
                raise InputError(f"dtype='int8' is for CPUs, device={device!r} is none; use bfloat16 there")
            device = "cpu"
        return cls(Place(_device(of_encoder)), Place(_device(device), known))


@dataclass(frozen=True, slots=True)
class Device:
    """A device of this machine.

    Attributes:
        name: as options take it: "cpu", "cuda:0", …
        description: what its driver calls it; empty where it says nothing.
        memory_bytes: RAM, or the accelerator's own memory; None: unknown.
        formats: number formats that it computes in at full speed; "auto" keeps to them.
    """

    name: str
    description: str
    memory_bytes: int | None
    formats: tuple[NumberFormat, ...]


def devices() -> tuple[Device, ...]:
    """The CPU and the accelerators of this machine."""
    names = ["cpu", *(f"{kind}:{index}" for kind in ACCELERATORS for index in range(_count(kind)))]
    return tuple(Device(name, *_properties(name), formats(name)) for name in names)


def best_device() -> str:
    """The accelerator of this machine, else its CPU."""
    return next((kind for kind in ACCELERATORS if _count(kind)), "cpu")


def formats(device: str) -> tuple[NumberFormat, ...]:
    """The number formats that a device of this machine computes in at full speed."""
    import torch

    kind = device.partition(":")[0]
    if kind == "cpu":
        return ("float32", "bfloat16", "int8") if computes_bfloat16() else ("float32", "int8")
    bfloat16 = True
    if kind == "cuda":  # older ones emulate it
        bfloat16 = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    elif kind == "xpu":
        bfloat16 = torch.xpu.get_device_properties(device).has_bfloat16_conversions
    elif kind == "mps":
        bfloat16 = torch.backends.mps.is_macos_or_newer(14, 0)
    return ("float32", "float16", "bfloat16") if bfloat16 else ("float32", "float16")


def has_float64(device: str) -> bool:
    """Whether a device of this machine computes in float64 at all."""
    import torch

    kind = device.partition(":")[0]
    return kind != "mps" and (kind != "xpu" or torch.xpu.get_device_properties(device).has_fp64)


def _properties(device: str) -> tuple[str, int | None]:
    """What a device is called, and the bytes of its memory."""
    import torch

    kind = device.partition(":")[0]
    if kind in {"cuda", "xpu"}:
        properties = torch.get_device_module(kind).get_device_properties(device)
        return properties.name, properties.total_memory
    return "", torch.mps.recommended_max_memory() if kind == "mps" else _ram_bytes()


def _ram_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _count(kind: str) -> int:
    import torch

    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0


def computes_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for bfloat16; without them float32 is faster and better."""
    return any(f" {flag}" in _about_cpu() for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def cpu_name() -> str:
    """What this machine's CPU calls itself, or its architecture where the system does not say."""
    lines = _about_cpu().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _about_cpu() -> str:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return ""


def _device(name: str) -> str:
    """Raises: InputError for an unknown name, or a device that is not there."""
    if name == "auto":
        return best_device()
    kind, colon, index = name.partition(":")
    if kind not in {"cpu", *ACCELERATORS} or (colon and not index.isdecimal()):
        known = ", ".join(ACCELERATORS)
        raise InputError(f"device={name!r} is unknown; needed auto, cpu, {known}, or one of several as cuda:1")
    if kind != "cpu" and int(index or 0) >= _count(kind):
        there = ", ".join(device.name for device in devices())
        raise InputError(f"device={name!r} is not there, or torch was installed without it; this machine has {there}")
    return name


def _number_format(value: object) -> NumberFormat | None:
    """A format by its name or as a dtype of torch; None for any other."""
    name = str(value).removeprefix("torch.")
    return next((known for known in get_args(NumberFormat) if known == name), None)


# Forks


def require_unforked(kind: type[LatentRagError]) -> None:
    """To be called before libraries compute or read, by whoever loads, opens or uses something.

    Their threads do not come along into a fork: the first product of matrices that OpenMP shares among threads waits
    for ever there, and Lance waits or crashes.

    Raises: ``kind`` if this process is a fork of one that had called this before.
    """
    first = _first_process()
    if os.getpid() != first:
        raise kind(
            f"process {os.getpid()} is a fork of process {first}, which had loaded a model or opened a memory, and can "
            "use none itself; load it after the fork, or spawn processes instead of forking them"
        )


@cache
def _first_process() -> int:
    """The process that asked first. Its forks are born with the answer; a spawned process is not."""
    return os.getpid()
