"""Linear layers whose weights are laid out as the processor's kernels read them.

oneDNN multiplies by blocks of a matrix. Where the weights lie row by row, PyTorch has them put into blocks at every
call (bfloat16), which for the few rows of a decoder's step takes longer than the product, or asks a library that is
slower for few rows (float32).

A packed layer holds a second copy of its weights: up to twice the RAM. LATENTRAG_PACKED_WEIGHTS=0 in the environment
turns packing off.
"""

import ctypes
import mmap
import os
import platform
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

SWITCH = "LATENTRAG_PACKED_WEIGHTS"
"""The environment's variable that turns packing off: 0."""

_FEW_ROWS = 8
"""What the blocks are chosen for; they do no worse for many."""

_PAGEOUT = 21
"""MADV_PAGEOUT of Linux 5.4: write back what is not on disk yet, then take the pages back."""


class _Packed:
    """A weight in blocks, as it was."""

    __slots__ = ("_version", "_weight", "blocks")

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.detach()  # held, lest another takes its place in memory
        self._version = weight._version  # noqa: SLF001
        self.blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(self._weight, _FEW_ROWS)  # noqa: SLF001
        if self._version == 0:  # as it was loaded
            _page_out(self._weight)

    def is_of(self, weight: Tensor) -> bool:
        """Whether it is that weight still, unchanged."""
        return (
            not weight.is_inference()
            and weight.data_ptr() == self._weight.data_ptr()
            and weight.dtype == self._weight.dtype
            and weight._version == self._version  # noqa: SLF001
        )


class PackedLinear(nn.Linear):
    """An ``nn.Linear`` that multiplies by a second copy of its weight, in blocks, where no gradients are taken.

    The copy is made at the first such call, and anew after the weight has changed: itself, or in place. Torch does not
    tell of changes in place through ``weight.data``. A call that takes gradients frees the copy.

    Once it is copied, a weight that is mapped from a file leaves the memory (Linux). It is read again when it is used.
    """

    _packed: _Packed | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, in). Returns: (…, out)."""
        weight = self.weight
        packed = self._packed
        if packed is not None and (torch.is_grad_enabled() or not packed.is_of(weight)):
            self._packed = packed = None  # in training the memory is needed for other things
        if not self.packs(x):
            return functional.linear(x, weight, self.bias)
        if packed is None:
            self._packed = packed = _Packed(weight)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed.blocks, self.bias, "none", [], "")  # noqa: SLF001
        return y

    def packs(self, x: Tensor) -> bool:
        """Whether the copy is what x would be multiplied by."""
        return not torch.is_grad_enabled() and _is_packable(x, self.weight)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_packed": None}  # blocks are neither copied nor written


LINEAR = (nn.Linear, PackedLinear)


def pack(model: nn.Module) -> None:
    """Make every linear layer of a model a ``PackedLinear``. On a GPU, and where gradients are taken, nothing changes.

    Nothing changes on other processors than x86 either, whose kernels were not measured, nor with ``SWITCH`` set to 0.
    """
    is_x86 = platform.machine() in {"x86_64", "AMD64"}
    if not (is_x86 and torch.backends.mkldnn.is_available()) or os.environ.get(SWITCH) == "0":
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = PackedLinear


def packed_bytes(model: nn.Module) -> int:
    """RAM that the second copies take once a model has computed: 0 where nothing is packed."""
    layers = (module for module in model.modules() if isinstance(module, PackedLinear))
    probes = ((layer.weight, layer.weight.detach()[:1]) for layer in layers)
    with torch.no_grad():
        return sum(weight.nbytes for weight, probe in probes if _is_packable(probe, weight))


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


def _page_out(weight: Tensor) -> None:
    """Take a weight's pages out of memory if a file has them too."""
    page = mmap.PAGESIZE
    first = -(-weight.data_ptr() // page) * page
    end = (weight.data_ptr() + weight.nbytes) // page * page  # pages at the edges are its neighbours' too
    if weight.is_contiguous() and first < end and _is_of_a_file(first, end):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _PAGEOUT)  # it may refuse


def _is_of_a_file(first: int, end: int) -> bool:
    """Whether these addresses are mapped from one file, privately. What was found out before is asked first: a model
    has a hundred weights in one file, and reading the list of all mappings takes as long as packing one."""
    if not sys.platform.startswith("linux"):
        return False
    return _is_within(first, end, _known_mappings) or _is_within(first, end, _look_for_mappings())


_known_mappings: list[tuple[int, int]] = []


def _is_within(first: int, end: int, mappings: list[tuple[int, int]]) -> bool:
    return any(start <= first and end <= stop for start, stop in mappings)


def _look_for_mappings() -> list[tuple[int, int]]:
    """Where files are mapped privately now."""
    try:
        maps = Path("/proc/self/maps").read_text("utf-8", "surrogateescape")
    except OSError:
        return []
    found = []
    for line in maps.splitlines():
        addresses, rights, _offset, _device, inode, *_name = line.split(maxsplit=5)
        if inode != "0" and rights.endswith("p"):
            start, _, stop = addresses.partition("-")
            found.append((int(start, 16), int(stop, 16)))
    _known_mappings[:] = found
    return found
