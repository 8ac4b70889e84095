"""New memories, whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from latentrag.errors import MemoryStoreError
from latentrag.memory.memory import Memory
from latentrag.types import Passage

if TYPE_CHECKING:
    from latentrag.protocols import PassageEncoder


def is_free(path: Path) -> bool:
    """Whether a memory can be built there: nothing is, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def build(path: Path, passages: Iterable[Passage], encoder: PassageEncoder, *, progress: bool = False) -> Memory:
    """A new memory with these passages, which appears at ``path`` when it is complete and not before.

    Raises: MemoryStoreError if something is there already or the place cannot be written; else as ``Memory.add``.
    """
    if not is_free(path):
        raise MemoryStoreError(f"{path} exists already; open it, or choose a path that is free")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
            new = Path(scratch) / path.name
            Memory.create(new, encoder).add(passages, encoder, progress=progress)
            if path.exists():
                path.rmdir()  # the empty folder
            new.rename(path)
    except OSError as error:
        raise MemoryStoreError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error
    return Memory.open(path)
