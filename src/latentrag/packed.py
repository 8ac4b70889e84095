"""Linear layers whose weights lie as the processor's kernels read them.

oneDNN multiplies by blocks of a matrix. Where the weights lie row by row, PyTorch has them put into blocks at every
call (bfloat16), which for the few rows of a decoder's step takes longer than the product, or asks a library that is
slower for few rows (float32).
"""

import platform
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

_FEW_ROWS = 8
"""What the blocks are chosen for; they do no worse for many."""


class PackedLinear(nn.Linear):
    """An ``nn.Linear`` that multiplies by a second copy of its weight, in blocks, where no gradients are taken.

    The copy is made at the first such call, and anew after the weight has changed.
    """

    _packed: tuple[object, Tensor] | None = None
    """Which weight, and its copy."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, in). Returns: (…, out)."""
        weight = self.weight
        packed = self._packed
        if packed is not None and packed[0] != _state(weight):
            self._packed = packed = None
        if not self.packs(x):
            return functional.linear(x, weight, self.bias)
        if packed is None:
            blocks = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _FEW_ROWS)  # noqa: SLF001
            self._packed = packed = (_state(weight), blocks)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed[1], self.bias, "none", [], "")  # noqa: SLF001
        return y

    def packs(self, x: Tensor) -> bool:
        """Whether the copy is what x would be multiplied by."""
        return not torch.is_grad_enabled() and _is_packable(x, self.weight)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_packed": None}  # blocks are neither copied nor written


LINEAR = (nn.Linear, PackedLinear)


def pack(model: nn.Module) -> None:
    """Make every linear layer of a model a ``PackedLinear``. On a GPU, and in training, nothing changes.

    For other processors than x86 oneDNN's kernels are others, which were not measured: nothing changes there.
    """
    if not torch.backends.mkldnn.is_available() or platform.machine() not in {"x86_64", "AMD64"}:
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = PackedLinear


def _state(weight: Tensor) -> object:
    """Changes with every change of the weight."""
    return weight.data_ptr(), weight._version, weight.dtype  # noqa: SLF001


def _is_packable(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _multiplies_bfloat16()))
        and x.dim() > 1
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not weight.is_inference()
    )


@cache
def _multiplies_bfloat16() -> bool:
    known: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    return known
