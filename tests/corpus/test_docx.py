"""Word documents: the body's text, and archives that are none or worse."""

import io
import zipfile

import hypothesis.strategies as st
import pytest
from hypothesis import given

from latentrag.corpus import docx as docx_module
from latentrag.corpus import read, split
from latentrag.corpus.docx import docx
from latentrag.corpus.readers import Ledger, UnreadableError
from latentrag.errors import DataError
from latentrag.types import Document
from tests.corpus import making


def of(body: str, title: str = "") -> Document:
    (document,) = docx(io.BytesIO(making.docx(body, title)), "sub/letter.docx", Ledger("letter.docx"))
    return document


def run(content: str) -> str:
    return f"<w:p><w:r>{content}</w:r></w:p>"


def test_paragraphs_are_lines_and_the_title_is_the_documents():
    document = of(
        making.paragraph("Dear  Ingrid & Ola,") + making.paragraph("") + making.paragraph("all well."), " A\nB "
    )
    assert (document.text, document.title, document.id) == (
        "Dear  Ingrid & Ola,\n\nall well.",
        "A B",
        "sub/letter.docx",
    )
    assert of(making.paragraph("x")).title == "letter"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (run("<w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t><w:noBreakHyphen/><w:t>d</w:t>"), "a\tb\nc-d"),
        ("<w:p><w:pPr><w:tabs><w:tab w:pos='9'/></w:tabs></w:pPr><w:r><w:t>a</w:t></w:r></w:p>", "a"),
        (
            "<w:p><w:ins><w:r><w:t>new</w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>",
            "new",
        ),
        ("<w:p><w:moveFrom><w:r><w:t>here</w:t></w:r></w:moveFrom><w:r><w:t>there</w:t></w:r></w:p>", "there"),
        ("<w:sdt><w:sdtContent>" + making.paragraph("controlled") + "</w:sdtContent></w:sdt>", "controlled"),
        ("<w:p><w:hyperlink><w:r><w:t>link</w:t></w:r></w:hyperlink></w:p>", "link"),
        (run("<w:instrText>PAGE</w:instrText>") + making.paragraph("x"), "x"),
        (
            '<w:p xmlns:mc="mc"><w:r><mc:AlternateContent><mc:Choice>' + making.paragraph("box") + "</mc:Choice>"
            "<mc:Fallback>" + making.paragraph("box") + "</mc:Fallback></mc:AlternateContent></w:r></w:p>",
            "box",
        ),
        (
            "<w:tbl>"
            + "".join(
                "<w:tr>" + "".join(f"<w:tc>{making.paragraph(cell)}</w:tc>" for cell in row) + "</w:tr>"
                for row in (["year", "ships"], ["1901", "12"])
            )
            + "</w:tbl>"
            + making.paragraph("after"),
            "year\tships\t\n1901\t12\t\nafter",
        ),
    ],
    ids="breaks tabstop tracked moved control link field textbox table".split(),
)
def test_what_is_shown(body, text):
    assert of(body).text == text


def damaged() -> bytes:
    raw = bytearray(making.docx(making.paragraph("text " * 500)))
    raw[raw.index(b"word/document.xml") + 25] ^= 0xFF
    return bytes(raw)


BOMB = '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><d>&b;</d>'
BAD = {
    "junk": (b"PK\x03\x04junk", "not a whole .docx file"),
    "truncated": (making.docx(making.paragraph("text"))[:-30], "not a whole .docx file"),
    "damaged": (damaged(), "not a whole .docx file"),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "encrypted, or the older .doc; save it as .docx"),
    "other": (making.archive({"mimetype": "application/epub"}), "not a Word document: no word/document.xml in it"),
    "xml": (making.archive({"word/document.xml": "<w:p>"}), "not well-formed XML"),
    "bomb": (making.archive({"word/document.xml": BOMB}), "has a DOCTYPE, which is refused"),
    "empty": (b"", "not a whole .docx file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read(tmp_path, name):
    raw, problem = BAD[name]
    (tmp_path / "a.docx").write_bytes(raw)
    with pytest.raises(DataError, match=problem):
        list(read(tmp_path / "a.docx"))
    skipped = []
    assert list(read(tmp_path, on_skip=lambda _, reason: skipped.append(reason))) == []
    assert problem in skipped[0]


def test_a_part_that_unpacks_to_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(docx_module, "_MAX_PART_BYTES", 1 << 20)
    raw = making.docx(making.paragraph("a" * (1 << 21)))
    assert len(raw) < 1 << 14
    with pytest.raises(UnreadableError, match="would unpack to 2 MiB; split the document"):
        list(docx(io.BytesIO(raw), "a.docx", Ledger("a.docx")))


def test_parts_are_found_where_the_package_says():
    raw = io.BytesIO(making.docx(making.paragraph("text")))
    moved = {
        info.filename.replace("document.xml", "document2.xml"): zipfile.ZipFile(raw)
        .read(info)
        .decode()
        .replace("word/document.xml", "/word/document2.xml")
        for info in zipfile.ZipFile(raw).infolist()
    }
    (document,) = docx(io.BytesIO(making.archive(moved)), "a.docx", Ledger("a.docx"))
    assert document.text == "text"


texts = st.text().map(lambda text: "".join(c for c in text if c.isprintable()))


@given(st.lists(texts, min_size=1), st.integers(1, 5))
def test_passages_are_slices_of_the_text(tmp_path_factory, paragraphs, num_words):
    path = tmp_path_factory.mktemp("docx") / "a.docx"
    path.write_bytes(making.docx("".join(map(making.paragraph, paragraphs))))
    (document,) = read(path)
    assert document.text == "\n".join(paragraphs).strip("\n")
    for z in split(document, words=num_words):
        assert z.text == document.text[z.start : z.end]
