"""Memories by address."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast, overload

from latentrag.addresses import MEMORIES, memory_path, opener
from latentrag.assemble.parts import Source
from latentrag.errors import InputError

if TYPE_CHECKING:
    from latentrag import protocols
    from latentrag.conditions import Where
    from latentrag.memory import LiveMemory, Memory, ServedMemory
    from latentrag.memory.object_path import ObjectPath


def memory_at(address: Source | protocols.Memory, *, version: int | str | None = None) -> protocols.Memory:
    """A memory of any kind, to be asked: by path, name or scheme (see ``addresses.MEMORIES``), or an open one.

    Args:
        version: as for ``open_memory``.
    Raises: MemoryStoreError if there is none or it has no such version.
    """
    from latentrag.memory import LiveMemory, Memory

    opens = opener(address, MEMORIES)
    if opens is not None:
        opened: protocols.Memory = opens(address, version=version)
        return opened
    if isinstance(address, str | os.PathLike | Memory | LiveMemory):
        return open_memory(address, version=version)
    if version is not None:
        raise InputError(f"version={version!r} of a {type(address).__name__} that is open; open it at that version")
    return address


def some_of(memory: protocols.Memory, where: Where) -> protocols.Memory:
    """The passages of a memory that satisfy a condition, as a memory.

    Raises: as ``model.filtered``; InputError if no passage does.
    """
    from latentrag.model import filtered
    from latentrag.protocols import is_filtered

    found = filtered(memory, where)
    if is_filtered(found):
        found.require_some()
    return found


def served_memory(address: Source, *, version: int | str | None = None) -> ServedMemory:
    """A memory that a server can answer from, since it can be exchanged meanwhile; otherwise as ``memory_at``.

    Raises: as ``memory_at``; InputError for one that cannot be exchanged.
    """
    opens = opener(address, MEMORIES)
    if opens is None:
        return live_memory(address, version=version)
    opened: Any = opens(address, version=version)
    if hasattr(opened, "use"):
        return cast("ServedMemory", opened)
    if version is None:
        raise InputError(f"{address} cannot be exchanged while it is asked, so it cannot be served")
    raise InputError(
        f"{address} at version {version} cannot be served, since all servers answer from the version that it has "
        "chosen; leave --as-of out, a request may name a version"
    )


def live_memory(name: Source | Memory, *, version: int | str | None = None) -> LiveMemory:
    """A memory in a folder or an object store that can be exchanged while it is asked; otherwise as ``open_memory``."""
    from latentrag.memory import LiveMemory

    return LiveMemory(open_memory(name, version=version))


@overload
def open_memory(name: Source | ObjectPath | Memory, *, version: int | str | None = None) -> Memory: ...
@overload
def open_memory(
    name: Source | ObjectPath | Memory | LiveMemory, *, version: int | str | None = None
) -> Memory | LiveMemory: ...
def open_memory(
    name: Source | ObjectPath | Memory | LiveMemory, *, version: int | str | None = None
) -> Memory | LiveMemory:
    """A memory in a folder or an object store, by path or name ("demo"). An open one is returned as it is.

    Args:
        version: as for ``Memory.open``; None: the one that `latentrag index use` has chosen, else the newest.
    Raises: MemoryStoreError if there is none or it has no such version.
    """
    from latentrag.memory import LiveMemory, Memory

    if isinstance(name, Memory | LiveMemory):
        return name if version is None else (name.snapshot() if isinstance(name, LiveMemory) else name).at(version)
    return Memory.open(memory_path(name), version="served" if version is None else version)
