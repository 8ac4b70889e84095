"""Text, Markdown, JSON lines and TSV, and what other formats need too: XML as a stream."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import PurePath
from types import MappingProxyType
from typing import IO, BinaryIO, Literal, NamedTuple
from xml.parsers import expat

from latentrag.corpus.encodings import decode, text_lines
from latentrag.corpus.readers import Ledger, Reader, UnreadableError
from latentrag.corpus.stating import FIELD_KEYS, fields_of, front_matter, markdown_heading, title_of
from latentrag.types import Document

_ID_FIELDS = ("id", "_id", "wikipedia_id")
_TITLE_FIELDS = ("title", "wikipedia_title")
KNOWN_FIELDS = frozenset((*_ID_FIELDS, *_TITLE_FIELDS, "text", "contents", "source", *chain(*FIELD_KEYS.values())))
"""What is read of a row that has a text."""
_TSV_COLUMNS = ("id", "text", "title")
_MAX_LINES_OF_A_ROW = 1000

_UNDERLINED = re.compile(r"^[ \t]*(\S.*?)[ \t]*\r?\n(([=\-`:'\"~^_*+#<>.])\3+)[ \t]*\r?$", re.MULTILINE)
_RST_FIELD = re.compile(r"^:(\w+):[ \t]+(.*?)[ \t]*$", re.MULTILINE)
_RST_FIELDS = 2_000
# Possessive (*+), so that a quote that is never closed costs one pass over the row and not many.
_UNCLOSED_FIELD = re.compile(r'"(?:[^"]+|"")*+\Z')


def plain_text(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """One document: the file's text to the character, line ends included. Title: the file's stem."""
    text = decode(file.read(), ledger)
    yield Document(id=name, text=text, title=PurePath(name).stem, source=ledger.file)


def markdown(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """As plain text, marks and all. Title: the one that its front matter states, else the first heading of the first
    level, else the first of any level, else the file's stem. Front matter gives fields too."""
    for document in plain_text(file, name, ledger):
        stated, start = front_matter(document.text)
        title = title_of(str(stated.get("title") or ""), markdown_heading(document.text[start:]), name)
        yield replace(document, title=title, fields=fields_of(stated))


def restructured_text(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """As plain text, marks and all. Title: the first underlined heading, else the file's stem. Fields before the first
    paragraph (``:Author: …``) are fields of the passages."""
    for document in plain_text(file, name, ledger):
        headings = (found[1] for found in _UNDERLINED.finditer(document.text) if len(found[2]) >= len(found[1]))
        title = title_of("", next(headings, ""), name)
        yield replace(document, title=title, fields=fields_of(dict(_RST_FIELD.findall(document.text[:_RST_FIELDS]))))


def json_lines(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """A document for each line that is not blank, under whichever of the known field names the row has.

    | | id | title | text |
    |---|---|---|---|
    | DPR | id | title | text |
    | KILT knowledge source | _id, wikipedia_id | wikipedia_title | text, a list of paragraphs |
    | BEIR | _id | title | text |
    | FlashRAG | id | first line of contents | contents after it |

    A row may name its ``source``; date, author, language and section become fields (``stating.fields_of``). Null counts
    as absent, other fields are ignored.
    """
    for number, line in text_lines(file, ledger):
        if not line.strip():
            continue
        try:
            document = row_document(_json_object(line.rstrip()), f"{name}:{number}", ledger.file)
        except UnreadableError as error:
            raise UnreadableError(f"{error.problem}; fix or remove the line", number) from error
        yield document


def tsv(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """A passage for each row of id, text, title, as in DPR's psgs_w100.tsv; a header may give another order."""
    columns: tuple[str, ...] = _TSV_COLUMNS
    first = True
    for number, fields in delimited_rows(text_lines(file, ledger)):
        names = tuple(field.strip().lower() for field in fields) if first else ()
        first = False
        if sorted(names) == sorted(_TSV_COLUMNS):
            columns = names
            continue
        if len(fields) != len(columns):
            raise UnreadableError(
                f"{len(fields)} tab-separated columns, needed {', '.join(columns)}; fix the row", number
            )
        row = dict(zip(columns, fields, strict=True))
        yield Document(row["id"] or f"{name}:{number}", row["text"], title=row["title"], source=ledger.file, whole=True)


TEXT = Reader(plain_text, suffixes=(".txt",), mime_types=("text/plain",), one_document=True)
RST = Reader(restructured_text, suffixes=(".rst",), mime_types=("text/x-rst",), one_document=True)
MARKDOWN = Reader(markdown, suffixes=(".md", ".markdown"), mime_types=("text/markdown",), one_document=True)
JSON_LINES = Reader(json_lines, suffixes=(".jsonl",), mime_types=("application/jsonl",), packed=True)
TSV = Reader(tsv, suffixes=(".tsv",), mime_types=("text/tab-separated-values",), packed=True)


def _json_object(line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UnreadableError(f"not valid JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"not JSON that can be read ({error})") from error
    if not isinstance(row, dict):
        raise UnreadableError(f"{reprlib.repr(row)} is not an object, needed one with a text")
    return row


def row_document(row: Mapping[str, object], fallback_id: str, source: str) -> Document:
    """A row with one of the known names for a text. Raises: UnreadableError."""
    title = _string(row, *_TITLE_FIELDS)
    if row.get("text") is not None:
        text = _text(row["text"])
    elif row.get("contents") is not None:
        title, text = _title_and_text(_string(row, "contents"), title)
    else:
        raise UnreadableError(f"no text among its fields {reprlib.repr(list(row))}, needed text or contents")
    key = _string(row, *_ID_FIELDS, numbers=True) or fallback_id
    return Document(key, text, title=title, source=_string(row, "source") or source, fields=fields_of(row))


def _string(row: Mapping[str, object], *fields: str, numbers: bool = False) -> str:
    """The first of the fields that is there and not null, else nothing. ``numbers``: it may be a whole number too."""
    for field in fields:
        value = row.get(field)
        if value is not None:
            is_number = numbers and isinstance(value, int) and not isinstance(value, bool)
            return str(value) if is_number else _valid_string(value, field)
    return ""


def _text(value: object) -> str:
    """KILT's paragraphs are joined by line feeds; most of them bring one already."""
    if isinstance(value, list):
        return "\n".join(_valid_string(paragraph, "a paragraph of text").rstrip("\n") for paragraph in value)
    return _valid_string(value, "text")


def _title_and_text(contents: str, title: str) -> tuple[str, str]:
    """FlashRAG's ``contents``: the title, mostly in quotes, and the text after it.

    Where the row has a title of its own, the first line is taken for it only if it says the same.
    """
    first, line_feed, rest = contents.partition("\n")
    first = first.strip()
    if len(first) > 1 and first[0] == first[-1] == '"':
        first = first[1:-1]
    if line_feed and title in ("", first):
        return first, rest
    return title, contents


def _valid_string(value: object, field: str) -> str:
    """A string that is one. JSON can spell half a surrogate pair, which no UTF-8 and no tokenizer has."""
    if not isinstance(value, str):
        raise UnreadableError(f"{field} is {reprlib.repr(value)}, needed a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UnreadableError(f"{field} has half a character (\\u{ord(value[error.start]):04x} alone)") from error
    return value


def delimited_rows(lines: Iterator[tuple[int, str]], delimiter: str = "\t") -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with the number of their first line.

    Not the csv module: its limit on a field's length is global to the process, and one stray quote makes it
    swallow the rest of the file.
    """
    for number, line in lines:
        if not line.strip():
            continue
        row, num_lines = line, 1
        fields = _fields(row, number, delimiter)
        while fields is None:
            _, following = next(lines, (0, ""))
            num_lines += 1
            if not following or num_lines > _MAX_LINES_OF_A_ROW:
                raise _unclosed(number)
            row += following
            fields = _fields(row, number, delimiter)
        yield number, fields


def _fields(row: str, number: int, delimiter: str) -> list[str] | None:
    """The fields of a row; None if a quoted one goes on in the next line.

    A field is quoted if it begins with a quote and its closing quote is its last character; quotes inside it
    are doubled, delimiters and line feeds are its own. In any other field a quote is a character like others.
    """
    row = row.removesuffix("\n").removesuffix("\r") + delimiter
    quoted_field = _quoted_field(delimiter)
    fields = []
    start = 0
    while start < len(row):
        quoted = quoted_field.match(row, start)
        if quoted:
            fields.append(quoted[1].replace('""', '"'))
            start = quoted.end()
            continue
        if _UNCLOSED_FIELD.match(row, start):
            return None
        end = row.index(delimiter, start)
        if "\n" in row[start:end]:
            raise _unclosed(number)
        fields.append(row[start:end])
        start = end + 1
    return fields


@cache
def _quoted_field(delimiter: str) -> re.Pattern[str]:
    return re.compile(rf'"((?:[^"]+|"")*+)"{re.escape(delimiter)}')


def _unclosed(number: int) -> UnreadableError:
    return UnreadableError(
        "a quote opens a field and is not closed; close it, and double the quotes inside the field", number
    )


# XML: files that may be hostile, so no entities of their own, and nothing is fetched

_CHUNK_BYTES = 1 << 16


class XmlEvent(NamedTuple):
    """``<tag …>``, a piece of the text between two tags, which may come in several, or ``</tag>``.

    ``tag`` is that of the element, for a text the one that it is in; ``parent`` is around that one, empty for the root.
    Tags and the names of attributes are without their namespace.
    """

    kind: Literal["start", "text", "end"]
    parent: str
    tag: str
    text: str = ""
    attributes: Mapping[str, str] = MappingProxyType({})


def xml_events(file: IO[bytes]) -> Iterator[XmlEvent]:
    """What is in an XML file, in constant memory. Raises: UnreadableError, with the line."""
    parsed: list[XmlEvent] = []
    opened = [""]
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True

    def refuse(*_declared: object) -> None:
        # Entities are declared here: they can grow without bound, or name files.
        raise UnreadableError("has a DOCTYPE, which is refused; remove it", parser.CurrentLineNumber)

    def start(tag: str, attributes: dict[str, str]) -> None:
        local = {_local(key): value for key, value in attributes.items()}
        parsed.append(XmlEvent("start", opened[-1], _local(tag), attributes=local))
        opened.append(_local(tag))

    def end(_: str) -> None:
        tag = opened.pop()
        parsed.append(XmlEvent("end", opened[-1], tag))

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.CharacterDataHandler = lambda text: parsed.append(XmlEvent("text", opened[-2], opened[-1], text))
    parser.EndElementHandler = end
    at_end = False
    while not at_end:
        chunk = file.read(_CHUNK_BYTES)
        at_end = not chunk
        try:
            parser.Parse(chunk, at_end)
        except expat.ExpatError as error:
            yield from parsed
            problem = f"not well-formed XML ({expat.ErrorString(error.code)}); fetch or write it again"
            raise UnreadableError(problem, error.lineno) from error
        yield from parsed
        parsed.clear()


def _local(name: str) -> str:
    return name.rpartition(" ")[2]
