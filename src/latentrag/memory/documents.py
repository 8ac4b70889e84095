"""The documents that a memory's passages are parts of, as people name them: a file, an article, a row with an id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress, takewhile
from typing import TYPE_CHECKING

from latentrag.ids import document_of
from latentrag.memory.filtered import FilteredMemory, FilteredTable, Version
from latentrag.memory.places import place_of
from latentrag.memory.schema import require_known
from latentrag.types import Passage

if TYPE_CHECKING:
    from latentrag.memory.memory import Memory

DocumentParts = dict[str, list[tuple[Passage, bool]]]
"""Document → its passages that may be known of, in any order, each with whether it is left."""


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


def summaries(memory: Memory | FilteredTable) -> list[Summary]:
    """Every document, sorted by id; of some passages as if there were no others.

    Reads ids, titles and sources of all passages.
    """
    rows: Iterable[tuple[str, str, str, str]]
    if isinstance(memory, FilteredTable):
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


def ids_of(memory: Memory | FilteredTable, document: str) -> list[str]:
    """The ids of a document's passages, but for those that a sync keeps equal to a file; none if there are none."""
    base = memory.base if isinstance(memory, FilteredTable) else memory
    under = memory.find(base.ids_under(document, True)).values()
    return [each.id for each in under if document_id(each.id, each.source) == document]  # "a:b" is not under "a"


def neighbours(
    memory: Version | FilteredMemory, passage_id: str, *, number: int = 2
) -> tuple[list[Passage], Passage, list[Passage]] | None:
    """Those of the same document before a passage, the passage, those after it; None if it is not there.

    Args: number: how many on each side, at most.
    """
    passage = memory.find([passage_id]).get(passage_id)
    if passage is None:
        return None
    ((before, after),) = memory.around([passage_id], number)
    return before, passage, after


def around(ids: Sequence[str], num: int, documents: DocumentParts) -> list[tuple[list[Passage], list[Passage]]]:
    """As ``Memory.around``, of passages that were read.

    Args:
        documents: of all these ids.
    """
    found = []
    for key in ids:
        parts = sorted(documents[document_of(key)], key=lambda part: (part[0].start, part[0].id))
        sources = {passage.id: passage.source for passage, _ in parts}
        require_known([key], sources, "not in the memory")
        parts = [part for part in parts if part[0].source == sources[key]]
        place = next(at for at, (passage, _) in enumerate(parts) if passage.id == key)
        before = _up_to_filtered(parts[max(0, place - num) : place][::-1])
        found.append((before[::-1], _up_to_filtered(parts[place + 1 : place + 1 + num])))
    return found


def _up_to_filtered(parts: Iterable[tuple[Passage, bool]]) -> list[Passage]:
    return [passage for passage, _ in takewhile(lambda part: part[1], parts)]
