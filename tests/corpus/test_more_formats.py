"""reStructuredText, CSV, JSON, notebooks, EPUB, PowerPoint and Excel: what becomes of a file of each."""

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from xml.sax.saxutils import escape
from zipfile import ZipFile

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from latentrag.corpus import Ledger, passages, read
from latentrag.errors import DataError
from tests.corpus import making

PROSE = "The keeper of the lighthouse writes down every evening what ships have passed, and which way the wind blew. "


def write(path, content) -> list:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read(path))


def test_restructured_text(tmp_path):
    text = f".. comment\n\n========\nThe Quay\n========\n\n:Author: Ada\n:Date: 2021-03-04\n\n{PROSE}\n\nPart\n----\n"
    (document,) = write(tmp_path / "a.rst", text)
    assert (document.id, document.title, document.text) == ("a.rst", "The Quay", text)
    assert document.fields == {"author": "Ada", "date": "2021-03-04"}
    (document,) = write(tmp_path / "b.rst", "plain\n--\n\nno heading")
    assert document.title == "b"


def test_markdown_under_its_long_name(tmp_path):
    assert [document.title for document in write(tmp_path / "a.markdown", "# Title\n")] == ["Title"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_row_of_csv_is_a_document_with_the_heads_of_its_columns(tmp_path, delimiter):
    rows = [["Berth", "Length", "Author"], ["A1", '12 m, "long"', "Ada"], ["", "", ""], ["B7", "", "Bo"]]
    lines = "".join(delimiter.join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row) + "\r\n" for row in rows)
    first, last = write(tmp_path / "berths.csv", lines)
    assert (first.id, first.title, first.text) == (
        "berths.csv:2",
        "berths",
        'Berth: A1\nLength: 12 m, "long"\nAuthor: Ada',
    )
    assert (last.id, last.text, last.fields) == ("berths.csv:4", "Berth: B7\nAuthor: Bo", {"author": "Bo"})


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("id,Title,TEXT\n7,T,one\n8,,two\n", [("7", "one", "T"), ("8", "two", "a")]),
        ("1,2\n3,4\n", [("a.csv:1", "1\n2", "a"), ("a.csv:2", "3\n4", "a")]),
        ("name,note\nx,y,more\n", [("a.csv:2", "name: x\nnote: y\nmore", "a")]),
        ('name,note\nx,"two\nlines"\n', [("a.csv:2", "name: x\nnote: two\nlines", "a")]),
        ("", []),
        # Heads of columns that no row fills.
        ("name,note\n", [("a.csv:1", "name\nnote", "a")]),
        (
            "name,note,more\nx,y,\nz,,\n",
            [("a.csv:2", "name: x\nnote: y", "a"), ("a.csv:3", "name: z", "a"), ("a.csv:1", "more", "a")],
        ),
        ("id,text,seen\n7,one,\n", [("7", "one", "a"), ("a.csv:1", "seen", "a")]),
    ],
)
def test_csv(tmp_path, text, rows):
    assert [(d.id, d.text, d.title) for d in write(tmp_path / "a.csv", text)] == rows


def test_columns_beside_a_text_are_counted(tmp_path):
    ledgers: list[Ledger] = []
    (tmp_path / "a.csv").write_text("id,Text,note,Author,mark\n7,one,two,Ada,\n8,three,four,,five\n")
    documents = list(read(tmp_path / "a.csv", on_ledger=ledgers.append))
    assert [document.text for document in documents] == ["one", "three"]
    assert ledgers[0].left_out == {"cell of a column besides the text's": 3}


def test_csv_in_another_encoding_is_guessed(tmp_path):
    (document,) = write(tmp_path / "a.csv", "Name;Ort\nMüller;Köln am großen Fluß\n".encode("cp1252"))
    assert document.text == "Name: Müller\nOrt: Köln am großen Fluß"


@pytest.mark.parametrize(
    ("value", "documents"),
    [
        ([{"text": "one", "title": "T", "id": 7}, {"text": "two"}], [("7", "one", "T"), ("a.json:2", "two", "")]),
        ({"data": [{"name": "A1", "size": {"m": 12, "tags": ["x", "y"]}}, {"name": "B"}]},
         [("a.json:1", "name: A1\nsize.m: 12\nsize.tags: x\nsize.tags: y", "A1"), ("a.json:2", "name: B", "B")]),
        ({"title": "T", "open": True, "none": None}, [("a.json", "title: T\nopen: true", "T")]),
        (["one", "two"], [("a.json", "one\ntwo", "a")]),
        ("\ud83d", [("a.json", "\ufffd", "a")]),
    ],
)  # fmt: skip
def test_json(tmp_path, value, documents):
    assert [(d.id, d.text, d.title) for d in write(tmp_path / "a.json", json.dumps(value))] == documents


def test_json_lines_in_a_json_file(tmp_path):
    assert [d.text for d in write(tmp_path / "a.json", '{"text": "one"}\n{"text": "two"}\n')] == ["one", "two"]


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 5000])
def test_json_that_is_none_is_named(tmp_path, text):
    with pytest.raises(DataError, match=r"a\.json.*not (valid )?JSON"):
        write(tmp_path / "a.json", text)


def test_a_notebook(tmp_path):
    cells = [
        {"cell_type": "code", "source": ["import sea\n", "# no heading"], "outputs": [{"text": "x"}, {"text": "y"}]},
        {"cell_type": "markdown", "source": "# Tides\n\nHigh and low."},
    ]
    book = {"nbformat": 4, "metadata": {"authors": [{"name": "Ada"}]}, "cells": cells}
    (tmp_path / "a.ipynb").write_text(json.dumps(book))
    ledgers: list[Ledger] = []
    (document,) = read(tmp_path / "a.ipynb", on_ledger=ledgers.append)
    assert document.text == "import sea\n# no heading\n\n# Tides\n\nHigh and low."
    assert (document.title, document.fields) == ("Tides", {"author": "Ada"})
    assert ledgers[0].left_out == {"output of a cell": 2}
    older = {"nbformat": 3, "worksheets": [{"cells": [{"cell_type": "code", "input": "x = 1"}]}]}
    assert [d.text for d in write(tmp_path / "b.ipynb", json.dumps(older))] == ["x = 1"]
    for wrong in ("[]", "{}", "3", '{"cells": 3}'):
        with pytest.raises(DataError, match="no cells in it"):
            write(tmp_path / "c.ipynb", wrong)


CONTAINER = "<container><rootfiles><rootfile full-path='OEBPS/book.opf'/></rootfiles></container>"
OPF = """<package><metadata xmlns:dc="dc"><dc:title>The Lamp</dc:title><dc:creator>Ada</dc:creator>
<dc:language>en</dc:language></metadata><manifest><item id="b" href="b.xhtml" media-type="application/xhtml+xml"/>
<item id="a" href="a%20one.xhtml" media-type="application/xhtml+xml"/>
<item id="e" href="e.xhtml" media-type="application/xhtml+xml"/>
<item id="s" href="s.css" media-type="text/css"/></manifest>
<spine><itemref idref="a"/><itemref idref="e"/><itemref idref="b"/><itemref idref="s"/></spine></package>"""


def test_an_e_book_is_a_document_a_chapter_in_the_order_of_its_spine(tmp_path):
    def chapter(title, text):
        return f"<?xml version='1.0'?><html><head><title>{title}</title></head><body>{text}</body></html>"

    parts = {
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": OPF,
        "OEBPS/a one.xhtml": chapter("One", f"<p>{PROSE * 2}</p>"),
        "OEBPS/b.xhtml": chapter("Two", f"<h1>Two</h1><p>{PROSE * 2}</p>"),
        "OEBPS/e.xhtml": chapter("Empty", ""),
    }
    (tmp_path / "lamp.epub").write_bytes(making.archive(parts))
    ledgers: list[Ledger] = []
    one, two = read(tmp_path / "lamp.epub", on_ledger=ledgers.append)
    assert (one.id, one.title, one.text) == ("lamp.epub:a one.xhtml", "The Lamp", (PROSE * 2).strip())
    assert two.fields == {"author": "Ada", "language": "en", "section": "Two"}
    assert ledgers[0].left_out == {"page of a book without text": 1}
    del parts["OEBPS/b.xhtml"]
    with pytest.raises(DataError, match=r"no OEBPS/b\.xhtml in it"):
        write(tmp_path / "a.epub", making.archive(parts))


A = 'xmlns:a="a" xmlns:p="p" xmlns:r="r"'
RELATION = '<Relationship Id="{}" Type="http://x/{}" Target="{}"/>'


def relations(*rows: tuple[str, str, str]) -> str:
    return f"<Relationships>{''.join(RELATION.format(*row) for row in rows)}</Relationships>"


def shape(*paragraphs: str, kind: str = "body") -> str:
    text = "".join(f"<a:p><a:r><a:rPr/><a:t>{escape(each)}</a:t></a:r></a:p>" for each in paragraphs)
    return f'<p:sp><p:nvPr><p:ph type="{kind}"/></p:nvPr><p:txBody>{text}</p:txBody></p:sp>'


def slide(content: str) -> str:
    return f"<p:sld {A}>{content}</p:sld>"


def test_slides_are_pages_in_the_order_of_the_presentation(tmp_path):
    table = "".join(
        f"<a:tr>{''.join(f'<a:tc>{shape(cell)}</a:tc>' for cell in row)}</a:tr>" for row in (["Berth", "m"], ["A1", ""])
    )
    power = '<p:sp><a:p><a:r><a:t>10</a:t></a:r><a:r><a:rPr baseline="30000"/><a:t>6</a:t></a:r></a:p></p:sp>'
    number = '<p:sp><a:p><a:fld type="slidenum"><a:t>2</a:t></a:fld></a:p></p:sp>'
    parts = {
        "_rels/.rels": relations(("1", "officeDocument", "ppt/presentation.xml")),
        "ppt/presentation.xml": f'<p:presentation {A}><p:sldIdLst><p:sldId id="256" r:id="r2"/>'
        '<p:sldId id="257" r:id="r1"/></p:sldIdLst></p:presentation>',
        "ppt/_rels/presentation.xml.rels": relations(
            ("r1", "slide", "slides/s1.xml"), ("r2", "slide", "slides/s2.xml")
        ),
        "ppt/slides/s1.xml": slide(f"{table}{power}{number}"),
        "ppt/slides/s2.xml": slide(shape("The quay", kind="title") + shape("old & new", "boats")),
        "ppt/slides/_rels/s2.xml.rels": relations(
            ("n", "notesSlide", "../notes/n.xml"), ("c", "chart", "../c.xml"), ("k", "comments", "../k.xml")
        ),
        "ppt/notes/n.xml": slide(shape("Say hello.")),
    }
    (tmp_path / "talk.pptx").write_bytes(making.archive(parts))
    ledgers: list[Ledger] = []
    (document,) = read(tmp_path / "talk.pptx", on_ledger=ledgers.append)
    assert document.text == "The quay\nold & new\nboats\nSay hello.\nBerth\tm\t\nA1\t\t\n10^6"
    assert document.title == "The quay"
    assert ledgers[0].left_out == {"chart": 1, "page of comments": 1, "number or date of a slide": 1}
    assert [z.page for z in passages(tmp_path / "talk.pptx", words=8)] == [1, 2]
    parts["ppt/slides/s1.xml"] = parts["ppt/slides/s2.xml"] = slide("")
    del parts["ppt/notes/n.xml"], parts["ppt/slides/_rels/s2.xml.rels"]
    with pytest.raises(DataError, match="no text on its 2 slides"):
        write(tmp_path / "b.pptx", making.archive(parts))


SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def workbook(*rows: Sequence[object]) -> bytes:
    def cell(value: object, place: str) -> str:
        if isinstance(value, str):
            return f'<c r="{place}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        return "" if value is None else f'<c r="{place}"><v>{value}</v></c>'

    made = "".join(
        f'<row r="{i}">{"".join(cell(value, f"{chr(64 + j)}{i}") for j, value in enumerate(row, start=1))}</row>'
        for i, row in enumerate(rows, start=1)
    )
    package = "http://schemas.openxmlformats.org/package/2006"
    rels = '<Relationships xmlns="{}/relationships"><Relationship Id="r1" Type="{}/{}" Target="{}"/></Relationships>'
    return making.archive(
        {
            "[Content_Types].xml": f'<Types xmlns="{package}/content-types"/>',
            "_rels/.rels": rels.format(package, OFFICE, "officeDocument", "xl/workbook.xml"),
            "xl/workbook.xml": f'<workbook xmlns="{SHEET}" xmlns:r="{OFFICE}"><sheets>'
            '<sheet name="Prices" sheetId="1" r:id="r1"/></sheets></workbook>',
            "xl/_rels/workbook.xml.rels": rels.format(package, OFFICE, "worksheet", "worksheets/sheet1.xml"),
            "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{SHEET}"><sheetData>{made}</sheetData></worksheet>',
        }
    )


def test_charts_and_comments_of_a_workbook_are_counted(tmp_path):
    ledgers: list[Ledger] = []
    with ZipFile(tmp_path / "a.xlsx", "w") as archive, ZipFile(BytesIO(workbook(["Berth", "Price"]))) as plain:
        for part in plain.namelist():
            archive.writestr(part, plain.read(part))
        for part in ("xl/comments1.xml", "xl/charts/chart1.xml", "xl/charts/chart2.xml", "xl/charts/style1.xml"):
            archive.writestr(part, "<a/>")
    (document,) = read(tmp_path / "a.xlsx", on_ledger=ledgers.append)
    assert (document.id, document.text) == ("a.xlsx:Prices:1", "Berth\nPrice")
    assert ledgers[0].left_out == {"page of comments": 1, "chart": 2}


def test_a_row_of_a_sheet_is_a_document_with_the_heads_of_its_columns(tmp_path):
    raw = workbook(["Berth", "Price"], ["A1", 90], [None, None], ["B7 & C", 140.5])
    first, last = write(tmp_path / "berths.xlsx", raw)
    assert (first.id, first.title, first.text) == ("berths.xlsx:Prices:2", "berths", "Berth: A1\nPrice: 90")
    assert (last.id, last.text, last.fields) == (
        "berths.xlsx:Prices:4",
        "Berth: B7 & C\nPrice: 140.5",
        {"section": "Prices"},
    )


@pytest.mark.parametrize("name", ["a.xlsx", "a.pptx", "a.epub"])
def test_archives_that_are_none_or_something_else_are_named(tmp_path, name):
    for raw, problem in ((b"PK\x03\x04junk", "not a whole "), (making.archive({"x": "y"}), "a.")):
        with pytest.raises(DataError, match=problem):
            write(tmp_path / name, raw)
    if name != "a.epub":
        with pytest.raises(DataError, match="encrypted, or the older"):
            write(tmp_path / name, b"\xd0\xcf\x11\xe0" * 99)


texts = st.lists(st.text("abcé ü\u4e2d.,;\"'", min_size=1).filter(str.strip), min_size=2, max_size=6)


def csv_of(cells: list[str]) -> str:
    return "first,second\n" + "".join(f'"{cell.replace(chr(34), chr(34) * 2)}",x\n' for cell in cells)


def notebook_of(cells: list[str]) -> str:
    return json.dumps({"cells": [{"cell_type": "markdown", "source": [cell]} for cell in cells]})


MADE: dict[str, Callable[[list[str]], str | bytes]] = {
    "a.csv": csv_of,
    "a.json": json.dumps,
    "b.json": lambda cells: json.dumps([{"cell": cell} for cell in cells]),
    "a.ipynb": notebook_of,
    "a.rst": "\n\n".join,
    "a.xlsx": lambda cells: workbook(["first", "second"], *([cell, "x"] for cell in cells)),
}


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=20)
@given(texts, st.integers(1, 5))
def test_every_word_of_a_file_is_in_a_passage_that_is_a_slice_of_its_document(tmp_path_factory, name, cells, words):
    path = tmp_path_factory.getbasetemp() / name
    content = MADE[name](cells)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    documents = {document.id: document for document in read(path)}
    found = list(passages(path, words=words))
    for z in found:
        assert z.text == documents[z.id.partition("#")[0]].text[z.start : z.end]
    written = {word for z in found for word in z.text.split()}
    assert {word for cell in cells for word in cell.split()} <= written
