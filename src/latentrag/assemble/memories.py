"""Memories by path or name."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from latentrag.assemble.parts import Source
from latentrag.config import resolve_memory

if TYPE_CHECKING:
    from latentrag.memory import LiveMemory, Memory


def live_memory(name: Source | Memory, *, version: int | str | None = None) -> LiveMemory:
    """A memory that can be exchanged while it is asked; otherwise as ``open_memory``."""
    from latentrag.memory import LiveMemory

    return LiveMemory(open_memory(name, version=version))


@overload
def open_memory(name: Source | Memory, *, version: int | str | None = None) -> Memory: ...
@overload
def open_memory(name: Source | Memory | LiveMemory, *, version: int | str | None = None) -> Memory | LiveMemory: ...
def open_memory(name: Source | Memory | LiveMemory, *, version: int | str | None = None) -> Memory | LiveMemory:
    """A memory by path or name ("demo"), to be asked. An open one is returned as it is.

    Args:
        version: as for ``Memory.open``; None: the one that `latentrag index use` has chosen, else the newest.
    Raises: MemoryStoreError if there is none or it has no such version.
    """
    from latentrag.memory import LiveMemory, Memory

    if isinstance(name, Memory | LiveMemory):
        return name if version is None else (name.snapshot() if isinstance(name, LiveMemory) else name).at(version)
    return Memory.open(resolve_memory(name), version="served" if version is None else version)
