"""Passages that come with questions by their ids, read in a memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from latentrag.errors import DataError

if TYPE_CHECKING:
    from latentrag.protocols import Memory
    from latentrag.training.data import Example
    from latentrag.types import Passage


def with_texts(examples: Sequence[Example], memory: Memory) -> tuple[Example, ...]:
    """The examples with the passages that their ids name; an id of a document stands for all of its passages.

    Raises: DataError for an id that the memory does not have.
    """
    wanted = {name for example in examples for name in example.given_ids}
    found: dict[str, list[Passage]] = {name: [] for name in wanted}
    for passage in memory.passages():
        parts = passage.id.split("#")
        for name in ("#".join(parts[:number]) for number in range(1, len(parts) + 1)):
            if name in found:
                found[name].append(passage)
    for example in examples:
        missing = next((name for name in example.given_ids if not found[name]), None)
        if missing is not None:
            raise DataError(f"example {example.id}: the memory has no passage {missing}; name the memory of these ids")
    return tuple(
        replace(example, given=tuple(dict.fromkeys(z for name in example.given_ids for z in found[name])))
        for example in examples
    )
