"""Passages that are read with what stands beside them in their document; retrieved and cited is the passage alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from latentrag.errors import InputError
from latentrag.protocols import KnowsNeighbours, Memory
from latentrag.types import Passage, Retrieved


def with_neighbours(retrieved: Retrieved, memory: Memory, num: int) -> Retrieved:
    """The same passages, each with the texts of its neighbours in its document in ``before`` and ``after``.

    Args:
        memory: from which they were retrieved.
        num: neighbours on each side; 0: none.
    Raises: InputError for a memory that does not know which passages stand beside each other.
    """
    if not num:
        return retrieved
    if not isinstance(memory, KnowsNeighbours):
        raise InputError(
            f"a {type(memory).__name__} does not know which passages stand beside each other; leave neighbours out"
        )
    passages = list(dict.fromkeys(z for of_one in retrieved.passages for z in of_one))
    found = memory.around([passage.id for passage in passages], num)
    read = {
        passage.id: replace(passage, before=_joined(before), after=_joined(after))
        for passage, (before, after) in zip(passages, found, strict=True)
    }
    latents = [[tuple(read.get(passage.id, passage) for passage in z) for z in row] for row in retrieved.latents]
    return replace(retrieved, latents=latents)


def _joined(passages: Sequence[Passage]) -> str:
    return " ".join(passage.text for passage in passages)
