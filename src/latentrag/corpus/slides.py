"""The text of PowerPoint's presentations, slide after slide; a slide is a page."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from posixpath import basename, dirname, join, normpath
from typing import BinaryIO
from zipfile import ZipFile

from latentrag.corpus.notation import raised
from latentrag.corpus.ooxml import events, opened, properties, target, targets
from latentrag.corpus.readers import Ledger, Reader, UnreadableError
from latentrag.corpus.stating import fields_of, title_of
from latentrag.types import Document

_MIN_RAISE = 1000
"""Thousandths of a per cent, as the format has them."""


def pptx(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """One document: the text of the slides, each a page, in order, with tables, diagrams and the speaker's notes behind
    them; a line for each paragraph and row of a table. Charts are counted, and so are comments, and the numbers and
    dates that the program fills in. Title: the one in the file's properties, unless a program made it up, else the
    first slide's, else the file's stem."""
    with opened(file, "pptx", "the older .ppt; save it as .pptx without a password") as archive:
        main = target(archive, "officeDocument") or "ppt/presentation.xml"
        places = _targets(archive, main, "slide")
        order = [event.attributes.get("id", "") for event in events(archive, main) if event.tag == "sldId"]
        slides = [places[key] for key in dict.fromkeys(order) if key in places]
        texts, titles = [], []
        for slide in slides:
            text, title = _slide(archive, slide, ledger)
            parts = [text]
            for kind in ("diagramData", "notesSlide"):
                parts += [_slide(archive, part, ledger)[0] for part in _targets(archive, slide, kind).values()]
            ledger.leave_out("chart", len(_targets(archive, slide, "chart")))
            ledger.leave_out("page of comments", len(_targets(archive, slide, "comments")))
            texts.append("\n".join(filter(None, parts)))
            titles.append(title)
        stated = properties(archive)
    if not any(texts):
        raise UnreadableError(f"no text on its {len(slides)} slides; save them as PDF and run OCR over it")
    yield Document(
        id=name,
        text="\n".join(texts),
        title=title_of(stated.get("title", ""), next(filter(None, titles), ""), name),
        source=ledger.file,
        page_starts=tuple(accumulate((len(text) + 1 for text in texts[:-1]), initial=0)),
        fields=fields_of(stated),
    )


PPTX = Reader(
    pptx,
    suffixes=(".pptx",),
    mime_types=("application/vnd.openxmlformats-officedocument.presentationml.presentation",),
    one_document=True,
)


def _targets(archive: ZipFile, part: str, kind: str) -> dict[str, str]:
    """id → the part of this kind that a part refers to, as the archive names it."""
    relations = join(dirname(part), "_rels", f"{basename(part)}.rels")
    found = targets(archive, relations, kind)
    return {key: normpath(join("/", dirname(part), path)).lstrip("/") for key, path in found.items()}


def _slide(archive: ZipFile, part: str, ledger: Ledger) -> tuple[str, str]:
    """The text of a slide, and its title."""
    pieces: list[str] = []
    titles: list[str] = []
    is_title = is_raised = False
    for event in events(archive, part):
        match event.kind, event.tag:
            case "start", "sp":
                is_title = False
            case "start", "ph":
                is_title = event.attributes.get("type") in ("title", "ctrTitle")
            case "start", ("r" | "rPr"):
                is_raised = int(event.attributes.get("baseline") or 0) >= _MIN_RAISE
            case "start", "br":
                pieces.append("\n")
            case "text", "t" if event.parent == "fld":
                ledger.leave_out("number or date of a slide")
            case "text", "t":
                pieces.append(raised(event.text) if is_raised else event.text)
                titles += [event.text] * is_title
            case "end", ("p" | "tr") if pieces and not pieces[-1].endswith("\n"):
                pieces.append("\n")
            case "end", "tc":
                pieces[-1:] = ["\t"] if pieces[-1:] == ["\n"] else [*pieces[-1:], "\t"]
    return "".join(pieces).strip("\n"), "".join(titles)
