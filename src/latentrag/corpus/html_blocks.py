"""A web page cut into blocks, runs of text that a browser would set apart; an element is a range of blocks.

html_kinds says what an element seems to be, html_main whether it is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latentrag.corpus.html_kinds import BLOCKS, LEVELS, Kind, kind_of, num_chars
from latentrag.corpus.html_math import formula
from latentrag.corpus.notation import raised

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_MIN_PROSE_BYTES = 80
_MAX_PROSE_LINKS = 1 / 3
"""Prose: a block at least so long, at most so much of it in links. Menus and lists of articles are not."""
_MAX_LINK_SHARE = 2 / 3
"""A block with more of it in links is a menu or a teaser."""
_CODE = frozenset("head script style template".split())
_NOT_TEXT = frozenset(
    "audio canvas datalist embed iframe input map meter noembed noframes object option progress select svg textarea "
    "video".split()
)
_PARAGRAPHS = frozenset("blockquote caption dd dt figcaption h1 h2 h3 h4 h5 h6 legend li p pre summary td th".split())
_LISTS = frozenset("dir dl hr ol table tbody tfoot thead tr ul".split())
_ADDRESS = re.compile(r"\w+://\S+")
_NUMERATOR = re.compile(r"(\d?)\^(\d+)\s*[/⁄]\s*\Z")


@dataclass(frozen=True, slots=True)
class Block:
    """A run of text, and its characters without spaces: all, those in links, all again if it is prose.
    ``container`` is the element around it that is more than a paragraph or a list; ``level`` that of a heading, else 0;
    ``after_cell``: it begins a cell of a table's row that is not the row's first."""

    text: str
    num_chars: int
    num_link_chars: int
    prose_chars: int
    container: int
    level: int
    after_cell: bool

    @property
    def is_links(self) -> bool:
        return self.num_link_chars > _MAX_LINK_SHARE * self.num_chars


@dataclass(slots=True)
class Element:
    """The blocks ``first`` up to ``end``. ``is_main``: marked as the main text; ``is_place``: it may hold the whole of
    it, as a paragraph, a list and a table do not."""

    parent: int
    first: int
    end: int = 0
    kind: Kind = ""
    is_main: bool = False
    is_place: bool = True
    is_heading: bool = False


@dataclass(slots=True)
class Cut:
    """A page's blocks, its elements in the order of their beginnings, the characters of what is hidden within lines,
    and of what has no place in a text: lists of choices, pictures, what is shown where something else cannot be."""

    blocks: list[Block] = field(default_factory=list)
    elements: list[Element] = field(default_factory=list)
    num_hidden_chars: int = 0
    num_other_chars: int = 0

    @property
    def num_chars(self) -> int:
        """Of what could be a text."""
        return sum(block.num_chars for block in self.blocks) + self.num_hidden_chars


def cut(body: LexborNode | None) -> Cut:
    """A page in blocks. A loop, for pages may be nested deeply."""
    cutter = _Cutter()
    opened = [] if body is None else [(body, cutter.enter(body), body.iter(include_text=True))]
    while opened:
        node, mark, children = opened[-1]
        child = next(children, None)
        if child is None:
            cutter.leave(node, mark)
            opened.pop()
        elif child.is_text_node:
            cutter.add(child.text_content or "")
        elif child.is_element_node and not cutter.takes_whole(child):
            opened.append((child, cutter.enter(child), child.iter(include_text=True)))
    return cutter.page


@dataclass(slots=True)
class _Cutter:
    """One walk over a page."""

    page: Cut = field(default_factory=Cut)
    opened: list[int] = field(default_factory=list)
    containers: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    num_link_chars: int = 0
    after_cell: bool = False
    num_mains: int = 0
    level: int = 0
    inside: Counter[str] = field(default_factory=Counter)

    def add(self, text: str) -> None:
        self.pieces.append(text)
        if self.inside["a"]:
            self.num_link_chars += num_chars(text)

    def flush(self) -> None:
        """Ends a block."""
        text = "".join(self.pieces).replace("\xad", "")  # soft hyphens, which are not shown
        text = text.strip("\r\n").rstrip() if self.inside["pre"] else " ".join(text.split())
        if text:
            container = self.containers[-1] if self.containers else 0
            chars, links = num_chars(text), self.num_link_chars
            is_prose = links <= _MAX_PROSE_LINKS * chars and _is_long(text)
            prose = chars if is_prose else 0
            self.page.blocks.append(Block(text, chars, links, prose, container, self.level, self.after_cell))
            self.after_cell = False
        self.pieces.clear()
        self.num_link_chars = 0

    def takes_whole(self, node: LexborNode) -> bool:
        """Whether an element is read without looking into it: a formula, code, what is no text."""
        tag = node.tag or ""
        if tag == "math":
            self.add(formula(node))
        elif tag == "script" and (node.attributes.get("type") or "").startswith("math/tex"):
            self.add(node.text() or "")
        elif tag in _NOT_TEXT:
            self.page.num_other_chars += num_chars(node.text() or "")
        elif self._is_hidden_within_a_line(node, tag):
            self.page.num_hidden_chars += num_chars(node.text() or "")
            return True
        return tag == "math" or tag in _CODE or tag in _NOT_TEXT

    def _is_hidden_within_a_line(self, node: LexborNode, tag: str) -> bool:
        """A repeated formula, a label for screen readers: it does not part the text around it."""
        attributes = node.attributes
        if tag in BLOCKS or not attributes or self._kind(node) != "hidden":
            return False
        return attributes.get("aria-hidden") == "true" or not _is_long(node.text() or "")

    def enter(self, node: LexborNode) -> int | None:
        """What ``leave`` needs of it: where a superscript begins, and whether the element is one of the page's."""
        tag, attributes = node.tag or "", node.attributes
        is_main = tag in ("main", "article") or attributes.get("role") == "main"
        kind: Kind = self._kind(node) if tag not in ("sub", "sup") else ""
        mark = None
        if is_main or kind or tag in BLOCKS:
            self.flush()
            self.num_mains += is_main
            self.after_cell = self.after_cell or (tag in ("td", "th") and node.prev is not None)
            mark = len(self.page.elements)
            is_flow = tag in _PARAGRAPHS or tag in _LISTS
            parent = self.opened[-1] if self.opened else -1
            first = len(self.page.blocks)
            self.page.elements.append(
                Element(parent, first, 0, kind, is_main, is_place=not is_flow, is_heading=tag in LEVELS)
            )
            self.opened.append(mark)
            self.containers.append(self.containers[-1] if is_flow and self.containers else mark)
            self.level = LEVELS.get(tag, self.level)
        elif tag in ("sub", "sup"):
            mark = len(self.pieces)
        self.inside[tag] += 1
        return mark

    def leave(self, node: LexborNode, mark: int | None) -> None:
        tag = node.tag or ""
        if mark is not None and tag in ("sub", "sup"):
            text = "".join(self.pieces[mark:])
            del self.pieces[mark:]
            self._script(tag, text)
        elif mark is not None:
            self._end(mark)
        self.inside[tag] -= 1

    def _end(self, mark: int) -> None:
        self.flush()
        element = self.page.elements[mark]
        element.end = len(self.page.blocks)
        self.num_mains -= element.is_main
        self.opened.pop()
        self.containers.pop()
        if element.is_heading:
            self.level = 0

    def _script(self, tag: str, text: str) -> None:
        """10^10, H2O, and 1 1/2 where a fraction is written with a raised and a lowered number."""
        before = "".join(self.pieces[-3:])
        above = _NUMERATOR.search(before) if tag == "sub" and text.strip().isdigit() else None
        if above is not None:
            self.pieces[-3:] = [f"{before[: above.start()]}{above[1]}{' ' if above[1] else ''}{above[2]}/{text}"]
        elif tag == "sub":
            # Of 1010 with a lowered 2, 10102 would be another number.
            self.pieces.append(f"_{text}" if before[-1:].isdigit() and text[:1].isdigit() else text)
        else:
            self.pieces.append(raised(text))

    def _kind(self, node: LexborNode) -> Kind:
        return kind_of(node, self.inside, in_main=self.num_mains > 0, in_heading=self.level > 0)


def _is_long(text: str) -> bool:
    text = _ADDRESS.sub("", text) if "://" in text else text
    # In bytes: scripts that need more of them for a character need fewer characters for a sentence.
    return len(text) >= _MIN_PROSE_BYTES or len(text.encode("utf-8", "replace")) >= _MIN_PROSE_BYTES
