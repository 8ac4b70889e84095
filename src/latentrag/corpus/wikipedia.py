"""Wikipedia's articles, from MediaWiki's dumps and from what WikiExtractor makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import unescape
from typing import TYPE_CHECKING, Any, BinaryIO

from latentrag.corpus.readers import Ledger, Reader, UnreadableError
from latentrag.corpus.text import Start, Text, json_lines, xml_events
from latentrag.types import Document

if TYPE_CHECKING:
    from mwparserfromhell.nodes import ExternalLink, Tag, Template, Wikilink
    from mwparserfromhell.wikicode import Wikicode

_MAX_ARTICLE_CHARS = 1 << 26
"""MediaWiki's own limit is 2 MiB."""
_FIELDS = frozenset((("page", "title"), ("page", "ns"), ("page", "id"), ("revision", "text")))
# Links into these namespaces show a picture, play something or file the article under a heading.
_HIDDEN_KEYS = ("-2", "6", "14")
_HIDDEN_NAMES = ("media", "file", "image", "category")

_NO_TEXT = frozenset(
    "categorytree ce chem gallery graph hiero imagemap indicator inputbox mapframe maplink math ref references score "
    "section style syntaxhighlight source table templatedata templatestyles timeline".split()
)
_BREAKS = frozenset(("br", "hr", "p", "div", "blockquote", "poem", "pre"))
# Templates that stand in the middle of sentences, and which of their arguments are shown there.
_UNITS = frozenset(("convert", "cvt"))
_RANGES = frozenset(("-", "–", "to", "and", "or", "by", "x"))
_SHOWN_ARGUMENT: Mapping[str, int] = {"lang": 2, "nowrap": 1, "nobr": 1, "transliteration": 2, "transl": 2}

_SWITCHES = re.compile(r"__[A-Z]+__")
_EMPTY_BRACKETS = re.compile(r" ?[(\[][\s,;:–-]*[)\]]")
_OPENED_EMPTY = re.compile(r"\((?:\s*[,;:])+\s*")
_SPACE_IN_LINE = re.compile(r"[^\S\n]+")
_LINE_END = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n(?:[*#:;]*\n)+")
_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)


def dump(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:  # noqa: ARG001  the pages have ids
    """A document for each article of a pages-articles dump (.xml): namespace 0, no redirects; of several revisions
    the last. Its id is the page's; its text is that of ``plain``."""
    for page, hidden in _pages(file):
        if page.is_article:
            text = plain(page["text"], hidden, name=page["title"])
            yield Document(page["id"].strip(), text, title=page["title"].strip(), source=ledger.file)
        else:
            ledger.leave_out("page that is a redirect or of another namespace than articles")


def extracted(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """As ``json_lines``, for the files that WikiExtractor --json calls wiki_00, wiki_01 and so on. The title, with
    which some of its versions begin each text, is taken from the text."""
    for document in json_lines(file, name, ledger):
        heading, line_feed, rest = document.text.partition("\n")
        is_title = line_feed and heading.strip() == document.title
        yield replace(document, text=rest.lstrip("\n")) if is_title else document


DUMP = Reader(
    dump,
    suffixes=(".xml",),
    # Dumps come in parts too: enwiki-20260101-pages-articles1.xml-p1p41242.bz2
    pattern=r"(?s:.*)\.xml-p\d+p\d+",
    library="mwparserfromhell",
    packed=True,
)
EXTRACTED = Reader(extracted, pattern=r"wiki_\d{2,}", packed=True)


@dataclass(slots=True)
class _Page:
    """A page as far as it has been read; ``fields`` by tag, in pieces."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    is_redirect: bool = False
    num_chars: int = 0

    def __getitem__(self, tag: str) -> str:
        return "".join(self.fields.get(tag, ()))

    @property
    def is_article(self) -> bool:
        return self["ns"].strip() in ("", "0") and not self.is_redirect and not _REDIRECT.match(self["text"])

    def begin(self, tag: str) -> None:
        self.fields[tag] = []
        self.num_chars = 0

    def add(self, tag: str, text: str) -> None:
        self.fields[tag].append(text)
        self.num_chars += len(text)
        if self.num_chars > _MAX_ARTICLE_CHARS:
            raise UnreadableError(f"the <{tag}> of a page does not end; fetch the dump again")


def _pages(file: BinaryIO) -> Iterator[tuple[_Page, frozenset[str]]]:
    """Every page, with the names of the namespaces that are hidden in this wiki, in lower case."""
    opened: list[str] = []
    hidden = list(_HIDDEN_NAMES)
    is_hidden = False
    page = _Page()
    for event in xml_events(file):
        if isinstance(event, Start):
            if not opened and event.tag != "mediawiki":
                raise UnreadableError(f"its root is <{event.tag}>, needed <mediawiki>; of XML only dumps are read")
            opened.append(event.tag)
            page = _Page() if event.tag == "page" else page
            page.is_redirect |= event.tag == "redirect"
            is_hidden = event.tag == "namespace" and event.attributes.get("key") in _HIDDEN_KEYS
            if tuple(opened[-2:]) in _FIELDS:
                page.begin(event.tag)
        elif isinstance(event, Text):
            if tuple(opened[-2:]) in _FIELDS:
                page.add(opened[-1], event.text)
            elif is_hidden:
                hidden.append(event.text.strip().lower())
        else:
            opened.pop()
            is_hidden = False
            if event.tag == "page":
                yield page, frozenset(hidden)


# Wikitext → the text that a reader of the article sees


def plain(wikitext: str, hidden: frozenset[str] = frozenset(), *, name: str = "") -> str:
    """The running text, headings and lists of an article, without tables, references, pictures and templates.

    As WikiExtractor, whose output DPR's passages are made of, except that lists stay. Templates would have to be
    run by MediaWiki; of a few that stand within sentences, such as units, the arguments that matter are kept.

    Args:
        hidden: names of namespaces, in lower case, links into which show no text: files, categories.
        name: of the article, for the error.
    Raises: UnreadableError if the parser gives up.
    """
    import mwparserfromhell
    from mwparserfromhell.parser import ParserError

    try:
        code = mwparserfromhell.parse(wikitext, skip_style_tags=False)
    except ParserError as error:
        raise UnreadableError(f"the wikitext of {name!r} cannot be parsed ({error}); remove the page") from error
    text = _SWITCHES.sub("", _Shown(hidden).of(code))
    text = _EMPTY_BRACKETS.sub("", text)
    text = _OPENED_EMPTY.sub("(", text)
    text = _LINE_END.sub("\n", _SPACE_IN_LINE.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text).strip()


class _Shown:
    """What of a node is shown. The parser nests no deeper than 40 levels, so that recursion is bounded."""

    def __init__(self, hidden: frozenset[str]) -> None:
        from mwparserfromhell import nodes

        self._hidden = hidden
        self._by_kind: dict[type, Callable[[Any], str]] = {
            nodes.Text: lambda node: node.value,
            nodes.Wikilink: self._link,
            nodes.ExternalLink: self._external_link,
            nodes.Tag: self._tag,
            nodes.Heading: lambda node: f"\n{self.of(node.title).strip()}\n",
            nodes.HTMLEntity: lambda node: unescape(str(node)),
            nodes.Template: self._template,
        }

    def of(self, code: Wikicode | None) -> str:
        """The text of some code; comments, and arguments of a template's own page, have none."""
        if code is None:
            return ""
        return "".join(self._by_kind[type(node)](node) for node in code.nodes if type(node) in self._by_kind)

    def _link(self, node: Wikilink) -> str:
        target = str(node.title).strip()
        namespace, colon, _ = target.partition(":")
        if colon and namespace.strip().lower() in self._hidden:
            return ""
        return self.of(node.text) if node.text is not None else target.removeprefix(":")

    def _external_link(self, node: ExternalLink) -> str:
        if node.title is not None:
            return self.of(node.title)
        return "" if node.brackets else str(node.url)

    def _tag(self, node: Tag) -> str:
        tag = str(node.tag).strip().lower()
        if tag in _NO_TEXT:
            return ""
        text = self.of(node.contents) if node.contents is not None else ""
        if tag in _BREAKS:
            return f"\n{text}\n" if text else "\n"
        return text

    def _template(self, node: Template) -> str:
        template = str(node.name).strip().lower()
        if template in _UNITS:
            return self._measure(node)
        shown = _SHOWN_ARGUMENT.get(template)
        return self._argument(node, shown) if shown is not None else ""

    def _measure(self, node: Template) -> str:
        """{{convert|5|to|6|km}}: 5 to 6 km."""
        num_shown = 4 if self._argument(node, 2) in _RANGES else 2
        return " ".join(filter(None, (self._argument(node, i) for i in range(1, num_shown + 1))))

    def _argument(self, node: Template, i: int) -> str:
        return self.of(node.get(i).value).strip() if node.has(i) else ""
