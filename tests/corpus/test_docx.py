"""Word documents: the body's text, and archives that are none or worse."""

import io
import zipfile

import hypothesis.strategies as st
import pytest
from hypothesis import given

from latentrag.corpus import ooxml, read, split
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


def styled(text: str, *properties: str) -> str:
    return f"<w:r><w:rPr>{''.join(properties)}</w:rPr><w:t xml:space='preserve'>{text}</w:t></w:r>"


def math(content: str) -> str:
    return f"<w:p><w:r><w:t>Mix </w:t></w:r><m:oMath xmlns:m='m'>{content}</m:oMath><w:r><w:t> litre</w:t></w:r></w:p>"


def part(tag: str, *texts: str) -> str:
    return f"<m:{tag}>{''.join(f'<m:r><m:t>{text}</m:t></m:r>' for text in texts)}</m:{tag}>"


SUP, SUB = '<w:vertAlign w:val="superscript"/>', '<w:vertAlign w:val="subscript"/>'


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (f"<w:p>{styled('10')}{styled('1', SUP)}{styled('0', SUP)}{styled(' Bq')}</w:p>", "10^10 Bq"),
        (f"<w:p>{styled('40 m')}{styled('2', SUP)}</w:p>", "40 m^2"),
        (f"<w:p>{styled('10')}{styled('−3', SUP)}{styled('x')}{styled('n+1', SUP)}</w:p>", "10^−3x^(n+1)"),
        (
            f"<w:p>{styled('4')}{styled('th', SUP)}{styled(' and H')}{styled('2', SUB)}{styled('O')}</w:p>",
            "4th and H2O",
        ),
        (f"<w:p><w:pPr><w:rPr>{SUP}</w:rPr></w:pPr>{styled('7')}</w:p>", "7"),
        (math("<m:f>" + part("num", "1") + part("den", "2") + "</m:f>"), "Mix 1/2 litre"),
        (math("<m:f>" + part("num", "a", "+b") + part("den", "2") + "</m:f>"), "Mix (a+b)/2 litre"),
        (math("<m:sSup>" + part("e", "x") + part("sup", "10") + "</m:sSup>"), "Mix x^10 litre"),
        (
            math("<m:sSubSup>" + part("e", "x") + part("sub", "i") + part("sup", "n+1") + "</m:sSubSup>"),
            "Mix x_i^(n+1) litre",
        ),
        (math("<m:rad>" + part("deg") + part("e", "2x") + "</m:rad>"), "Mix √(2x) litre"),
        (math("<m:d>" + part("e", "a") + "</m:d>" + part("r", "")), "Mix (a) litre"),
        (
            math(
                "<m:nary><m:naryPr><m:chr m:val='∑'/></m:naryPr>"
                + part("sub", "i=1")
                + part("sup", "n")
                + part("e", "i")
                + "</m:nary>"
            ),
            "Mix ∑_(i=1)^n i litre",
        ),
        (
            "<w:p><w:r><w:t>3</w:t></w:r><m:oMath xmlns:m='m'><m:f>"
            + part("num", "1")
            + part("den", "2")
            + "</m:f></m:oMath></w:p>",
            "3 1/2",
        ),
        (run('<w:sym w:font="Wingdings" w:char="F0E0"/><w:sym w:font="Symbol" w:char="F0B0"/>'), "→°"),
        (run('<w:sym w:font="Webdings" w:char="F0E0"/><w:t>x</w:t>'), "\ufffdx"),
        (f"<w:p>{styled(chr(0xF061), '<w:rFonts w:ascii=' + chr(34) + 'Symbol' + chr(34) + '/>')}</w:p>", "α"),
        (
            run(
                "<w:t>before </w:t><w:pict><w:txbxContent>"
                + making.paragraph("Figure 1. A quay")
                + "</w:txbxContent></w:pict>"
                "<w:t>after</w:t>"
            )
            + making.paragraph("next"),
            "before after\nFigure 1. A quay\nnext",
        ),
        (
            "".join(
                f"<w:p><w:r><w:t xml:space='preserve'>Table </w:t></w:r><w:fldSimple w:instr=' SEQ Table '>{result}"
                "</w:fldSimple></w:p>"
                for result in ("", "<w:r><w:t>2</w:t></w:r>", "")
            ),
            "Table 1\nTable 2\nTable 3",
        ),
        (
            run(
                '<w:fldChar w:fldCharType="begin"/><w:instrText>EQ \\f(1;2)</w:instrText>'
                '<w:fldChar w:fldCharType="separate"/><w:fldChar w:fldCharType="end"/><w:t> litre</w:t>'
            ),
            "1/2 litre",
        ),
    ],
)
def test_what_the_loss_of_layout_must_not_change(body, text):
    assert of(body).text == text


H = f'<?xml version="1.0"?><w:{{}} {making.W}>'


def with_parts(body: str, **parts: str) -> Document:
    raw = {f"word/{name}.xml": text for name, text in parts.items()}
    raw["word/document.xml"] = f"<w:document {making.W}><w:body>{body}</w:body></w:document>"
    (document,) = docx(io.BytesIO(making.archive(raw)), "letter.docx", Ledger("letter.docx"))
    return document


def of_part(tag: str, content: str) -> str:
    return f"<w:{tag} {making.W}>{content}</w:{tag}>"


def test_notes_stand_behind_their_paragraph_or_table():
    notes = "".join(
        f'<w:{{0}} w:id="{key}" {kind}>{making.paragraph(text)}</w:{{0}}>'
        for key, kind, text in (("0", 'w:type="separator"', "---"), ("1", "", "a note"), ("2", "", "another"))
    )
    reference = '<w:r><w:{}Reference w:id="{}"/></w:r>'
    body = (
        f"<w:p>{styled('One')}{reference.format('footnote', 2)}{styled(' two')}{reference.format('endnote', 1)}</w:p>"
        f"<w:tbl><w:tr><w:tc><w:p>{styled('cell')}{reference.format('footnote', 1)}</w:p></w:tc>"
        f"<w:tc>{making.paragraph('last')}</w:tc></w:tr></w:tbl>{making.paragraph('end')}"
    )
    document = with_parts(
        body,
        footnotes=of_part("footnotes", notes.format("footnote")),
        endnotes=of_part("endnotes", notes.format("endnote")),
    )
    assert document.text == ("One[1] two[i]\n[1] another\n[i] a note\ncell[2]\tlast\t\n[2] a note\nend")


def test_headers_come_first_and_footers_last_each_once():
    document = with_parts(
        making.paragraph("body"),
        header1=of_part("hdr", making.paragraph("Contract 47")),
        header2=of_part("hdr", making.paragraph("Contract 47")),
        header3=of_part("hdr", making.paragraph(" ")),
        footer1=of_part("ftr", making.paragraph("Harbour Co.")),
    )
    assert document.text == "Contract 47\nbody\nHarbour Co."


def level(i: int, text: str, style: str = "decimal", more: str = "") -> str:
    return (
        f'<w:lvl w:ilvl="{i}"><w:start w:val="1"/><w:numFmt w:val="{style}"/>{more}<w:lvlText w:val="{text}"/></w:lvl>'
    )


NUMBERING = of_part(
    "numbering",
    '<w:abstractNum w:abstractNumId="0">'
    + level(0, "Article %1", "upperRoman")
    + level(1, "%1.%2", more="<w:isLgl/>")
    + level(2, "(%3)", "lowerLetter")
    + '</w:abstractNum><w:abstractNum w:abstractNumId="1">'
    + level(0, "\uf0b7", "bullet")
    + '</w:abstractNum><w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'
    '<w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num>'
    '<w:num w:numId="3"><w:abstractNumId w:val="0"/><w:lvlOverride w:ilvl="0"><w:startOverride w:val="9"/>'
    "</w:lvlOverride></w:num>",
)
STYLES = of_part(
    "styles",
    '<w:style w:styleId="Clause"><w:name w:val="Clause"/><w:pPr><w:numPr><w:ilvl w:val="1"/><w:numId w:val="1"/>'
    '</w:numPr></w:pPr></w:style><w:style w:styleId="Sub"><w:name w:val="Sub"/><w:basedOn w:val="Clause"/></w:style>'
    '<w:style w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>',
)


def in_list(text: str, number: int, depth: int = 0) -> str:
    place = f'<w:numPr><w:ilvl w:val="{depth}"/><w:numId w:val="{number}"/></w:numPr>'
    return f"<w:p><w:pPr>{place}</w:pPr>{styled(text)}</w:p>"


def in_style(text: str, style: str) -> str:
    return f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr>{styled(text)}</w:p>'


def test_clauses_are_numbered_as_word_counts_them():
    body = [
        in_list("Liability", 1), in_style("owner", "Clause"), in_list("first", 1, 2), in_list("second", 1, 2),
        in_style("charterer", "Sub"), in_list("third", 1, 2), in_list("Term", 1), in_style("end", "Clause"),
        in_list("bullet", 2), in_list("none", 0), in_list("Anew", 3), in_list("Further", 3), making.paragraph("plain"),
    ]  # fmt: skip
    expected = """Article I Liability|1.1 owner|(a) first|(b) second|1.2 charterer|(a) third|Article II Term|2.1 end
        |bullet|none|Article IX Anew|Article X Further|plain"""
    document = with_parts("".join(body), numbering=NUMBERING, styles=STYLES)
    assert document.text.split("\n") == [line.strip() for line in expected.split("|")]


def test_the_title_is_the_first_heading_where_a_program_made_up_the_one_of_the_file():
    body = making.paragraph("Cover") + in_style("Lease of the quay", "berschrift1") + in_style("Later", "berschrift1")
    properties = making.docx(body, "Microsoft Word - Document1")
    raw = dict(read_parts(properties), **{"word/styles.xml": STYLES})
    (document,) = docx(io.BytesIO(making.archive(raw)), "a.docx", Ledger("a.docx"))
    assert document.title == "Lease of the quay"
    assert of(making.paragraph("x"), "Document1").title == "letter"
    assert of(in_style("Head", "Heading1"), "").title == "Head"
    assert of(making.paragraph("x"), "Stated").title == "Stated"


def read_parts(raw: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        return {info.filename: file.read(info).decode() for info in file.infolist()}


def test_properties_become_fields():
    raw = read_parts(making.docx(making.paragraph("x"), "T"))
    raw["docProps/core.xml"] = (
        '<c xmlns:dc="dc" xmlns:t="t"><dc:title>T</dc:title><dc:creator>Ada</dc:creator><dc:language>de</dc:language>'
        "<t:created>2021-03-04T10:00:00Z</t:created></c>"
    )
    (document,) = docx(io.BytesIO(making.archive(raw)), "a.docx", Ledger("a.docx"))
    assert document.fields == {"author": "Ada", "language": "de", "date": "2021-03-04T10:00:00Z"}


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
    "other": (making.archive({"mimetype": "application/epub"}), "not what its name says: no word/document.xml in it"),
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
    monkeypatch.setattr(ooxml, "_MAX_PART_BYTES", 1 << 20)
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
