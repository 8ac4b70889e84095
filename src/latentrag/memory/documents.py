"""The documents that a memory's passages are parts of, as people name them: a file, an article, a row with an id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

from latentrag.ids import document_of
from latentrag.memory.filtered import FilteredMemory
from latentrag.memory.places import place_of

if TYPE_CHECKING:
    from latentrag.memory.memory import Memory
    from latentrag.types import Passage


@dataclass(slots=True)
class Summary:
    """A document.

    Attributes:
        id: under which ``ids_of`` finds its passages.
        title: of its first passage.
        source: where it comes from, as clients of a server see it.
        num_passages: that the memory has of it.
        is_synced: whether a sync keeps it equal to a file of a folder.
    """

    id: str
    title: str
    source: str
    num_passages: int = 0
    is_synced: bool = False


def document_id(passage_id: str, source: str) -> str:
    """What a passage is a part of: the file, where its id is made of the file's name (``notes.csv:3``), else the
    document."""
    file = place_of(passage_id, source)
    return file if file and passage_id.startswith(f"{file}:") else document_of(passage_id)


def summaries(memory: Memory | FilteredMemory) -> list[Summary]:
    """Every document, sorted by id; of some passages as if there were no others.

    Reads ids, titles and sources of all passages.
    """
    rows: Iterable[tuple[str, str, str, str]]
    if isinstance(memory, FilteredMemory):
        rows = compress(memory.base.table.summary_rows(), memory.mask.tolist())
    else:
        rows = memory.table.summary_rows()
    found: dict[str, Summary] = {}
    for key, title, source, origin in rows:
        name = document_id(key, source)
        if name not in found:
            found[name] = Summary(name, title, place_of(key, source))
        found[name].num_passages += 1
        found[name].is_synced |= bool(origin)
    return sorted(found.values(), key=lambda each: each.id)


def ids_of(memory: Memory | FilteredMemory, document: str) -> list[str]:
    """The ids of a document's passages, but for those that a sync keeps equal to a file; none if there are none."""
    base = memory.base if isinstance(memory, FilteredMemory) else memory
    under = memory.find(base.ids_under(document, True)).values()
    return [each.id for each in under if document_id(each.id, each.source) == document]  # "a:b" is not under "a"


def neighbours(
    memory: Memory | FilteredMemory, passage_id: str, *, number: int = 2
) -> tuple[list[Passage], Passage, list[Passage]] | None:
    """Those of the same document before a passage, the passage, those after it; None if it is not there.

    Args: number: how many on each side, at most.
    """
    passage = memory.find([passage_id]).get(passage_id)
    if passage is None:
        return None
    ((before, after),) = memory.around([passage_id], number)
    return before, passage, after
