"""What ids of passages are made of: a document's id, and for a part of it 48 bits over its text.

docs/adr/0029-ids-and-updates.md says what an id means.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TypeAlias

IdsUnder: TypeAlias = Callable[[str, bool], Sequence[str]]
"""(name, itself) → the ids, sorted, of what is under a document's id or a file's name: ``name#…``, ``name:…``, and with
``itself`` ``name``."""

_PART = re.compile(r"#(?:\d+|[0-9a-f]{12})\Z")


def id_of_part(document_id: str, text: str, number: int = 0) -> str:
    """The id of a passage that is not the whole document. Args: number: of those with the same text, from 0."""
    told_apart = f"{number}\0{text}" if number else text
    return f"{document_id}#{blake2b(told_apart.encode('utf-8', 'surrogatepass'), digest_size=6).hexdigest()}"


def document_of(passage_id: str) -> str:
    """The id of the document that a passage is a part of; its own id if it is a whole document.

    A part's id ends with "#" and a hash of its text, or in memories of earlier versions its number.
    """
    return _PART.sub("", passage_id)


def is_of(passage_id: str, document_id: str) -> bool:
    """Whether the passage is the document or a part of it."""
    return document_id in (passage_id, document_of(passage_id))


def names_over(passage_id: str) -> set[str]:
    """The names under which a passage can be looked up: its document's id and its file's name, if its id has them."""
    of_file = passage_id.find(":", passage_id.rfind("/") + 1)
    names = {document_of(passage_id), passage_id[:of_file] if of_file > 0 else passage_id}
    return names - {passage_id}


def ids_among(sorted_ids: Sequence[str]) -> IdsUnder:
    """Those of sorted ids."""

    def under(name: str, itself: bool) -> Sequence[str]:
        found = []
        for start in (f"{name}#", f"{name}:"):
            place = bisect_left(sorted_ids, start)
            while place < len(sorted_ids) and sorted_ids[place].startswith(start):
                found.append(sorted_ids[place])
                place += 1
        place = bisect_left(sorted_ids, name)
        if itself and place < len(sorted_ids) and sorted_ids[place] == name:
            found.append(name)
        return sorted(found)

    return under
