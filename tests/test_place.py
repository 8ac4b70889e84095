"""Where parts compute, and in which number format: one value, which follows the device that is used."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from latentrag import place as place_module
from latentrag.assemble import load
from latentrag.errors import InputError
from latentrag.place import Place, Places, devices
from tests import tiny
from tests.toy import ToyRetriever

SOURCE = Path(__file__).parent.parent / "src" / "latentrag"


@pytest.mark.parametrize(
    ("place", "saved", "expected"),
    [
        (Place("cpu"), None, torch.float32),
        (Place("cpu"), "float16", torch.float32),
        (Place("cpu"), "bfloat16", torch.float32),
        (Place("cuda:1"), "bfloat16", torch.bfloat16),
        (Place("cuda"), "torch.float16", torch.float16),
        (Place("cuda"), None, torch.float32),
        (Place("cuda:7"), "bfloat16", torch.float32),
        (Place("cuda:7"), "float16", torch.float16),
        (Place("mps"), "bfloat16", torch.float32),
        (Place("mps"), "float64", torch.float32),
        (Place("cpu", "bfloat16"), "float32", torch.bfloat16),
        (Place("cpu", "int8"), "bfloat16", torch.float32),
    ],
)
def test_the_number_format_follows_the_device_that_is_used(place, saved, expected, monkeypatch) -> None:
    monkeypatch.setattr(place_module, "computes_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if device != "cuda:7" else (7, 5))
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major < 14)
    assert place.dtype(saved) == expected


def test_a_processor_that_computes_in_bfloat16_does(monkeypatch) -> None:
    monkeypatch.setattr(place_module, "computes_bfloat16", lambda: True)
    assert Place().dtype("bfloat16") == torch.bfloat16
    assert Place().dtype("float16") == torch.float32


@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_gpu_that_is_not_used_changes_nothing(has_gpu, pair, filled, monkeypatch) -> None:
    """A checkpoint in half precision was computed in it on the CPU of a machine that has a GPU."""
    import json

    config = pair[1] / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float16"}))
    monkeypatch.setattr(place_module, "_count", lambda kind: int(has_gpu))
    assert tiny.causal_of(load(pair, memory=filled, device="cpu")).model.dtype == torch.float32


def test_places_from_options(monkeypatch) -> None:
    machine(monkeypatch, cuda=2)
    assert Places.of("cpu") == Places()
    assert Places.of("cuda:1", number_format=torch.bfloat16) == Places(Place("cuda:1"), Place("cuda:1", "bfloat16"))
    assert Places.of("cuda", encoder_device="cpu") == Places(Place("cpu"), Place("cuda"))
    assert Places.of() == Places(Place("cuda"), Place("cuda"))
    assert Places.of(number_format="int8") == Places(Place("cuda"), Place("cpu", "int8"))
    with pytest.raises(InputError, match="dtype='int4' is unknown; needed auto, .*float16 or int8"):
        Places.of(number_format="int4")
    with pytest.raises(InputError, match="device='cuda' is none; use bfloat16"):
        Places.of("cuda", number_format="int8")


def machine(monkeypatch: pytest.MonkeyPatch, **counts: int) -> None:
    """A machine with so many accelerators of each kind."""
    monkeypatch.setattr(place_module, "_count", lambda kind: counts.get(kind, 0))
    monkeypatch.setattr(place_module, "_properties", lambda device: ("", 8 << 30))
    monkeypatch.setattr(place_module, "formats", lambda device: ("float32",))


@pytest.mark.parametrize(
    ("counts", "best"),
    [({}, "cpu"), ({"mps": 1}, "mps"), ({"xpu": 2}, "xpu"), ({"xpu": 1, "cuda": 1, "mps": 1}, "cuda")],
)
def test_auto_takes_the_best_device(counts, best, monkeypatch) -> None:
    machine(monkeypatch, **counts)
    assert Places.of("auto", encoder_device="auto") == Places(Place(best), Place(best))
    names = ["cpu", *(f"{kind}:{i}" for kind in ("cuda", "xpu", "mps") for i in range(counts.get(kind, 0)))]
    assert [device.name for device in devices()] == names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "device='gpu' is unknown; needed auto, cpu, cuda, xpu, mps, or one of several as cuda:1"),
        ("cuda:x", "device='cuda:x' is unknown"),
        ("cuda:", "device='cuda:' is unknown"),
        ("meta", "device='meta' is unknown"),
        ("cuda:2", "device='cuda:2' is not there, .*; this machine has cpu, cuda:0, cuda:1"),
        ("mps", "device='mps' is not there, .*; this machine has cpu, cuda:0, cuda:1"),
    ],
)
def test_a_device_that_is_not_there(name, message, monkeypatch) -> None:
    machine(monkeypatch, cuda=2)
    for options in ({"device": name}, {"device": "cpu", "encoder_device": name}):
        with pytest.raises(InputError, match=message):
            Places.of(**options)


def test_each_part_gets_its_own_place(pair, filled, monkeypatch) -> None:
    """A second device and another number format; who is moved where is noted and not done."""
    moved: list[tuple[str, str, torch.dtype]] = []
    to = torch.nn.Module.to

    def watched(self: torch.nn.Module, device: Any) -> torch.nn.Module:
        moved.append((type(self).__name__, str(device), next(self.parameters()).dtype))
        return self  # the test's own machine has one device

    monkeypatch.setattr(torch.nn.Module, "to", watched)
    machine(monkeypatch, cuda=2, xpu=1)
    load(pair, memory=filled, device="cuda:1", encoder_device="xpu", dtype="bfloat16")
    assert moved == [("SentenceModule", "xpu", torch.float32), ("LlamaForCausalLM", "cuda:1", torch.bfloat16)]
    monkeypatch.setattr(torch.nn.Module, "to", to)
    bm25: Any = load(pair, memory=filled, retriever="bm25", device="cpu").retriever
    assert bm25.retrieve(["paris"], 2).logits.device == torch.device("cpu")


def test_encoder_and_generator_on_different_devices_answer(pair, filled) -> None:
    """log p_η goes where the generator is, whatever way asks."""
    rag = load(pair, memory=filled, k=3)
    expected = [rag.answer("paris ?", max_tokens=3), rag.score("paris ?", "rome"), rag.classify("paris ?", ["a", "b"])]

    class Elsewhere(ToyRetriever):
        """Logits on another device: tensors that can do nothing but be moved."""

        def __init__(self, retriever: Any) -> None:
            self.retriever = retriever

        def retrieve(self, x: Any, k: int) -> Any:
            retrieved = self.retriever.retrieve(x, k)
            return type(retrieved)(retrieved.latents, {"dense": Distant(retrieved.logits)}, retrieved.version)

    class Distant:
        def __init__(self, values: torch.Tensor) -> None:
            self.values = values

        def to(self, device: Any) -> torch.Tensor:
            assert device == rag.generator.device
            return self.values

        def detach(self) -> "Distant":
            return self

    apart: Any = type(rag)(Elsewhere(rag.retriever), rag.generator, k=3)
    found = [
        apart.answer("paris ?", max_tokens=3),
        apart.score("paris ?", "rome"),
        apart.classify("paris ?", ["a", "b"]),
    ]
    assert found == expected


def test_nobody_else_asks_what_the_machine_has() -> None:
    asks = re.compile(r"torch\.(cuda|mps|xpu|accelerator)\b|\.is_cuda|/proc/cpuinfo")
    files = [path for path in sorted(SOURCE.rglob("*.py")) if asks.search(path.read_text("utf-8"))]
    assert [path.name for path in files] == ["place.py"]
