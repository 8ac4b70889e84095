"""E-books in EPUB: ZIP archives of pages, in the order of their spine."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from posixpath import dirname, join, normpath
from typing import BinaryIO
from urllib.parse import unquote

from latentrag.corpus.ooxml import check, events, opened
from latentrag.corpus.readers import READERS, Ledger, Reader, UnreadableError
from latentrag.corpus.stating import fields_of, title_of
from latentrag.types import Document

_PAGES = ("application/xhtml+xml", "text/html")


def epub(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """A document for each page of the book, as HTML is read; its title is the book's, its own title the field
    "section". Author, date and language are fields."""
    with opened(file, "epub") as archive:
        container = events(archive, "META-INF/container.xml")
        root = next((each.attributes.get("full-path", "") for each in container if each.tag == "rootfile"), "")
        stated: dict[str, str] = {}
        pages: dict[str, str] = {}
        spine: list[str] = []
        for event in events(archive, root):
            attributes = event.attributes
            if event.kind == "text" and event.parent == "metadata":
                stated[event.tag] = stated.get(event.tag, "") + event.text
            elif event.kind == "start" and event.tag == "item" and attributes.get("media-type") in _PAGES:
                pages[attributes.get("id", "")] = unquote(attributes.get("href", ""))
            elif event.kind == "start" and event.tag == "itemref":
                spine.append(attributes.get("idref", ""))
        title, num_documents = title_of(stated.get("title", ""), "", name), 0
        for page in (pages[key] for key in spine if key in pages):
            part = normpath(join(dirname(root), page))
            check(archive, part)
            try:
                for document in READERS["html"].read(io.BytesIO(archive.read(part)), page, ledger):
                    fields = {**fields_of(stated), "section": document.title}
                    num_documents += 1
                    yield replace(document, id=f"{name}:{page}", title=title, fields=fields)
            except UnreadableError:
                ledger.leave_out("page of a book without text")
    if not num_documents:
        raise UnreadableError("no page with text in it; if it is protected, save it without that")


EPUB = Reader(epub, suffixes=(".epub",), mime_types=("application/epub+zip",), library="selectolax")
