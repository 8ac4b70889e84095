"""Packed linear layers are the same layers, and follow their weights."""

import copy
import os
import platform
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from latentrag.packed import SWITCH, PackedLinear, pack, packed_bytes

pytestmark = pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="packs nothing here")

DTYPES = [torch.float32, torch.bfloat16]


def packed(in_features: int = 48, out_features: int = 33, *, bias: bool = True, dtype=torch.float32) -> PackedLinear:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(in_features, out_features, bias=bias, dtype=dtype))
    pack(model)
    assert type(model[0]) is PackedLinear
    return model[0]


def plain(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, layer.weight, layer.bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (2, 3, 48), (300, 48), (0, 48), (48,)])
@torch.no_grad()
def test_a_packed_layer_is_the_layer(shape, bias, dtype) -> None:
    layer = packed(bias=bias, dtype=dtype)
    rounding = 4 * torch.finfo(dtype).eps
    every_other = torch.randn(*shape[:-1], 96, dtype=dtype)[..., ::2]
    for x in (torch.randn(shape, dtype=dtype), every_other):
        torch.testing.assert_close(layer(x), plain(layer, x), rtol=rounding, atol=rounding)


def test_the_copies_take_as_much_as_the_weights() -> None:
    model = nn.Sequential(packed(), nn.LayerNorm(33), packed(33, 5))
    assert packed_bytes(model) == 4 * (48 * 33 + 33 * 5)
    assert packed_bytes(nn.Linear(4, 3)) == 0


def test_it_can_be_switched_off(monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    model = nn.Sequential(nn.Linear(4, 3))
    pack(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (640, 2048), (1, 1)])
@torch.no_grad()
def test_of_any_size(size) -> None:
    layer, x = packed(*size), torch.randn(9, size[0])
    torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_it_is_packed_once_and_anew_when_the_weight_changes() -> None:
    layer, x = packed(), torch.randn(3, 48)
    layer(x)
    first = layer._packed
    layer(x)
    assert layer._packed is first is not None
    layer.weight.mul_(2)
    torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-5, atol=1e-5)
    assert layer._packed is not first
    layer.weight.data = torch.randn(33, 48)
    torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-5, atol=1e-5)
    layer.to(torch.bfloat16)
    half = x.bfloat16()
    torch.testing.assert_close(layer(half), plain(layer, half), rtol=4 * 2**-8, atol=1e-2)
    layer.weight = nn.Parameter(torch.zeros(33, 48, dtype=torch.bfloat16))
    assert torch.equal(layer(half), layer.bias.expand(3, 33))


@torch.no_grad()
def test_another_weight_in_the_same_place_is_another() -> None:
    layer, x = packed(640, 640), torch.randn(3, 640)
    for _ in range(8):  # memory that was let go is what is given next
        layer(x)
        layer.to(torch.bfloat16).to(torch.float32)
        layer.weight.data = layer.weight.data + 1
        torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_the_layers_own_and_let_the_copy_go(frozen) -> None:
    layer, x = packed(), torch.randn(3, 48, requires_grad=True)
    layer.weight.requires_grad_(not frozen)
    with torch.no_grad():
        layer(x)
    assert layer._packed is not None
    wanted = [x] if frozen else [x, layer.weight]
    found = torch.autograd.grad(layer(x).square().sum(), wanted)
    assert all(map(torch.equal, found, torch.autograd.grad(plain(layer, x).square().sum(), wanted)))
    assert layer._packed is None


@torch.no_grad()
def test_copies_have_their_own() -> None:
    layer, x = packed(), torch.randn(3, 48)
    layer(x)
    other = copy.deepcopy(layer)
    assert other._packed is None
    other.weight.zero_()
    torch.testing.assert_close(layer(x), plain(layer, x), rtol=1e-5, atol=1e-5)
    assert torch.equal(other(x), other.bias.expand(3, 33))


@torch.no_grad()
def test_under_autocast_and_with_another_dtype_it_does_as_ever() -> None:
    layer, x = packed(), torch.randn(3, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain(layer, x))
    assert layer._packed is None
    with pytest.raises(RuntimeError, match="dtype"):
        layer(x.double())


def test_weights_that_cannot_tell_when_they_change_are_left_alone() -> None:
    with torch.inference_mode():
        layer, x = packed(), torch.randn(3, 48)
        assert torch.equal(layer(x), plain(layer, x))
    assert layer._packed is None
    kept = packed()
    with torch.inference_mode():
        kept(x)
    with torch.no_grad():
        torch.testing.assert_close(kept(x), plain(kept, x), rtol=1e-5, atol=1e-5)


def resident(file: Path) -> int:
    """Bytes of the file's mappings that are in memory."""
    found, of_file = 0, False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        name, *rest = line.split(maxsplit=5)
        if name.endswith(":"):
            found += 1024 * int(rest[0]) if of_file and name == "Rss:" else 0
        else:
            of_file = rest[-1] == str(file)
    return found


def on_disk(folder: Path, weight: torch.Tensor) -> Path:
    """A file of it, written out."""
    file = folder / "model.safetensors"
    save_file({"weight": weight}, file)
    with file.open("rb") as written:
        os.fsync(written.fileno())
    return file


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="lets go of nothing here")
@torch.no_grad()
def test_a_weight_mapped_from_a_file_leaves_the_memory_and_comes_back(request) -> None:
    build = request.config.rootpath / "build"
    build.mkdir(exist_ok=True)
    layer, x = packed(700, 1500), torch.randn(3, 700)
    with TemporaryDirectory(dir=build) as folder:  # /tmp may itself be memory
        file = on_disk(Path(folder), torch.randn(1500, 700))
        layer.weight = nn.Parameter(load_file(file)["weight"])
        expected = plain(layer, x)
        assert resident(file) >= layer.weight.nbytes
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-4)
        assert resident(file) <= 3 * 4096
        assert torch.equal(plain(layer, x), expected)
        assert resident(file) >= layer.weight.nbytes // 2


@torch.no_grad()
def test_a_mapped_weight_that_was_changed_keeps_its_change(tmp_path) -> None:
    layer, x = packed(700, 1500), torch.randn(3, 700)
    layer.weight = nn.Parameter(load_file(on_disk(tmp_path, torch.randn(1500, 700)))["weight"])
    layer.weight.data[7] = 2.0  # what torch does not tell of
    expected = plain(layer, x)
    layer(x)
    assert torch.equal(plain(layer, x), expected)
    layer.weight.mul_(2)
    layer(x)
    assert torch.equal(plain(layer, x), functional.linear(x, layer.weight, layer.bias))
    assert (layer.weight[7] == 4.0).all()
