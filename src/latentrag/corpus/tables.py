"""Tables: CSV, and sheets of Excel by calamine. A document for each row, its cells after the heads of columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time
from itertools import chain, islice
from pathlib import PurePath
from typing import BinaryIO

from latentrag.corpus import ooxml
from latentrag.corpus.encodings import text_lines
from latentrag.corpus.readers import Ledger, Reader, UnreadableError
from latentrag.corpus.stating import fields_of
from latentrag.corpus.text import KNOWN_FIELDS, delimited_rows, row_document
from latentrag.types import Document, Scalar

_DELIMITERS = ",;\t|"
_BESIDES = re.compile(r"[/\\](chart|comments)\d*\.xml$")
_QUOTED = re.compile(r'"[^"]*"')
_NUMBER = re.compile(r"[\d.,+\-−%€$£: ]*")


def csv(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """A document for each row, parted by commas, semicolons, tabs or bars, whichever the first line has most of."""
    lines = text_lines(file, ledger)
    first = list(islice(lines, 1))
    line = _QUOTED.sub("", first[0][1]) if first else ""
    delimiter = max(_DELIMITERS, key=line.count)
    rows = ((f"{name}:{number}", row) for number, row in delimited_rows(chain(first, lines), delimiter))
    yield from _documents(rows, PurePath(name).stem, {}, ledger)


def excel(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """A document for each row of each sheet, whose name is the field "section". Formulas are their last values; charts
    and pages of comments are counted."""
    from python_calamine import CalamineError, CalamineWorkbook

    with ooxml.opened(file, "xlsx", "the older .xls; save it as .xlsx without a password") as archive:
        for part in archive.namelist():
            ooxml.check(archive, part)
            if besides := _BESIDES.search(part):
                ledger.leave_out({"comments": "page of comments"}.get(besides[1], besides[1]))
    file.seek(0)
    try:
        book = CalamineWorkbook.from_filelike(file)
        for sheet in book.sheet_names:
            rows = enumerate(book.get_sheet_by_name(sheet).iter_rows(), start=1)
            cells = ((f"{name}:{sheet}:{i}", [_shown(value) for value in row]) for i, row in rows)
            yield from _documents(cells, PurePath(name).stem, {"section": sheet}, ledger)
    except CalamineError as error:
        raise UnreadableError(f"not a whole .xlsx file ({error}); save it again") from error


CSV = Reader(csv, suffixes=(".csv",), mime_types=("text/csv",), packed=True)
EXCEL = Reader(
    excel,
    suffixes=(".xlsx",),
    mime_types=("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",),
    library="python_calamine",
)


def _documents(
    rows: Iterable[tuple[str, Sequence[str]]], title: str, fields: dict[str, Scalar], ledger: Ledger
) -> Iterator[Document]:
    """A document for each row that is not blank. The first row has the heads of the columns, if it can; those of
    columns without another cell are a document of their own, the last."""
    heads: list[str] | None = None
    unseen: dict[str, None] = {}
    key_of_heads = ""
    for key, row in rows:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if heads is None:
            heads = cells if _are_heads(cells) else []
            if heads:
                unseen, key_of_heads = dict.fromkeys(filter(None, heads)), key
                continue
        named = {head or str(i): cell for i, (head, cell) in enumerate(zip(heads, cells, strict=False), start=1)}
        for head in [head for head in unseen if named.get(head)]:
            del unseen[head]
        lower = {head.lower(): cell for head, cell in named.items() if cell}
        if lower.get("text"):
            ledger.leave_out("cell of a column besides the text's", len(lower.keys() - KNOWN_FIELDS))
            yield row_document({**lower, "title": lower.get("title") or title}, key, ledger.file)
            continue
        shown = [f"{head}: {cell}" for head, cell in named.items() if cell] + [*filter(None, cells[len(heads) :])]
        yield Document(key, "\n".join(shown), title, ledger.file, fields={**fields, **fields_of(lower)})
    if unseen:
        yield Document(key_of_heads, "\n".join(unseen), title, ledger.file, fields=fields)


def _are_heads(cells: list[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return len(set(filled)) == len(filled) > 1 and not any(map(_NUMBER.fullmatch, filled))


def _shown(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    return value.isoformat() if isinstance(value, date | time) else str(value)
