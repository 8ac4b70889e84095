"""Passages that come with questions by their ids, read in a memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from latentrag.errors import DataError
from latentrag.training.rows import described

if TYPE_CHECKING:
    from latentrag.protocols import Memory
    from latentrag.training.data import Example
    from latentrag.types import Passage


def with_texts(
    examples: Sequence[Example],
    memory: Memory,
    *,
    name: object,
    skip_bad: bool,
    say: Callable[[str], None],
) -> tuple[Example, ...]:
    """The examples with the passages that their ids name; an id of a document stands for all of its passages.

    Args:
        name: of their file, for messages.
        skip_bad: leave out examples with an id that the memory does not have.
        say: gets a line about those that are left out.
    Raises: DataError for an id that the memory does not have; also if no example is left.
    """
    wanted = {each for example in examples for each in example.given_ids}
    found: dict[str, list[Passage]] = {each: [] for each in wanted}
    for passage in memory.passages():
        parts = passage.id.split("#")
        for each in ("#".join(parts[:number]) for number in range(1, len(parts) + 1)):
            if each in found:
                found[each].append(passage)
    kept: list[Example] = []
    bad: list[str] = []
    for example in examples:
        missing = next((each for each in example.given_ids if not found[each]), None)
        if missing is None:
            given = dict.fromkeys(z for each in example.given_ids for z in found[each])
            kept.append(replace(example, given=tuple(given)))
        else:
            bad.append(f"{example.id}: the memory has no passage {missing}")
    if bad and not (skip_bad and kept):
        remedy = "" if skip_bad else " or pass --skip-bad"
        raise DataError(f"example {bad[0]}; name the memory of these ids{remedy}")
    if bad:
        say(f"warning: {name}: {described(bad, examples)} cannot be used as they are; they are left out")
    return tuple(kept)
