"""Where passages come from, as far as a client may know it: nothing about the folders of this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from latentrag.conditions import Condition, condition_of, renamed
from latentrag.memory.columns import PLACE
from latentrag.memory.places import place_of
from latentrag.types import Answer, Classification

if TYPE_CHECKING:
    from latentrag.types import Passage

_Found = TypeVar("_Found", Answer, Classification)


def client_condition(where: str) -> Condition:
    """A client's condition; the source in it is what clients see. Raises: InputError for a text that is none."""
    return renamed(condition_of(where), {"source": PLACE})


def placed(passage: Passage) -> Passage:
    """The passage with its source as ``place_of`` has it."""
    return replace(passage, source=place_of(passage.id, passage.source))


def all_placed(found: _Found) -> _Found:
    """An answer or a classification with its sources as ``place_of`` has them."""
    sources = tuple(replace(source, passage=placed(source.passage)) for source in found.sources)
    return replace(found, sources=sources)
