"""A passage encoder without a model: the vector is drawn at random from a seed that is the passage's text."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from latentrag import io
from latentrag.memory import Memory
from latentrag.memory.indexes import INDEX_KINDS, building
from latentrag.memory.storage import LocalDisk, WriterLock
from latentrag.types import Passage


class FakePassageEncoder:
    name = "fake"
    max_tokens = 256
    scale = 2.0

    def __init__(self, dimension: int = 8, fingerprint: str = "f1") -> None:
        self.dimension = dimension
        self.fingerprint = fingerprint

    def vector(self, text: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(text.encode(errors="replace")).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal(self.dimension).astype(np.float32)

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.vector(passage.text) for passage in passages]))


@pytest.fixture(autouse=True)
def few_questions(monkeypatch):
    """That recall is measured with while an index is built."""
    monkeypatch.setattr(building, "NUM_QUESTIONS", 20)


@pytest.fixture
def hnsw() -> Iterator[str]:
    """The name of a second kind of index that is stored, for as long as a test lasts."""
    INDEX_KINDS.add("hnsw", "tests.memory.hnsw_index:HNSW")
    yield "hnsw"
    INDEX_KINDS.remove("hnsw")


@pytest.fixture
def make_encoder():
    return FakePassageEncoder


@pytest.fixture
def encoder():
    return FakePassageEncoder()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "memory.lance"


@pytest.fixture
def filled(path, encoder):
    """Twelve passages p0 … p11 at version 2."""
    return Memory.create(path, encoder).add([Passage(f"p{i}", f"text {i}") for i in range(12)], encoder)


@pytest.fixture
def queries():
    """(3, 8) float32."""
    return np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture
def no_locks(monkeypatch):
    """As on a network drive whose locks do not reach the other machines."""
    monkeypatch.setattr(LocalDisk, "lock", lambda disk: nullcontext(WriterLock(None, lambda: None)))


@pytest.fixture
def shown_progress(monkeypatch):
    """What bars were told: description, total, whether it was to be shown, how many more are done."""
    told = []

    class Bar(io.Progress):
        def __init__(self, *about: object) -> None:
            super().__init__()
            self.about = about

        def advance(self, number: int = 1) -> None:
            told.append((*self.about, number))

    @contextmanager
    def progress(description, total, *, wanted):
        yield Bar(description, total, wanted)

    monkeypatch.setattr(io, "progress", progress)
    return told
