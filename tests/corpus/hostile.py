"""Small files that would take all time or memory there is, each in its own way."""

import bz2
import gzip
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.corpus import making

NUM_BYTES = 1 << 28
"""What the bombs become: more than any limit of the tests."""
_BLOCK = 1 << 20


def _repeated(head: bytes, block: bytes, tail: bytes) -> Iterator[bytes]:
    yield head
    for _ in range(NUM_BYTES // len(block)):
        yield block
    yield tail


def _zip(parts: Mapping[str, bytes], bomb: str, *content: bytes) -> bytes:
    """An archive of these parts and one that is 256 MB, packed into a quarter of one."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
        with archive.open(bomb, "w", force_zip64=True) as stream:
            for piece in _repeated(*content):
                stream.write(piece)
    return file.getvalue()


_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def docx() -> bytes:
    parts = making_parts(making.docx(making.paragraph("MARK")))
    head, tail = parts.pop("word/document.xml").split(b"MARK")
    return _zip(parts, "word/document.xml", head, b"x" * _BLOCK, tail)


def epub() -> bytes:
    container = '<container><rootfiles><rootfile full-path="b.opf"/></rootfiles></container>'
    package = (
        '<package><manifest><item id="c" href="c.xhtml" media-type="application/xhtml+xml"/></manifest>'
        '<spine><itemref idref="c"/></spine></package>'
    )
    parts = {"mimetype": b"application/epub+zip", "META-INF/container.xml": container.encode()}
    chapter = b"<html><body><p>", b"words " * (_BLOCK // 6), b"</p></body></html>"
    return _zip({**parts, "b.opf": package.encode()}, "c.xhtml", *chapter)


def xlsx() -> bytes:
    """Rows without end: 256 MB of them."""
    cell = b'<row><c t="inlineStr"><is><t>word</t></is></c></row>'
    head, tail = _sheet("MARK").split(b"MARK")
    return _zip(_workbook(), "xl/worksheets/sheet1.xml", head, cell * (_BLOCK // len(cell)), tail)


def far_cell_xlsx() -> bytes:
    """One cell at the far end of a sheet, for which all others would be made."""
    parts = _workbook()
    cells = '<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
    parts["xl/worksheets/sheet1.xml"] = _sheet(cells)
    return making.archive({name: part.decode() for name, part in parts.items()})


def _sheet(rows: str) -> bytes:
    return f'<worksheet xmlns="{_SHEET}"><sheetData>{rows}</sheetData></worksheet>'.encode()


def _workbook() -> dict[str, bytes]:
    kinds = "http://schemas.openxmlformats.org/package/2006/content-types"
    links = "http://schemas.openxmlformats.org/package/2006/relationships"
    main = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{kinds}"><Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{main}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{main}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{links}"><Relationship Id="r1" Type="{_RELATIONS}/officeDocument" '
        'Target="xl/workbook.xml"/></Relationships>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{links}"><Relationship Id="r1" '
        f'Type="{_RELATIONS}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{_SHEET}" xmlns:r="{_RELATIONS}"><sheets>'
        '<sheet name="one" sheetId="1" r:id="r1"/></sheets></workbook>',
    }
    return {name: part.encode() for name, part in parts.items()}


def jsonl_gz() -> bytes:
    """One line of 256 MB."""
    return _packed(gzip.compress, b'{"text": "', b"x" * _BLOCK, b'"}')


def xml_bz2() -> bytes:
    """A page of a dump that never ends."""
    head, tail = making.dump(making.page(1, "T", "MARK")).split(b"MARK")
    return _packed(bz2.compress, head, b"x" * _BLOCK, tail)


def _packed(pack: Callable[[bytes], bytes], head: bytes, block: bytes, tail: bytes) -> bytes:
    """Packed files one behind the other are one file."""
    return pack(head) + pack(block) * (NUM_BYTES // len(block)) + pack(tail)


def deep_html() -> bytes:
    """Elements 10,000 deep, around a text."""
    return b"<div>" * 10_000 + b"deep down" + b"</div>" * 10_000


def deep_json() -> bytes:
    return b"[" * 100_000 + b"]" * 100_000


def making_parts(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


FILES: Mapping[str, Callable[[], bytes]] = {
    "bomb.docx": docx,
    "bomb.epub": epub,
    "bomb.jsonl.gz": jsonl_gz,
    "bomb.xlsx": xlsx,
    "deep.html": deep_html,
    "deep.json": deep_json,
    "endless.pdf": making.endless_pdf,
    "endless.xml.bz2": xml_bz2,
    "far.xlsx": far_cell_xlsx,
}


def write(folder: Path) -> None:
    """All of them, with a text before and one behind."""
    for name, make in FILES.items():
        (folder / name).write_bytes(make())
    (folder / "a.txt").write_text("before")
    (folder / "z.txt").write_text("behind")
