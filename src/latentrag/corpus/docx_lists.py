"""Styles of a Word document, and the numbers that Word shows before the paragraphs of its lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from zipfile import ZipFile

from latentrag.corpus.notation import numbered
from latentrag.corpus.ooxml import Element, element, events

_HEADING = re.compile(r"title|heading ?\d")
_MAX_BASES = 20
_PLACE = re.compile(r"%([1-9])")


@dataclass(slots=True)
class _Style:
    name: str = ""
    base: str = ""
    list: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class Styles:
    """The styles of paragraphs, by id."""

    by_id: Mapping[str, _Style]

    @classmethod
    def read(cls, archive: ZipFile) -> Styles:
        by_id = {}
        for style in _part(archive, "styles").all("style"):
            place = style.first("pPr", "numPr")
            name, base = style.first("name").value.lower(), style.first("basedOn").value
            by_id[style.attributes.get("styleId", "")] = _Style(
                name, base, place.first("numId").value, place.first("ilvl").value
            )
        return cls(by_id)

    def is_heading(self, key: str) -> bool:
        """Whether a style is Word's title or one of its headings, under whatever id."""
        style = self.by_id.get(key)
        return bool(_HEADING.fullmatch(key.lower() if style is None else style.name))

    def list_of(self, key: str) -> tuple[str, str]:
        """The list that paragraphs of a style belong to, and their level; empty if to none."""
        level = ""
        for _ in range(_MAX_BASES):
            style = self.by_id.get(key)
            if style is None:
                break
            level = level or style.level
            if style.list:
                return style.list, level
            key = style.base
        return "", level


@dataclass(slots=True)
class _Level:
    start: int = 1
    style: str = "decimal"
    text: str = ""
    is_legal: bool = False
    paragraph_style: str = ""

    @classmethod
    def of(cls, level: Element) -> _Level:
        return cls(
            _number(level.first("start").value, 1),
            level.first("numFmt").value,
            level.first("lvlText").value,
            bool(level.all("isLgl")),
            level.first("pStyle").value,
        )


@dataclass(slots=True)
class _List:
    """A use of an abstract list: its levels, some of which it may start anew."""

    abstract: str = ""
    starts: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Lists:
    """The lists of a document, and how far each has been counted."""

    styles: Styles
    abstract: dict[str, dict[int, _Level]] = field(default_factory=dict)
    lists: dict[str, _List] = field(default_factory=dict)
    counts: dict[str, dict[int, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, archive: ZipFile, styles: Styles) -> Lists:
        part, lists = _part(archive, "numbering"), cls(styles)
        for each in part.all("abstractNum"):
            levels = {_number(level.attributes.get("ilvl")): _Level.of(level) for level in each.all("lvl")}
            lists.abstract[each.attributes.get("abstractNumId", "")] = levels
        for each in part.all("num"):
            starts = {
                _number(override.attributes.get("ilvl")): _number(start.value, 1)
                for override in each.all("lvlOverride")
                for start in override.all("startOverride")
            }
            lists.lists[each.attributes.get("numId", "")] = _List(each.first("abstractNumId").value, starts)
        return lists

    def label(self, key: str, level: str, style: str) -> str:
        """What stands before the next paragraph of a list, with a space; empty for bullets and outside of lists."""
        of_style, level_of_style = self.styles.list_of(style)
        use = self.lists.get(key or of_style)
        if use is None:
            return ""
        levels = self.abstract.get(use.abstract, {})
        by_style = next((i for i, each in levels.items() if style and each.paragraph_style == style), 0)
        depth = _number(level or level_of_style, by_style)
        shown = levels.get(depth)
        if shown is None:
            return ""
        counts = self.counts.setdefault(use.abstract, {})
        start = use.starts.pop(depth, None)
        counts[depth] = start if start is not None else counts.get(depth, shown.start - 1) + 1
        for deeper in [i for i in counts if i > depth]:
            del counts[deeper]
        if shown.style in ("bullet", "none"):
            return ""

        def place(found: re.Match[str]) -> str:
            i = int(found[1]) - 1
            of_level = levels.get(i, _Level())
            return numbered(counts.get(i, of_level.start), "decimal" if shown.is_legal else of_level.style)

        text = _PLACE.sub(place, shown.text).strip()
        return f"{text} " if text else ""


def _part(archive: ZipFile, name: str) -> Element:
    """The whole of it, without its root; empty if it is not there."""
    part = f"word/{name}.xml"
    return element(name, events(archive, part)).first(name) if part in archive.namelist() else Element(name)


def _number(text: str | None, otherwise: int = 0) -> int:
    return int(text) if text and text.isdecimal() else otherwise
