"""ZIP archives of XML: the packages of Word and PowerPoint, and e-books. Read with the standard library, as streams."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile

from latentrag.corpus.readers import UnreadableError, not_whole
from latentrag.corpus.text import XmlEvent, xml_events

_MAX_PART_BYTES = 1 << 29
"""Unpacked. A part that says it is larger is a bomb, or no document that one could read."""
_MAX_DEPTH = 100
"""Of a tree. What is nested more deeply is laid beside its parent."""
_OLE = b"\xd0\xcf\x11\xe0"


@contextmanager
def opened(file: BinaryIO, kind: str, older: str = "") -> Iterator[ZipFile]:
    """The archive. Raises: UnreadableError, also for what turns up while it is read.

    Args:
        kind: the end of its name, for errors.
        older: what a file of Microsoft's older container is; it may also be an encrypted one.
    """
    try:
        if older and file.read(len(_OLE)) == _OLE:
            raise UnreadableError(f"encrypted, or {older}")
        file.seek(0)
        with ZipFile(file) as archive:
            yield archive
    # zipfile raises the last two for methods of compression and encryption that it does not know.
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise not_whole(f".{kind} file", error, "fetch or save it") from error


def events(archive: ZipFile, part: str) -> Iterator[XmlEvent]:
    """The XML of a part. Raises: UnreadableError if it is not there, too large, or no XML."""
    check(archive, part)
    with archive.open(part) as stream:
        yield from xml_events(stream)


@dataclass(slots=True)
class Element:
    """A part of a document that is small enough to be held as a whole."""

    tag: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    children: list[Element] = field(default_factory=list)

    @property
    def value(self) -> str:
        return self.attributes.get("val", "")

    def all(self, tag: str) -> list[Element]:
        return [child for child in self.children if child.tag == tag]

    def first(self, *path: str) -> Element:
        """The first child of this name, of that one the first child of the next name, …; empty if there is none."""
        found = self
        for tag in path:
            found = next(iter(found.all(tag)), Element(tag))
        return found


def element(tag: str, told: Iterator[XmlEvent]) -> Element:
    """The element whose start the events have just told, or the whole part if they have told nothing."""
    around = [Element(tag)]
    for event in told:
        if event.kind == "start":
            child = Element(event.tag, event.attributes)
            around[min(len(around), _MAX_DEPTH) - 1].children.append(child)
            around.append(child)
        elif event.kind == "text":
            around[-1].text += event.text
        elif len(around) == 1:
            break
        else:
            around.pop()
    return around[0]


def check(archive: ZipFile, part: str) -> None:
    """Raises: UnreadableError if the part is not there or too large."""
    try:
        info = archive.getinfo(part)
    except KeyError as error:
        raise UnreadableError(f"not what its name says: no {part} in it; save it again") from error
    if info.file_size > _MAX_PART_BYTES:
        raise UnreadableError(f"{part} would unpack to {info.file_size >> 20} MiB; split the document")


def target(archive: ZipFile, kind: str) -> str:
    """Where the package says that the part of this kind is; empty if it does not say."""
    return next((part for part in targets(archive, "_rels/.rels", kind).values()), "").removeprefix("/")


def targets(archive: ZipFile, part: str, kind: str) -> dict[str, str]:
    """id → path, as it is written, of the parts of this kind that a part of relations names."""
    if part not in archive.namelist():
        return {}
    relations = (event.attributes for event in events(archive, part))
    return {
        each.get("Id", ""): each.get("Target", "") for each in relations if each.get("Type", "").endswith(f"/{kind}")
    }


def properties(archive: ZipFile) -> dict[str, str]:
    """Title, creator, created, language and the like, as the package states them."""
    part, found = target(archive, "core-properties"), dict[str, str]()
    if part in archive.namelist():
        for event in events(archive, part):
            if event.kind == "text":
                found[event.tag] = found.get(event.tag, "") + event.text
    return found
