"""A folder, a memory that is kept equal to it, and an encoder that counts."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from latentrag.memory import Memory
from latentrag.sync import Report, SyncOptions, sync
from latentrag.types import Passage

if TYPE_CHECKING:
    from torch import Tensor


class Vectors:
    """As much of a tensor as the memory uses. A process that is to be killed need not wait for torch."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def detach(self) -> "Vectors":
        return self

    def cpu(self) -> np.ndarray:
        return self.values


class CountingEncoder:
    """The vector is drawn from title and text; ``texts`` has what was encoded."""

    name, fingerprint, dimension, max_tokens, scale = "counting", "c1", 4, 256, 1.0

    def __init__(self) -> None:
        self.texts: list[str] = []

    def vector(self, passage: Passage) -> np.ndarray:
        seed = hashlib.sha256(f"{passage.title}\0{passage.text}".encode()).digest()[:8]
        return np.random.default_rng(int.from_bytes(seed, "big")).standard_normal(4).astype(np.float32)

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> "Tensor":
        self.texts += [passage.text for passage in passages]
        # On purpose: as much of a tensor as the memory uses.
        return Vectors(np.stack([self.vector(passage) for passage in passages]))  # type: ignore[return-value]


class Synced:
    """A folder ``notes`` and the memory that it is synced into."""

    def __init__(self, place: Path) -> None:
        self.folder = place / "notes"
        self.path = place / "m.lance"
        self.encoder = CountingEncoder()
        self.folder.mkdir(parents=True)

    def write(self, name: str, text: str | bytes) -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    def sync(self, folder: Path | None = None, /, **options: Any) -> Report:
        """What was encoded is counted anew each time."""
        self.encoder.texts.clear()
        return sync(self.path, folder or self.folder, lambda: self.encoder, options=SyncOptions(**options))

    @property
    def memory(self) -> Memory:
        return Memory.open(self.path)

    def passages(self) -> dict[str, Passage]:
        """By id, each checked to be there once and to have its own vector."""
        return checked_passages(self.path, self.encoder)

    def texts(self) -> dict[str, str]:
        return {key: passage.text for key, passage in self.passages().items()}


def checked_passages(path: Path, encoder: CountingEncoder) -> dict[str, Passage]:
    memory = Memory.open(path)
    found = list(memory.passages())
    by_id = {passage.id: passage for passage in found}
    assert len(by_id) == len(found) == len(memory)
    vectors = np.concatenate([np.empty((0, 4), np.float16), *(vectors for _, vectors in memory._table.vectors())])
    assert np.array_equal(vectors, np.array([encoder.vector(z) for z in found], np.float16).reshape(-1, 4))
    return by_id


def words_of(passages: Iterable[Passage]) -> dict[str, list[str]]:
    """The words of each file, in their order: what does not depend on how an updated text is cut."""
    words: dict[str, list[str]] = {}
    for passage in sorted(passages, key=lambda passage: (passage.origin, passage.start, passage.id)):
        words.setdefault(passage.origin, []).extend(passage.text.split())
    return words


@pytest.fixture
def synced(tmp_path) -> Synced:
    return Synced(tmp_path)
