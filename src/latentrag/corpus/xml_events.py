"""XML as a stream of events, from files that may be hostile: no entities of their own, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from latentrag.corpus.formats import UnreadableError

_CHUNK_BYTES = 1 << 16


class Start(NamedTuple):
    """``<tag …>``; tags and the names of attributes without their namespace."""

    tag: str
    attributes: dict[str, str]


class Text(NamedTuple):
    """A piece of the text between two tags, which may come in several."""

    text: str


class End(NamedTuple):
    """``</tag>``"""

    tag: str


def events(file: IO[bytes]) -> Iterator[Start | Text | End]:
    """What is in an XML file, in constant memory. Raises: UnreadableError, with the line."""
    from xml.parsers import expat

    found: list[Start | Text | End] = []
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True

    def refuse(*_declared: Any) -> None:
        # Entities are declared here: they can grow without bound, or name files.
        raise UnreadableError("has a DOCTYPE, which is refused; remove it", parser.CurrentLineNumber)

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, attributes: found.append(
        Start(_local(tag), {_local(key): value for key, value in attributes.items()})
    )
    parser.CharacterDataHandler = lambda text: found.append(Text(text))
    parser.EndElementHandler = lambda tag: found.append(End(_local(tag)))
    at_end = False
    while not at_end:
        chunk = file.read(_CHUNK_BYTES)
        at_end = not chunk
        try:
            parser.Parse(chunk, at_end)
        except expat.ExpatError as error:
            yield from found
            problem = f"not well-formed XML ({expat.ErrorString(error.code)}); fetch or write it again"
            raise UnreadableError(problem, error.lineno) from error
        yield from found
        found.clear()


def _local(name: str) -> str:
    return name.rpartition(" ")[2]
