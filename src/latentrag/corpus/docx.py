"""The text of Word documents: ZIP archives of XML, read with the standard library."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import PurePath
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile

from latentrag.corpus.readers import Ledger, Reader, UnreadableError
from latentrag.corpus.text import XmlEvent, xml_events
from latentrag.types import Document

_MAX_PART_BYTES = 1 << 29
"""Unpacked. A part that says it is larger is a bomb, or no document that one could read."""
_OLE = b"\xd0\xcf\x11\xe0"
# Deleted and moved text, and the older form of a text box that is there in a newer form too.
_NOT_SHOWN = frozenset(("del", "moveFrom", "Fallback"))
_OTHER_PARTS = re.compile(r"word/(comments|endnotes|footer|footnotes|header)\d*\.xml")
_CHARACTERS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


def docx(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """One document: the text of its body with tables and text boxes, a line for each paragraph and each row of a
    table; without headers, footers, notes, comments and deleted text. Title: the one in the file's properties, else
    the file's stem."""
    try:
        if file.read(len(_OLE)) == _OLE:
            raise UnreadableError("encrypted, or the older .doc; save it as .docx without a password")
        file.seek(0)
        with ZipFile(file) as archive:
            title = _title(archive)
            text = _body(archive, _target(archive, "officeDocument") or "word/document.xml", ledger)
            for part in archive.namelist():
                if kind := _OTHER_PARTS.fullmatch(part):
                    ledger.leave_out(f"part of the document: {kind[1]}")
    # zipfile raises the last two for methods of compression and encryption that it does not know.
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UnreadableError(f"not a whole .docx file ({error}); fetch or save it again") from error
    yield Document(id=name, text=text, title=title or PurePath(name).stem, source=ledger.file)


DOCX = Reader(
    docx,
    suffixes=(".docx",),
    mime_types=("application/vnd.openxmlformats-officedocument.wordprocessingml.document",),
    one_document=True,
)


def _events(archive: ZipFile, part: str) -> Iterator[XmlEvent]:
    try:
        info = archive.getinfo(part)
    except KeyError as error:
        raise UnreadableError(f"not a Word document: no {part} in it; save it as .docx") from error
    if info.file_size > _MAX_PART_BYTES:
        raise UnreadableError(f"{part} would unpack to {info.file_size >> 20} MiB; split the document")
    with archive.open(info) as stream:
        yield from xml_events(stream)


def _target(archive: ZipFile, kind: str) -> str:
    """Where the package says that the part of this kind is; empty if it does not say."""
    if "_rels/.rels" not in archive.namelist():
        return ""
    for event in _events(archive, "_rels/.rels"):
        if event.attributes.get("Type", "").endswith(f"/{kind}"):
            return event.attributes.get("Target", "").removeprefix("/")
    return ""


def _title(archive: ZipFile) -> str:
    part = _target(archive, "core-properties")
    if part not in archive.namelist():
        return ""
    title = "".join(event.text for event in _events(archive, part) if event.tag == "title")
    return " ".join(title.split())


def _body(archive: ZipFile, part: str, ledger: Ledger) -> str:
    pieces: list[str] = []
    hidden = 0
    for event in _events(archive, part):
        if event.kind == "start" and event.tag in _NOT_SHOWN:
            hidden += 1
            ledger.leave_out(f"element that is not shown: {event.tag}")
        elif event.kind == "start" and event.parent == "r" and not hidden:  # a tab outside of a run is a tab stop
            pieces.append(_CHARACTERS.get(event.tag, ""))
        elif event.kind == "text" and event.tag == "t" and not hidden:
            pieces.append(event.text)
        elif event.kind == "end":
            hidden -= event.tag in _NOT_SHOWN
            _end(event.tag, pieces)
    return "".join(pieces).strip("\n")


def _end(tag: str, pieces: list[str]) -> None:
    """Ends a paragraph, a cell or a row of a table."""
    if tag in ("p", "tr"):
        pieces.append("\n")
    elif tag == "tc" and pieces[-1:] == ["\n"]:
        pieces[-1] = "\t"
