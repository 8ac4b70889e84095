"""Wikipedia's articles, from MediaWiki's dumps and from what WikiExtractor makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from typing import TYPE_CHECKING, Any, BinaryIO

from latentrag.corpus.notation import raised
from latentrag.corpus.readers import Ledger, Reader, UnreadableError
from latentrag.corpus.text import json_lines, xml_events
from latentrag.corpus.wiki_templates import shown
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
    "categorytree gallery graph hiero imagemap indicator inputbox mapframe maplink ref references score "
    "section style syntaxhighlight source table templatedata templatestyles timeline".split()
)
_BREAKS = frozenset(("br", "hr", "p", "div", "blockquote", "poem", "pre"))
_TEX = frozenset(("ce", "chem", "math"))
_COUNTED = {"table": "table", "ref": "reference", "gallery": "gallery"}

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
        key, title, namespace, wikitext = (page.get(tag, "") for tag in ("id", "title", "ns", "text"))
        if namespace.strip() not in ("", "0") or "redirect" in page or _REDIRECT.match(wikitext):
            ledger.leave_out("page that is a redirect or of another namespace than articles")
        else:
            text = plain(wikitext, hidden, name=title, ledger=ledger)
            yield Document(key.strip(), text, title=title.strip(), source=ledger.file)


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


def _pages(file: BinaryIO) -> Iterator[tuple[dict[str, str], frozenset[str]]]:
    """The fields of every page by tag, with the names of the namespaces that are hidden in this wiki, in lower case."""
    hidden = list(_HIDDEN_NAMES)
    is_hidden = False
    page: dict[str, list[str]] = {}
    num_chars = 0
    for event in xml_events(file):
        is_field = event.tag == "redirect" or (event.parent, event.tag) in _FIELDS
        if event.kind == "start":
            if not event.parent and event.tag != "mediawiki":
                raise UnreadableError(f"its root is <{event.tag}>, needed <mediawiki>; of XML only dumps are read")
            is_hidden = event.tag == "namespace" and event.attributes.get("key") in _HIDDEN_KEYS
            if event.tag == "page":
                page = {}
            elif is_field:
                page[event.tag], num_chars = [], 0
        elif event.kind == "text" and is_field:
            page[event.tag].append(event.text)
            num_chars += len(event.text)
            if num_chars > _MAX_ARTICLE_CHARS:
                raise UnreadableError(f"the <{event.tag}> of a page does not end; fetch the dump again")
        elif event.kind == "text" and event.tag == "namespace" and is_hidden:
            hidden.append(event.text.strip().lower())
        elif event.kind == "end" and event.tag == "page":
            yield {tag: "".join(pieces) for tag, pieces in page.items()}, frozenset(hidden)


# Wikitext → the text that a reader of the article sees


def plain(wikitext: str, hidden: frozenset[str] = frozenset(), *, name: str = "", ledger: Ledger | None = None) -> str:
    """The running text, headings and lists of an article, without tables, references, pictures and templates.

    As WikiExtractor, whose output DPR's passages are made of, except that lists stay. Templates would have to be
    run by MediaWiki; those that stand within sentences, such as units, are written out (``wiki_templates``). Formulas
    are their TeX.

    Args:
        hidden: names of namespaces, in lower case, links into which show no text: files, categories.
        name: of the article, for the error.
        ledger: gets the number of templates, tables, references and galleries that are not shown.
    Raises: UnreadableError if the parser gives up.
    """
    import mwparserfromhell
    from mwparserfromhell.parser import ParserError

    try:
        code = mwparserfromhell.parse(wikitext, skip_style_tags=False)
    except ParserError as error:
        raise UnreadableError(f"the wikitext of {name!r} cannot be parsed ({error}); remove the page") from error
    text = _SWITCHES.sub("", _Shown(hidden, ledger or Ledger("")).of(code))
    text = _EMPTY_BRACKETS.sub("", text)
    text = _OPENED_EMPTY.sub("(", text)
    text = _LINE_END.sub("\n", _SPACE_IN_LINE.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text).strip()


class _Shown:
    """What of a node is shown. The parser nests no deeper than 40 levels, so that recursion is bounded."""

    def __init__(self, hidden: frozenset[str], ledger: Ledger) -> None:
        from mwparserfromhell import nodes

        self._hidden = hidden
        self._ledger = ledger
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
            if tag in _COUNTED:
                self._ledger.leave_out(f"{_COUNTED[tag]} in wikitext")
            return ""
        text = self.of(node.contents)
        if tag in _TEX:
            return " ".join(text.split())
        if tag == "sup":
            return raised(text)
        if tag in _BREAKS:
            return f"\n{text}\n" if text else "\n"
        return text

    def _template(self, node: Template) -> str:
        make = shown(self.of(node.name).strip())
        if make is None:
            self._ledger.leave_out("template in wikitext")
            return ""
        return make({str(each.name).strip(): self.of(each.value).strip() for each in node.params})
