"""The text of PDF files, page after page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import PurePath
from typing import TYPE_CHECKING, BinaryIO

from latentrag.corpus.readers import Ledger, Reader, UnreadableError
from latentrag.types import Document

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

_PASSWORD_ERRORS = (4, 5)  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY
# U+0002 stands where PDFium has joined a word that was hyphenated at the end of a line.
_NO_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")


def pdf(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """One document: the text of its pages, each on a new line. Title: the one in the file's properties, else the
    file's stem. A page without text is an empty one; a file without any is an error."""
    from pypdfium2 import PdfDocument, PdfiumError

    pages: list[str] = []
    number = 0
    try:
        with PdfDocument(file) as opened:
            title = " ".join(opened.get_metadata_value("Title").split())
            for number in range(1, len(opened) + 1):
                pages.append(_page_text(opened, number - 1))
    except PdfiumError as error:
        reason = str(error).rstrip(".")
        if number:
            problem = f"page {number} cannot be read: {reason}; fetch or export the file again"
        elif error.err_code in _PASSWORD_ERRORS:
            problem = "encrypted; save it without a password"
        else:
            problem = f"not a whole PDF: {reason}; fetch or export it again"
        raise UnreadableError(problem) from error
    ledger.leave_out("page without text", sum(not page.strip() for page in pages))
    if not any(page.strip() for page in pages):
        raise UnreadableError(f"no text on its {len(pages)} pages, which may be scans; run OCR over it")
    yield Document(
        id=name,
        text="\n".join(pages),
        title=title or PurePath(name).stem,
        source=ledger.file,
        page_starts=tuple(accumulate((len(page) + 1 for page in pages[:-1]), initial=0)),
    )


PDF = Reader(pdf, suffixes=(".pdf",), mime_types=("application/pdf",), one_document=True, library="pypdfium2")


def _page_text(opened: PdfDocument, i: int) -> str:
    page = opened[i]
    textpage = page.get_textpage()
    text = textpage.get_text_bounded().replace("\r\n", "\n").replace("\r", "\n")
    textpage.close()
    page.close()
    return _NO_CHARACTERS.sub("", text)
