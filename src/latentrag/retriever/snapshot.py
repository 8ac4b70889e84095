"""One version of a memory for as long as a question takes."""

from __future__ import annotations

from typing import Any, TypeVar

M = TypeVar("M")


def snapshot(memory: M) -> M:
    """The memory as it is now: of one that is exchanged while it is searched, what is there at this moment."""
    now: Any = getattr(memory, "snapshot", None)
    found: M = memory if now is None else now()
    return found
