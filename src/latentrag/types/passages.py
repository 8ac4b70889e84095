"""Documents, and the passages that they are cut into: z."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

Scalar = str | int | float | bool
"""The value of a passage's field."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text as a reader found it, before it is split.

    ``id`` is unique within its source and stable between readings. ``page_starts`` says where in the text each page
    begins, from page 1 on; empty where there are no pages. ``whole`` marks a text that is a passage already (a row
    of psgs_w100.tsv, say) and must not be split again. ``fields`` go to each of its passages.
    """

    id: str
    text: str
    title: str = ""
    source: str = ""
    page_starts: tuple[int, ...] = ()
    whole: bool = False
    fields: Mapping[str, Scalar] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of the memory. ``text == document.text[start:end]``, offsets in characters.

    ``page`` is the page, counted from 1, on which it begins; None where there are no pages. The field "end_page" says
    where it ends, if that is another one.
    ``origin`` names the file that `index sync` keeps the passage equal to; empty for one that was added by hand.
    ``fields`` are named values that its document states: date, author, language, …
    ``before`` and ``after`` are texts beside it in its document that are read with it; they are no part of it.
    """

    id: str
    text: str
    title: str = ""
    source: str = ""
    start: int = 0
    end: int = 0
    page: int | None = None
    origin: str = ""
    fields: Mapping[str, Scalar] = field(default_factory=dict, hash=False)
    before: str = field(default="", compare=False, repr=False)
    after: str = field(default="", compare=False, repr=False)


KEPT_ATTRIBUTES = tuple(each.name for each in fields(Passage) if each.compare)
"""Those of a passage that a memory keeps, "fields" last."""

Latent = tuple[Passage, ...]
"""z: what the generator reads beside x."""

LatentLists = Sequence[Sequence[Latent]]
"""For each of B questions its K latent values."""

PassageLists = Sequence[Sequence[Passage]]


def singles(passages: PassageLists) -> list[list[Latent]]:
    """Every passage as a latent value of its own, as in the paper."""
    return [[(passage,) for passage in of_question] for of_question in passages]


def no_passages(num_questions: int) -> list[list[Latent]]:
    """One empty latent value for each question: closed book."""
    return [[()] for _ in range(num_questions)]
