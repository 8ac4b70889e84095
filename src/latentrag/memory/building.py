"""New memories, whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from latentrag import io
from latentrag.errors import MemoryStoreError
from latentrag.memory.lock import LOCK_FILE, owner, writer_lock
from latentrag.memory.memory import Memory
from latentrag.types import Passage

if TYPE_CHECKING:
    from latentrag.protocols import PassageEncoder


def is_free(path: Path) -> bool:
    """Whether a memory can be built there: nothing is, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextmanager
def new_memory(path: Path) -> Iterator[Path]:
    """A scratch path beside ``path`` to make a memory at; it moves to ``path`` if the block succeeds, or vanishes.

    It is made in a folder beside it. What a killed build left there is removed by the next one of the same path.

    Raises: MemoryStoreError if something is there already or the place cannot be written; else as ``Memory.add``.
    """
    if not is_free(path):
        raise MemoryStoreError(f"{path} exists already; open it, or choose a path that is free")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
            new = Path(scratch) / path.name
            with _as_of(path, new), writer_lock(Path(scratch)):
                yield new
            if path.exists():
                path.rmdir()  # the empty folder
            new.rename(path)
            io.sync_folder(path.parent)
    except OSError as error:
        raise MemoryStoreError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error


@contextmanager
def _as_of(path: Path, new: Path) -> Iterator[None]:
    """Errors about the scratch folder name the place that the user has named."""
    try:
        yield
    except MemoryStoreError as error:
        raise MemoryStoreError(str(error).replace(str(new), str(path)).replace(str(new.parent), str(path))) from error


def build(path: Path, passages: Iterable[Passage], encoder: PassageEncoder, *, progress: bool = False) -> Memory:
    """A new memory with these passages, which appears at ``path`` when it is complete and not before.

    Raises: MemoryStoreError if something is there already or the place cannot be written; else as ``Memory.add``.
    """
    with new_memory(path) as new:
        Memory.create(new, encoder).add(passages, encoder, progress=progress)
    return Memory.open(path)


def create(path: Path, encoder: PassageEncoder) -> Memory:
    """A new memory without passages; killed at any moment, it is there or not. Raises: MemoryStoreError."""
    with new_memory(path) as new:
        Memory.create(new, encoder)
    return Memory.open(path)


def _remove_leftovers(path: Path) -> None:
    """Remove the folders of builds that were killed, which their locks tell from those that go on."""
    for scratch in path.parent.iterdir():
        of_builds = scratch.name.startswith(f".{path.name}-") and scratch.is_dir() and owner(scratch) is not None
        if not of_builds or {each.name for each in scratch.iterdir()} - {LOCK_FILE, path.name}:
            continue
        try:
            with writer_lock(scratch):
                shutil.rmtree(scratch)
        except MemoryStoreError:
            continue  # it is being built at this moment, or on another machine
