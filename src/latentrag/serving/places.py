"""Where passages come from, as far as a client may know it: nothing about the folders of this machine."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from latentrag.types import Answer, Classification

if TYPE_CHECKING:
    from latentrag.types import Passage

_Found = TypeVar("_Found", Answer, Classification)

_SEPARATOR = re.compile(r"[/\\]")
_ABSOLUTE = re.compile(r"\s*(?:[/\\~]|[a-z]:[/\\]|file:)", re.IGNORECASE)
_NOWHERE = {"", ".", "..", "~"}


def place(passage: Passage) -> str:
    """The passage's source without folders that only this machine knows.

    An absolute path, or one that leads upwards, is cut down to its file's name, or to the path within the folder that
    was added, with which the passage's id begins. Addresses and paths within a folder stay.
    """
    source = passage.source
    parts = _SEPARATOR.split(source)
    if not _ABSOLUTE.match(source) and ".." not in parts:
        return source
    kept = [part for part in parts[1:] if part not in _NOWHERE]
    inner = ("/".join(kept[start:]) for start in range(len(kept)))
    return next((path for path in inner if _begins(passage.id, path)), kept[-1] if kept else "")


def _begins(passage_id: str, path: str) -> bool:
    """Whether an id is that of a file, of a row in it (``path:3``), or of a part of either (``path#0``)."""
    return passage_id == path or passage_id.startswith((f"{path}#", f"{path}:"))


def placed(passage: Passage) -> Passage:
    """The passage with its source as ``place`` has it."""
    return replace(passage, source=place(passage))


def all_placed(found: _Found) -> _Found:
    """An answer or a classification with its sources as ``place`` has them."""
    sources = tuple(replace(source, passage=placed(source.passage)) for source in found.sources)
    return replace(found, sources=sources)
