"""An accelerator without hardware, "fake:0" and "fake:1": tensors that say they lie there while their values lie on the
processor. They refuse to be mixed with the processor's tensors and with each other's, except where CUDA mixes (a single
number), and like Apple's mps they know no float64.

It stands on what torch calls its Python backend, which is experimental: ``install`` says whether this torch has it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

NAME = "fake"
COUNT = 2

_aten = torch.ops.aten


class FakeTensor(Tensor):
    """Values on the processor (``raw``) that say they are on ``device``."""

    raw: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, device: torch.device) -> FakeTensor:
        if values.dtype is torch.float64:
            raise TypeError("the fake device has no float64")
        made: FakeTensor = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=device,
        )
        made.raw = values
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        operands: list[Tensor] = []
        values = _values(args, operands), _values(kwargs, operands)
        device = _device_of(function, operands)
        if kwargs.get("device") is not None:
            device = torch.device(kwargs["device"])
            values[1]["device"] = torch.device("cpu")
        out = function(*values[0], **values[1])
        written = _written(function)
        if written is not None:
            return kwargs[written] if isinstance(written, str) else args[written]
        return _wrapped(out, torch.device(NAME, device.index or 0)) if device.type == NAME else out

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Any) -> None:
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.raw = new.raw

    def tolist(self) -> Any:
        return self.raw.tolist()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.raw.untyped_storage()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {self.device} tensor to numpy; use Tensor.cpu() first")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FakeTensor({self.raw!r}, device={str(self.device)!r})"


def _values(each: Any, operands: list[Tensor]) -> Any:
    """Arguments with values in place of fake tensors; all tensors are added to the operands."""
    if isinstance(each, Tensor):
        operands.append(each)
        return each.raw if isinstance(each, FakeTensor) else each
    if isinstance(each, list | tuple):
        return type(each)([_values(part, operands) for part in each])
    if isinstance(each, dict):
        return {name: _values(part, operands) for name, part in each.items()}
    return each


def _wrapped(out: Any, device: torch.device) -> Any:
    if isinstance(out, Tensor):
        return FakeTensor(out, device)
    return type(out)(_wrapped(part, device) for part in out) if isinstance(out, list | tuple) else out


@cache
def _written(function: Any) -> str | int | None:
    """The argument, by place or name, that an operation in place writes to and returns."""
    schema = function._schema
    if not schema.returns or schema.returns[0].alias_info is None or not schema.returns[0].alias_info.is_write:
        return None
    arguments = enumerate(schema.arguments)
    found = (each.name if each.kwarg_only else place for place, each in arguments if each.alias_info)
    return next(found)


def _is_stale(each: FakeTensor) -> bool:
    return each.shape != each.raw.shape or each.dtype is not each.raw.dtype


def _device_of(function: Any, operands: list[Tensor]) -> torch.device:
    """Where the operands are. Raises: RuntimeError if they are on several devices."""
    if any(isinstance(each, FakeTensor) and _is_stale(each) for each in operands):
        raise NotImplementedError(f"{function}: an operand was changed in a way that the fake device does not follow")
    if function is _aten.copy_.default:
        return operands[0].device
    places = {each.device for each in operands if each.dim() or isinstance(each, FakeTensor)}
    if len(places) > 1:
        names = sorted(map(str, places))
        raise RuntimeError(f"{function}: expected all tensors to be on the same device, found {names}")
    return places.pop()


@cache
def install() -> bool:
    """Make the devices known to torch, for this process. Returns: whether this torch can have them."""
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
    except ImportError:
        return False
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    kernels = torch.library.Library("aten", "IMPL")
    for name in ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "randperm"):
        kernels.impl(name, _made(name), "PrivateUse1")
    kernels.impl("_copy_from", _copy_from, "PrivateUse1")
    casts = torch.library.Library("_", "IMPL")
    casts.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _KEPT.extend((kernels, casts))
    return True


_KEPT: list[Any] = []


def _made(name: str) -> Any:
    """A factory's kernel. Others come from empty ones, in place."""
    packet, _, overload = name.partition(".")
    kernel = getattr(getattr(_aten, packet), overload or "default")

    def make(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> FakeTensor:
        index = torch.device(device).index or 0
        return FakeTensor(kernel(*args, device="cpu", **kwargs), torch.device(NAME, index))

    return make


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """``torch.tensor(…, device=…)`` comes here."""
    to, of = _values((target, source), [])
    to.copy_(of)
    return target


class _Backend:
    """What torch asks of ``torch.fake``."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def device_count(self) -> int:
        return COUNT

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]
