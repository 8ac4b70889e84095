"""The main text of a web page: what its author wrote, without menus, advertising and scripts.

Nothing is run or fetched. The page is cut into blocks, runs of text that a browser would set apart; an element is
a range of blocks. Prose, that is long blocks with few links, shows where the main text is.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import PurePath
from typing import TYPE_CHECKING, BinaryIO

from latentrag.corpus.encodings import decode
from latentrag.corpus.readers import Ledger, Reader, UnreadableError
from latentrag.types import Document

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_MIN_PROSE_BYTES = 80
_MAX_PROSE_LINKS = 1 / 3
"""Prose: a block at least so long, at most so much of it in links. Menus and lists of articles are not."""
_MIN_MAIN_SHARE = 1 / 2
"""If <main> and <article> have less of the page's prose, they are not where its text is."""
_MIN_CORE_SHARE = 0.9
"""Where nothing is marked, the main text is the innermost element with so much of the prose, paragraphs aside."""
_MAX_JUNK_SHARE = 1 / 2
"""An element with more of the prose is not left out, whatever it is called."""
_MAX_LINK_SHARE = 2 / 3
"""A block with more of it in links is a menu or a teaser."""

_NO_TEXT = frozenset(
    "annotation audio button canvas datalist embed head iframe input map math noscript object option progress "
    "script select style svg template textarea video".split()
)
_AROUND = frozenset("aside dialog footer menu nav".split())
_AROUND_ROLES = frozenset("alert banner complementary contentinfo dialog menu navigation search".split())
_BLOCKS = frozenset(
    "address article blockquote body br caption center dd details dir div dl dt fieldset figcaption figure footer "
    "form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main nav ol p pre section summary table tbody td tfoot "
    "th thead tr ul".split()
)
_PARAGRAPHS = frozenset("blockquote caption dd dt figcaption h1 h2 h3 h4 h5 h6 legend li p pre summary td th".split())
_JUNK_NAMES = re.compile(
    r"(?:^|[\s_-])(?:ads?|advert\w*|banner|breadcrumbs?|comments?|consent|cookies?|disqus|footer|hidden|masthead|"
    r"menu|modal|nav|navbar|navigation|newsletter|outbrain|pager|pagination|popup|promos?|recommended|related|"
    r"share|sharing|sidebar|social|sponsored|sr-only|subscribe|taboola|toolbar|widgets?)(?:$|[\s_-])",
    re.IGNORECASE,
)
_NOT_SHOWN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)

_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_META_BYTES = 4096
# What browsers take the names on the left for (WHATWG Encoding Standard).
_AS_BROWSERS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-16": "utf-8",
    "utf-16-be": "utf-8",
    "utf-16-le": "utf-8",
}
_CHARSETS = frozenset(
    "utf-8 cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 cp866 cp874 cp932 cp949 big5 big5hkscs "
    "euc_jp gb18030 iso2022_jp iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8 iso8859-10 "
    "iso8859-13 iso8859-14 iso8859-15 iso8859-16 koi8-r koi8-u mac-roman".split()
)


def html(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """One document: the page's main text, a line for each block. Title: the page's, else its first h1's, else the
    file's stem."""
    from selectolax.lexbor import LexborHTMLParser

    page = LexborHTMLParser(_decoded(file.read(), ledger))
    blocks, elements = _cut(page.body)
    main = _main_blocks(blocks, elements)
    text = _joined(main)
    num_outside = sum(len(block.text) for block in blocks) - sum(len(block.text) for block in main)
    ledger.leave_out("character in menus, banners, hidden elements and the like", num_outside)
    if not text:
        raise UnreadableError("no text in the page; if scripts fill it, save it from a browser as it is shown")
    titles = (" ".join((element.text() or "").split()) for element in page.css("head > title, h1"))
    title = next(filter(None, titles), PurePath(name).stem)
    yield Document(id=name, text=text, title=title, source=ledger.file)


HTML = Reader(
    html,
    suffixes=(".html", ".htm", ".xhtml"),
    mime_types=("text/html", "application/xhtml+xml"),
    one_document=True,
    library="selectolax",
)


@dataclass(frozen=True, slots=True)
class _Block:
    """A run of text. ``after_cell``: it begins a cell of a table's row that is not the row's first."""

    text: str
    num_link_chars: int
    after_cell: bool

    @property
    def prose_chars(self) -> int:
        is_long = len(self.text.encode("utf-8", "replace")) >= _MIN_PROSE_BYTES
        is_prose = is_long and self.num_link_chars <= _MAX_PROSE_LINKS * len(self.text)
        return len(self.text) if is_prose else 0

    @property
    def is_links(self) -> bool:
        return self.num_link_chars > _MAX_LINK_SHARE * len(self.text)


@dataclass(slots=True)
class _Element:
    """The blocks ``first`` up to ``end``. ``is_main``: marked as the main text; ``is_junk``: by its kind or name;
    ``is_paragraph``: text itself, no place for several."""

    first: int
    end: int = 0
    is_main: bool = False
    is_junk: bool = False
    is_paragraph: bool = False


@dataclass(slots=True)
class _Cutter:
    """One walk over a page."""

    blocks: list[_Block] = field(default_factory=list)
    elements: list[_Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    num_link_chars: int = 0
    after_cell: bool = False
    num_mains: int = 0
    inside: Counter[str] = field(default_factory=Counter)

    def add(self, text: str) -> None:
        self.pieces.append(text)
        if self.inside["a"]:
            self.num_link_chars += sum(map(len, text.split()))

    def flush(self) -> None:
        """Ends a block."""
        text = "".join(self.pieces)
        text = text.strip("\r\n").rstrip() if self.inside["pre"] else " ".join(text.split())
        if text:
            self.blocks.append(_Block(text, self.num_link_chars, self.after_cell))
            self.after_cell = False
        self.pieces.clear()
        self.num_link_chars = 0

    def enter(self, node: LexborNode) -> _Element | None:
        tag, attributes = node.tag or "", node.attributes
        role = attributes.get("role") or ""
        is_main = tag in ("main", "article") or role == "main"
        is_junk = self._is_junk(tag, role, attributes)
        element = None
        if is_main or is_junk or tag in _BLOCKS:
            self.flush()
            self.num_mains += is_main
            self.after_cell = self.after_cell or (tag in ("td", "th") and node.prev is not None)
            element = _Element(len(self.blocks), is_main=is_main, is_junk=is_junk, is_paragraph=tag in _PARAGRAPHS)
            self.elements.append(element)
        self.inside[tag] += 1
        return element

    def leave(self, node: LexborNode, element: _Element | None) -> None:
        if element is not None:
            self.flush()
            self.num_mains -= element.is_main
            element.end = len(self.blocks)
        self.inside[node.tag or ""] -= 1

    def _is_junk(self, tag: str, role: str, attributes: dict[str, str | None]) -> bool:
        names = f"{attributes.get('class') or ''} {attributes.get('id') or ''}"
        return (
            tag in _AROUND
            or (tag == "header" and not self.num_mains)
            or role in _AROUND_ROLES
            or "hidden" in attributes
            or attributes.get("aria-hidden") == "true"
            or bool(_NOT_SHOWN.search(attributes.get("style") or ""))
            or bool(_JUNK_NAMES.search(names))
        )


def _cut(body: LexborNode | None) -> tuple[list[_Block], list[_Element]]:
    """The page's blocks, and its elements as ranges of them. A loop, for pages may be nested deeply."""
    cutter = _Cutter()
    if body is None:
        return cutter.blocks, cutter.elements
    opened = [(body, cutter.enter(body), body.iter(include_text=True))]
    while opened:
        node, element, children = opened[-1]
        child = next(children, None)
        if child is None:
            cutter.leave(node, element)
            opened.pop()
        elif child.is_text_node:
            cutter.add(child.text_content or "")
        elif child.is_element_node and child.tag not in _NO_TEXT:
            opened.append((child, cutter.enter(child), child.iter(include_text=True)))
    return cutter.blocks, cutter.elements


def _main_blocks(blocks: list[_Block], elements: list[_Element]) -> list[_Block]:
    """The blocks of the main text."""
    share = _shares([block.prose_chars for block in blocks])
    junk = [element for element in elements if element.is_junk and share(element) <= _MAX_JUNK_SHARE]
    out = {i for element in junk for i in range(element.first, element.end)}
    share = _shares([0 if i in out else block.prose_chars for i, block in enumerate(blocks)])
    core = _core(share, elements) or _Element(0, len(blocks))
    shown = [blocks[i] for i in range(core.first, core.end) if i not in out]
    return [block for block in shown if not block.is_links] or shown


def _core(share: Callable[[_Element], float], elements: list[_Element]) -> _Element | None:
    """Where the main text is; None: anywhere."""
    if marked := [e for e in elements if e.is_main and share(e)]:
        # All of them, and all that is in them: a page of several articles is about each.
        around = _Element(min(e.first for e in marked), max(e.end for e in marked))
        if share(around) >= _MIN_MAIN_SHARE:
            return around
    # Elements come in the order of their beginnings: the last that has enough is the innermost. What stands beside a
    # paragraph belongs to it, however short.
    enough = (e for e in reversed(elements) if not e.is_paragraph and share(e) >= _MIN_CORE_SHARE)
    return next(enough, None)


def _shares(prose_chars: list[int]) -> Callable[[_Element], float]:
    """How much of the page's prose an element has, 0 to 1; 0 where the page has none."""
    before = [0, *accumulate(prose_chars)]
    return lambda element: (before[element.end] - before[element.first]) / max(1, before[-1])


def _joined(blocks: list[_Block]) -> str:
    return "".join(("\t" if block.after_cell else "\n") + block.text for block in blocks)[1:]


def _decoded(raw: bytes, ledger: Ledger) -> str:
    """As browsers do where the page names its encoding; a page that names none must be UTF-8."""
    charset = _charset(raw)
    if not charset:
        return decode(raw, ledger)
    text = raw.decode(charset, "replace").removeprefix("\ufeff")
    ledger.encoding = charset
    ledger.leave_out(f"character that is not {charset}", text.count("\ufffd"))
    return text


def _charset(raw: bytes) -> str:
    """The encoding that the page names, by its Python name; empty if it names none that browsers know."""
    for mark, charset in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if raw.startswith(mark):
            return charset
    named = _META_CHARSET.search(raw[:_META_BYTES])
    if named is None:
        return ""
    try:
        charset = codecs.lookup(named[1].decode("ascii")).name
    except LookupError:
        return ""
    charset = _AS_BROWSERS.get(charset, charset)
    return charset if charset in _CHARSETS else ""
