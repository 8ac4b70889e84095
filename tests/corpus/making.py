"""Small files of every format, made from their text."""

import io
import zipfile
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape


def pdf(pages: Sequence[Sequence[str]], title: str = "", *, encrypted: bool = False) -> bytes:
    """A PDF of these pages of lines, in Helvetica; the characters are those of Windows-1252."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    bodies = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for i, lines in enumerate(pages):
        bodies.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 9999] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F 3 0 R >> >> >>".encode()
        )
        shown = b"".join(b"(" + _pdf_escaped(line) + b") Tj T*\n" for line in lines)
        stream = b"BT /F 12 Tf 14 TL 20 9900 Td\n" + shown + b"ET\n"
        bodies.append(b"<< /Length %d >>\nstream\n%sendstream" % (len(stream), stream))
    bodies.append(b"<< /Title (" + _pdf_escaped(title) + b") >>")
    more = f"/Info {len(bodies)} 0 R"
    if encrypted:
        bodies.append(b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >>" % (b"ab" * 32, b"cd" * 32))
        more += f" /Encrypt {len(bodies)} 0 R /ID [<00> <00>]"
    return _pdf_file(bodies, more)


def placed_pdf(pages: Sequence[Sequence[tuple[float, float, float, str]]], *, title: str = "") -> bytes:
    """A PDF of texts at places, in the order in which they are drawn: (x, y, size, text); "□" is a picture."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    bodies = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    picture = b"q 400 0 0 600 90 120 cm BI /W 1 /H 1 /CS /G /BPC 8 ID \x10 EI Q\n"
    for i, page in enumerate(pages):
        bodies.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F 3 0 R >> >> >>".encode()
        )
        drawn = (
            picture if text == "□" else f"BT /F {size} Tf {x} {y} Td (".encode() + _pdf_escaped(text) + b") Tj ET\n"
            for x, y, size, text in page
        )
        bodies.append(_pdf_stream(b"".join(drawn), ""))
    bodies.append(b"<< /Title (" + _pdf_escaped(title) + b") /Author (Ada) /CreationDate (D:20210304101112Z) >>")
    return _pdf_file(bodies, f"/Info {len(bodies)} 0 R")


def form_pdf(*widgets: str) -> bytes:
    """A PDF of one page with the text "Form" and these annotations, each the entries of its dictionary."""
    numbers = " ".join(f"{6 + i} 0 R" for i in range(len(widgets)))
    bodies = [
        f"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [{numbers}] /DA (/F 9 Tf 0 g) >> >>".encode(),
        b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 5 0 R /Annots [{numbers}] "
        "/Resources << /Font << /F 3 0 R >> >> >>".encode(),
        _pdf_stream(b"BT /F 9 Tf 72 770 Td (Form) Tj ET", ""),
        *(f"<< /Type /Annot /Rect [9 9 99 99] {entries} >>".encode() for entries in widgets),
    ]
    return _pdf_file(bodies, "")


def _pdf_escaped(text: str) -> bytes:
    return b"".join(b"\\%03o" % byte for byte in text.encode("cp1252"))


def _pdf_file(bodies: Iterable[bytes], more: str) -> bytes:
    raw = b"%PDF-1.4\n"
    offsets = []
    for i, body in enumerate(bodies, start=1):
        offsets.append(len(raw))
        raw += b"%d 0 obj\n%s\nendobj\n" % (i, body)
    entries = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(offsets) + 1
    trailer = f"trailer\n<< /Size {size} /Root 1 0 R {more} >>\nstartxref\n{len(raw)}\n%%EOF\n"
    return raw + b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, entries) + trailer.encode()


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_RELATIONS = """<?xml version="1.0"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Id="1" Type="http://schemas.openxmlformats.org/package/2006/relationships/metadata/core-properties"
 Target="docProps/core.xml"/>
<Relationship Id="2" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
 Target="word/document.xml"/>
</Relationships>"""


def docx(body: str, title: str = "") -> bytes:
    """A Word document with this XML as its body."""
    core = f'<c xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{escape(title)}</dc:title></c>'
    return archive(
        {
            "_rels/.rels": _RELATIONS,
            "docProps/core.xml": core,
            "word/document.xml": f"<w:document {W}><w:body>{body}</w:body></w:document>",
        }
    )


def archive(parts: dict[str, str]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in parts.items():
            file.writestr(name, text)
    return raw.getvalue()


def paragraph(text: str) -> str:
    return f'<w:p><w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r></w:p>'


SITE = """<siteinfo><namespaces><namespace key="-2">Medium</namespace><namespace key="0" />
<namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace></namespaces></siteinfo>"""


def page(number: int, title: str, *texts: str, ns: int = 0, redirect: bool = False) -> str:
    """A page of a MediaWiki dump with one revision for each text."""
    revisions = "".join(
        f"<revision><id>{900 + i}</id><text xml:space='preserve'>{escape(text)}</text></revision>"
        for i, text in enumerate(texts)
    )
    to = '<redirect title="x" />' if redirect else ""
    return f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>{number}</id>{to}{revisions}</page>\n"


def dump(*pages: str) -> bytes:
    root = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">'
    return f"{root}{SITE}\n{''.join(pages)}</mediawiki>".encode()


def endless_pdf(levels: int = 9) -> bytes:
    """A small, well-formed PDF of one page: a form that shows a form ten times, which shows another ten times, …"""
    bodies = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /XObject << /Inner 5 0 R >> >> >>",
        _pdf_stream(b"/Inner Do", ""),
    ]
    for i in range(levels):
        inner = f"/Subtype /Form /BBox [0 0 612 792] /Resources << /XObject << /Inner {6 + i} 0 R >> >>"
        bodies.append(_pdf_stream(b"/Inner Do\n" * 10, inner))
    font = "/Resources << /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Courier >> >> >>"
    bodies.append(_pdf_stream(b"BT /F 9 Tf 9 9 Td (again) Tj ET", f"/Subtype /Form /BBox [0 0 612 792] {font}"))
    return _pdf_file(bodies, "")


def _pdf_stream(content: bytes, entries: str) -> bytes:
    return f"<< {entries} /Length {len(content)} >>\nstream\n".encode() + content + b"\nendstream"
