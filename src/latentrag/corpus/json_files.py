"""JSON files, and notebooks of Jupyter, which are JSON too."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, BinaryIO

from latentrag.corpus.encodings import decode
from latentrag.corpus.readers import Ledger, Reader, UnreadableError
from latentrag.corpus.stating import fields_of, markdown_heading, title_of
from latentrag.corpus.text import json_lines, row_document
from latentrag.types import Document

_MAX_BYTES = 1 << 28


def json_file(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """A document for each object of a list, which may be the only one in an object; else one for all that is there.

    Objects with a text are read as lines of JSON lines are, others as lines of "name: value". A file of JSON lines is
    read as such.
    """
    raw, value = _loaded(file, ledger)
    if value is None:
        yield from json_lines(io.BytesIO(raw), name, ledger)
        return
    lists = [each for each in value.values() if _are_objects(each)] if isinstance(value, dict) else []
    rows = value if _are_objects(value) else lists[0] if len(lists) == 1 and len(value) == 1 else [value]
    for i, row in enumerate(rows, start=1):
        key = f"{name}:{i}" if len(rows) > 1 else name
        stated = row if isinstance(row, dict) else {}
        if isinstance(stated.get("text"), str | list) or isinstance(stated.get("contents"), str):
            yield row_document(stated, key, ledger.file)
            continue
        title = next((stated[field] for field in ("title", "name") if isinstance(stated.get(field), str)), "")
        text = "\n".join(_lines(row))
        yield Document(key, _valid(text), _valid(title) or PurePath(name).stem, ledger.file, fields=fields_of(stated))


def notebook(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """One document: what is written in the cells, code as well, parted by blank lines; outputs are counted. Title: the
    first heading, else the file's stem."""
    loaded = _loaded(file, ledger)[1]
    book: dict[str, Any] = loaded if isinstance(loaded, dict) else {}
    sheets: Any = book.get("worksheets")  # in the older format
    cells = sheets[0].get("cells") if _are_objects(sheets) else book.get("cells")
    if not isinstance(cells, list):
        raise UnreadableError("no cells in it, so it is no notebook; save it again")
    texts, headings = [], []
    for cell in filter(lambda each: isinstance(each, dict), cells):
        text = _valid(_text(cell.get("source", cell.get("input"))))
        texts.append(text)
        headings += [markdown_heading(text)] if cell.get("cell_type") in ("markdown", "heading") else []
        ledger.leave_out("output of a cell", len(cell.get("outputs") or ()))
    metadata = book.get("metadata")
    stated: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
    title = title_of(_text(stated.get("title")), next(filter(None, headings), ""), name)
    authors = fields_of({"author": stated.get("authors"), "date": stated.get("date")})
    yield Document(name, "\n\n".join(filter(None, texts)), title, ledger.file, fields=authors)


JSON = Reader(json_file, suffixes=(".json",), mime_types=("application/json",))
NOTEBOOK = Reader(notebook, suffixes=(".ipynb",), mime_types=("application/x-ipynb+json",), one_document=True)


def _loaded(file: BinaryIO, ledger: Ledger) -> tuple[bytes, Any]:
    """The file, and what is in it; None if there are several values after each other. Raises: UnreadableError."""
    raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise UnreadableError(f"longer than {_MAX_BYTES >> 20} MiB; convert it to JSON lines")
    try:
        return raw, json.loads(decode(raw, ledger))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return raw, None
        raise UnreadableError(f"not valid JSON ({error.msg}, column {error.colno})", error.lineno) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"not JSON that can be read ({error})") from error


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _lines(value: object, name: str = "") -> Iterator[str]:
    """``name: value`` for all that is in an object; names of what is within each other are joined by points."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else ((name, each) for each in value)
        for key, each in inner:
            yield from _lines(each, f"{name}.{key}" if name and isinstance(value, dict) else str(key))
    elif value is not None and value != "":
        text = value if isinstance(value, str) else json.dumps(value)
        yield f"{name}: {text}" if name else text


def _text(value: object) -> str:
    """Notebooks have texts as lists of lines."""
    return "".join(map(str, value)) if isinstance(value, list) else value if isinstance(value, str) else ""


def _valid(text: str) -> str:
    """Without half characters, which JSON can spell."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
