"""Wikipedia's articles, from MediaWiki's dumps and from what WikiExtractor makes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from latentrag.corpus.formats import UnreadableError, json_lines
from latentrag.corpus.wikitext import plain
from latentrag.corpus.xml_events import Start, Text, events
from latentrag.types import Document

_MAX_ARTICLE_CHARS = 1 << 26
"""MediaWiki's own limit is 2 MiB."""
_FIELDS = frozenset((("page", "title"), ("page", "ns"), ("page", "id"), ("revision", "text")))
# Links into these namespaces show a picture, play something or file the article under a heading.
_HIDDEN_KEYS = ("-2", "6", "14")
_HIDDEN_NAMES = ("media", "file", "image", "category")
_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)


def dump(file: BinaryIO, name: str, source: str) -> Iterator[Document]:  # noqa: ARG001  the pages have ids
    """A document for each article of a pages-articles dump (.xml): namespace 0, no redirects; of several revisions
    the last. Its id is the page's; its text is that of ``plain``."""
    for page, hidden in _pages(file):
        if page.is_article:
            text = plain(page["text"], hidden, name=page["title"])
            yield Document(page["id"].strip(), text, title=page["title"].strip(), source=source)


def extracted(file: BinaryIO, name: str, source: str) -> Iterator[Document]:
    """As ``json_lines``, for the files that WikiExtractor --json calls wiki_00, wiki_01 and so on. The title, with
    which some of its versions begin each text, is taken from the text."""
    for document in json_lines(file, name, source):
        heading, line_feed, rest = document.text.partition("\n")
        is_title = line_feed and heading.strip() == document.title
        yield replace(document, text=rest.lstrip("\n")) if is_title else document


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
    for event in events(file):
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
