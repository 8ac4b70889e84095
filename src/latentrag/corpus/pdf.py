"""The text of PDF files, page after page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ctypes import byref, c_double
from typing import TYPE_CHECKING, Any, BinaryIO

from latentrag.corpus import hyphens
from latentrag.corpus.pdf_layout import Character, Line, heading, lines_of, without_running_heads
from latentrag.corpus.readers import Ledger, Reader, UnreadableError
from latentrag.corpus.stating import fields_of, title_of
from latentrag.types import Document

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

_PASSWORD_ERRORS = (4, 5)  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY
_NO_CHARACTERS = re.compile("[\x00\x01\x03-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?")
_BREAK = Character("", 0, 0, 0, 0)
_NO_NOTES = (2, 16, 20)  # FPDF_ANNOT_LINK, _POPUP, _WIDGET


def pdf(file: BinaryIO, name: str, ledger: Ledger) -> Iterator[Document]:
    """One document: the text of its pages, each on a new line, with the values of form fields and the notes that were
    set into a page behind its text.

    Columns are read one after another; of a table each row is a line, its cells parted by tabs. Lines that three pages
    or more have at their top or bottom are left out. Title: the one in the file's properties, unless a program made it
    up, else the first page's heading, else the file's stem. Author and date are fields. A page without text, or one
    that cannot be read, is an empty one; a file without any text is an error.
    """
    from pypdfium2 import PdfDocument, PdfiumError

    pages: list[list[Line]] = []
    notes: list[list[str]] = []
    try:
        with PdfDocument(file) as opened:
            stated = opened.get_metadata_dict()
            opened.init_forms()
            for number in range(len(opened)):
                try:
                    lines, of_page = _page(opened, number, ledger)
                except PdfiumError:
                    ledger.leave_out("page that cannot be read")
                    lines, of_page = [], []
                pages.append(lines)
                notes.append(of_page)
    except PdfiumError as error:
        problem = f"not a whole PDF: {str(error).rstrip('.')}; fetch or export it again"
        if error.err_code in _PASSWORD_ERRORS:
            problem = "encrypted; save it without a password"
        raise UnreadableError(problem) from error
    kept, num_heads = without_running_heads(pages)
    ledger.leave_out("running head or foot", num_heads)
    if not any(kept) and not any(notes):
        raise UnreadableError(f"no text on its {len(pages)} pages, which may be scans; run OCR over it")
    text, page_starts = _text([[line.text for line in page] for page in kept], notes)
    date = _DATE.match(stated.get("CreationDate", ""))
    made = {"author": stated.get("Author"), "date": "-".join(filter(None, date.groups())) if date else None}
    yield Document(
        id=name,
        text=text,
        title=title_of(stated.get("Title", ""), heading(kept), name),
        source=ledger.file,
        page_starts=page_starts,
        fields=fields_of(made),
    )


PDF = Reader(pdf, suffixes=(".pdf",), mime_types=("application/pdf",), one_document=True, library="pypdfium2")


def _text(pages: list[list[str]], notes: list[list[str]]) -> tuple[str, tuple[int, ...]]:
    """The text of all pages, and where in it each begins."""
    known = hyphens.words(line for page in pages for line in page)
    lines = ((hyphens.joined(page, known)[0], *more) for page, more in zip(pages, notes, strict=True))
    texts = ["\n".join(filter(None, of_page)) for of_page in lines]
    text, page_starts = hyphens.joined(texts, known, kept=[i for i, more in enumerate(notes) if more])
    return text.replace(hyphens.BREAK, "-"), page_starts


def _page(opened: PdfDocument, i: int, ledger: Ledger) -> tuple[list[Line], list[str]]:
    """The lines of a page, and what stands in its form fields and notes."""
    from pypdfium2.raw import FPDF_PAGEOBJ_IMAGE

    page = opened[i]
    lines = lines_of(_characters(page))
    notes = _annotations(opened, page)
    if not lines:
        has_picture = next(page.get_objects(filter=[FPDF_PAGEOBJ_IMAGE], max_depth=3), None) is not None
        ledger.leave_out("page that is a picture, without text" if has_picture else "page without text")
    page.close()
    return lines, notes


def _characters(page: PdfPage) -> Iterator[Character]:
    """The characters of a page in the order in which they are drawn, but for those outside of it."""
    from pypdfium2 import raw

    textpage = page.get_textpage()
    low_x, low_y, high_x, high_y = page.get_bbox()
    x, y, left, right, *_ = places = [c_double() for _ in range(6)]
    origin, box = [byref(place) for place in places[:2]], [byref(place) for place in places[2:]]
    handle, half = textpage.raw, ""
    for i in range(textpage.count_chars()):
        text = chr(raw.FPDFText_GetUnicode(handle, i))
        if text in "\r\n":
            yield _BREAK
            continue
        if "\ud800" <= text <= "\udfff":  # where a character of the library has 16 bits
            half, text = (text, "") if text < "\udc00" else ("", _whole(half + text))
        raw.FPDFText_GetCharOrigin(handle, i, *origin)
        is_inside = low_x <= x.value <= high_x and low_y <= y.value <= high_y
        if text and (is_inside or text == " ") and not _NO_CHARACTERS.match(text):
            raw.FPDFText_GetCharBox(handle, i, *box)
            is_made = text == " " and raw.FPDFText_IsGenerated(handle, i)
            size = 0.0 if is_made else raw.FPDFText_GetFontSize(handle, i)
            yield Character(text, left.value, right.value, y.value, size)
            if text == hyphens.BREAK:
                yield _BREAK
    textpage.close()


def _whole(halves: str) -> str:
    return halves.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _annotations(opened: PdfDocument, page: PdfPage) -> list[str]:
    """The values of form fields after their names, and the notes that were set into the page."""
    from pypdfium2 import raw

    texts = []
    for i in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, i)
        if not annotation:
            continue
        kind = raw.FPDFAnnot_GetSubtype(annotation)
        if kind == raw.FPDF_ANNOT_WIDGET and opened.formenv:
            texts.append(_form_field(opened.formenv, annotation))
        elif kind not in _NO_NOTES:
            texts.append(_string(raw.FPDFAnnot_GetStringValue, annotation, b"Contents"))
        raw.FPDFPage_CloseAnnot(annotation)
    return list(dict.fromkeys(filter(None, texts)))


def _form_field(form: Any, annotation: Any) -> str:
    from pypdfium2 import raw

    kind = raw.FPDFAnnot_GetFormFieldType(form, annotation)
    name = _string(raw.FPDFAnnot_GetFormFieldAlternateName, form, annotation)
    name = name or _string(raw.FPDFAnnot_GetFormFieldName, form, annotation)
    if kind in (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON):
        value = _string(raw.FPDFAnnot_GetFormFieldExportValue, form, annotation)
        value = value if raw.FPDFAnnot_IsChecked(form, annotation) else ""
    elif kind in (raw.FPDF_FORMFIELD_TEXTFIELD, raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX):
        value = _string(raw.FPDFAnnot_GetFormFieldValue, form, annotation)
    else:
        return ""
    return f"{name}: {value}" if name and value else value


def _string(get: Any, *arguments: Any) -> str:
    """What a function of the library writes into a buffer as UTF-16, on lines as they are there."""
    from pypdfium2.raw import FPDF_WCHAR

    num_bytes = get(*arguments, None, 0)
    buffer = (FPDF_WCHAR * max(num_bytes // 2, 1))()
    get(*arguments, buffer, num_bytes)
    text = bytes(buffer)[: max(num_bytes - 2, 0)].decode("utf-16-le", "replace")
    return _NO_CHARACTERS.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
