"""PDF: pages, their numbers, and files that give no text."""

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from latentrag.corpus import Ledger, passages, read, split
from latentrag.errors import DataError
from latentrag.types import Document
from tests.corpus.making import form_pdf, pdf, placed_pdf

PAGES = [["first one two", "three"], [], ["second four", "five six"], ["third"]]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "report.pdf"


def test_the_text_of_all_pages_and_where_each_begins(path):
    path.write_bytes(pdf(PAGES, title="A  Report"))
    (document,) = read(path)
    assert document.text == "first one two\nthree\n\nsecond four\nfive six\nthird"
    assert (document.id, document.title, document.source) == ("report.pdf", "A Report", str(path))
    assert [document.text[start:].partition(" ")[0] for start in document.page_starts[::2]] == ["first", "second"]
    assert len(document.page_starts) == 4


def test_a_passage_names_the_page_on_which_it_begins(path):
    path.write_bytes(pdf(PAGES))
    assert [(z.text, z.page) for z in passages(path, words=3)] == [
        ("first one two", 1),
        ("three\n\nsecond four", 1),
        ("five six\nthird", 3),
    ]
    assert [z.page for z in passages(path, words=2)] == [1, 1, 3, 3, 4]


def test_without_a_title_the_stem_is_it(path):
    path.write_bytes(pdf([["text"]], title="  "))
    assert [document.title for document in read(path)] == ["report"]


def test_a_word_hyphenated_at_the_end_of_a_line_is_joined(path):
    path.write_bytes(pdf([["a long hyphen-", "ated word"]]))
    assert [document.text for document in read(path)] == ["a long hyphenated word"]


def placed(path, *pages, **options) -> Document:
    path.write_bytes(placed_pdf(pages, **options))
    (document,) = read(path)
    return document


def column(x: float, lines: list[str], *, size: float = 11) -> list[tuple[float, float, float, str]]:
    return [(x, 770 - 14 * i, size, line) for i, line in enumerate(lines)]


LEFT = [
    "The tide turns twice a day and the",
    "keeper of the lamp writes down both",
    "times, with the height of the wa-",
    "ter at the gate.",
]
RIGHT = [
    "The boat that brings the oil comes",
    "only when the wind is in the west,",
    "so that barrels are stored in the",
    "cellar of the tower.",
]
LEFT_TEXT = "\n".join([*LEFT[:2], "times, with the height of the water at the gate."])


@pytest.mark.parametrize("by_row", [True, False])
def test_columns_are_read_one_after_the_other_however_they_are_drawn(path, by_row):
    left, right = column(72, LEFT), column(320, RIGHT)
    drawn = [each for row in zip(left, right, strict=True) for each in row] if by_row else [*left, *right]
    head, foot = (
        (72, 800, 11, "A heading over both columns of the page, as wide as they are"),
        (72, 600, 11, "The end."),
    )
    document = placed(path, [head, *drawn, foot])
    assert document.text == f"{head[3]}\n{LEFT_TEXT}\n" + "\n".join(RIGHT) + "\nThe end."


TABLE = [["Berth", "Length", "Price"], ["A1", "12 m", "90"], ["A2", "15 m", ""], ["A3", "", ""], ["B7", "", "140"]]


@pytest.mark.parametrize("by_row", [True, False])
def test_a_row_of_a_table_is_a_line_with_tabs_however_it_is_drawn(path, by_row):
    cells = [
        (72 + 120 * j, 700 - 18 * i, 11, text) for i, row in enumerate(TABLE) for j, text in enumerate(row) if text
    ]
    drawn = cells if by_row else sorted(cells, key=lambda cell: (cell[0], -cell[1]))
    text = "Prices of all berths.\nBerth\tLength\tPrice\nA1\t12 m\t90\nA2\t15 m\t\nA3\nB7\t\t140\nThe end."
    assert (
        placed(path, [(72, 770, 11, text.split("\n", maxsplit=1)[0]), *drawn, (72, 500, 11, "The end.")]).text == text
    )


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["the well-", "known index"], "the well-known index"),
        (["the temper-", "ature"], "the temperature"),
        (["the model X-", "200 and T-", "1000"], "the model X-200 and T-1000"),
        (["from 2019-", "2024"], "from 2019-2024"),
        (["below -", "40 degrees"], "below -40 degrees"),
        (["so it was -", "as they say"], "so it was -\nas they say"),
        (
            ["an e-", "mail, a T-", "shirt, UN-", "led, Anglo-", "American"],
            "an e-mail, a T-shirt, UN-led, Anglo-American",
        ),
        (["the high-", "est and high-", "pressure"], "the highest and high-pressure"),
        (["a mother-in-", "law"], "a mother-in-law"),
        (["a re-sign, not re-", "sign"], "a re-sign, not re-sign"),
        (["resign, not re-", "sign"], "resign, not resign"),
        (["HYPHEN-", "ATION"], "HYPHENATION"),
        (["http://a.org/some-", "where"], "http://a.org/some-where"),
        (["see pages 3", "to 5"], "see pages 3\nto 5"),
    ],
)
def test_hyphens_at_the_end_of_a_line(path, lines, text):
    assert placed(path, column(72, lines)).text == text


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([(72, 770, 11, "3.7 x 10"), (111.2, 774, 7, "10"), (119, 770, 11, " Bq")], "3.7 x 10^10 Bq"),
        (
            [
                (72, 770, 11, "40 m"),
                (96.5, 774, 7, "2"),
                (100.4, 770, 11, ", H"),
                (114.5, 768, 7, "2"),
                (118.4, 770, 11, "O"),
            ],
            "40 m^2, H2O",
        ),
        ([(72, 770, 11, "the 4"), (96.5, 774, 7, "th"), (102.3, 770, 11, " quay")], "the 4th quay"),
        ([(72, 770, 11, "first"), (72, 758, 7, "second")], "first\nsecond"),
    ],
)
def test_powers(path, pieces, text):
    assert placed(path, pieces).text == text


def test_running_heads_and_feet_are_left_out_and_counted(path):
    bodies = [
        "Before the tide turns the officer has to",
        "ring the bell twice and to lower the lan-",
        "tern, and then to rest.",
    ]
    pages = [
        [
            (72, 815, 8, "ACME HARBOUR - HANDBOOK 7"),
            *column(72, [body]),
            (290, 30, 8, f"{i} / 3"),
            (72, 20, 8, f"Printed {i} May"),
        ]
        for i, body in enumerate(bodies, start=1)
    ]
    path.write_bytes(placed_pdf(pages))
    ledgers: list[Ledger] = []
    (document,) = read(path, on_ledger=ledgers.append)
    assert document.text == "\n".join([*bodies[:1], "ring the bell twice and to lower the lantern, and then to rest."])
    assert [document.text[start:][:4] for start in document.page_starts] == ["Befo", "ring", "tern"]
    assert ledgers[0].left_out == {"running head or foot": 9}


def test_what_two_pages_share_or_what_is_not_at_the_same_height_stays(path):
    assert placed(path, *[column(72, ["Head", "text one"])] * 2).text == "Head\ntext one\nHead\ntext one"
    moved = [[(72, 800 - 9 * i, 11, "Same words")] for i in range(4)]
    assert placed(path, *moved).text == "\n".join(["Same words"] * 4)
    numbers = [column(72, [f"{i} {i + 7}", f"{i * 3} {i}"]) for i in range(4)]
    assert len(placed(path, *numbers).text.split()) == 16


def test_pages_that_are_pictures_are_told_from_empty_ones(path):
    path.write_bytes(placed_pdf([column(72, ["text"]), [(0, 0, 1, "□")], [], [(0, 0, 1, "□")]]))
    ledgers: list[Ledger] = []
    list(read(path, on_ledger=ledgers.append))
    assert ledgers[0].left_out == {"page that is a picture, without text": 2, "page without text": 1}


def test_a_page_that_is_missing_is_told_and_the_others_are_read(path):
    raw = pdf([["one"], ["two"]]).replace(b"/Kids [4 0 R 6 0 R] /Count 2", b"/Kids[4 0 R 99 0 R 6 0 R]/Count 3")
    path.write_bytes(raw)
    ledgers: list[Ledger] = []
    (document,) = read(path, on_ledger=ledgers.append)
    assert (document.text.split(), len(document.page_starts)) == (["one", "two"], 3)
    assert ledgers[0].left_out == {"page that cannot be read": 1}


def test_form_fields_and_notes_stand_behind_the_text(path):
    path.write_bytes(
        form_pdf(
            "/Subtype /Widget /FT /Tx /T (vessel) /V (Snow Petrel)",
            "/Subtype /Widget /FT /Tx /T (m1) /TU (Master of the ship) /V (Ada\rBerg)",
            "/Subtype /Widget /FT /Tx /T (empty)",
            "/Subtype /Widget /FT /Ch /T (flag) /V (Norway) /Opt [(Norway) (Chile)]",
            "/Subtype /Widget /FT /Btn /T (paid) /V /Yes /AS /Yes /AP << /N << /Yes 5 0 R /Off 5 0 R >> >>",
            "/Subtype /Widget /FT /Btn /T (late) /V /Off /AS /Off /AP << /N << /Yes 5 0 R /Off 5 0 R >> >>",
            "/Subtype /Text /Contents (Ask the pilot.)",
            "/Subtype /Link /Contents (a link)",
        )
    )
    (document,) = read(path)
    lines = [
        "Form",
        "vessel: Snow Petrel",
        "Master of the ship: Ada",
        "Berg",
        "flag: Norway",
        "paid: Yes",
        "Ask the pilot.",
    ]
    assert document.text.split("\n") == lines


@pytest.mark.parametrize("title", ["", "untitled", "Microsoft Word - Document1"])
def test_the_title_is_the_first_heading_where_a_program_made_one_up(path, title):
    page = [
        (72, 800, 9, "Report 7"),
        (72, 770, 18, "The lease of"),
        (72, 750, 18, "the boathouse"),
        *column(72, ["text"] * 19)[3:],
    ]
    assert placed(path, page, title=title).title == "The lease of the boathouse"
    assert placed(path, column(72, ["text"]), title=title).title == "report"
    assert placed(path, page, title="Stated").title == "Stated"


def test_author_and_date_are_fields_and_the_last_page_of_a_passage_is_one(path):
    path.write_bytes(placed_pdf([column(72, ["one two three"]), column(72, ["four"]), column(72, ["five six"])]))
    stated = {"author": "Ada", "date": "2021-03-04"}
    found = [(z.text.split(), z.page, z.fields) for z in passages(path, words=2)]
    assert found == [
        (["one", "two"], 1, stated),
        (["three", "four"], 1, {**stated, "end_page": 2}),
        (["five", "six"], 3, stated),
    ]


GOOD = pdf([["text " * 50]] * 3)
BAD = {
    "empty": (b"", "not a whole PDF"),
    "junk": (b"%PDF-1.7\njunk", "not a whole PDF"),
    "truncated": (GOOD[: len(GOOD) // 10], "not a whole PDF"),
    "encrypted": (pdf([["secret"]], encrypted=True), "encrypted; save it without a password"),
    "scan": (pdf([[], []]), "no text on its 2 pages, which may be scans; run OCR over it"),
    "blank": (pdf([["  "]]), "no text on its 1 pages"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_given_file_without_text_is_an_error_of_one_line(path, name):
    raw, problem = BAD[name]
    path.write_bytes(raw)
    with pytest.raises(DataError, match=problem) as raised:
        list(read(path))
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_in_a_folder_they_are_reported_and_the_others_read(tmp_path):
    for name, (raw, _) in BAD.items():
        (tmp_path / f"{name}.pdf").write_bytes(raw)
    (tmp_path / "good.PDF").write_bytes(GOOD)
    skipped = {}
    found = read(tmp_path, on_skip=lambda file, reason: skipped.update({file.stem: reason}))
    assert [document.id for document in found] == ["good.PDF"]
    assert set(skipped) == set(BAD)
    assert all(BAD[name][1] in reason for name, reason in skipped.items())


words = st.text(st.sampled_from("abcdefXYZéßñ€—.,!"), min_size=1, max_size=8)
lines = st.lists(words, min_size=1, max_size=6).map(" ".join)


def has_no_running_heads(pages):
    return max(Counter(line for page in pages for line in set(page)).values()) < 3


def words_of(folder, page):
    """What PDFium finds on a page, read alone."""
    if not page:
        return []
    (folder / "page.pdf").write_bytes(pdf([page]))
    (document,) = read(folder / "page.pdf")
    return document.text.split()


@settings(max_examples=40)
@given(
    st.lists(st.lists(lines, max_size=3), min_size=1, max_size=5).filter(any).filter(has_no_running_heads),
    st.integers(1, 4),
)
def test_passages_are_slices_of_the_text_with_the_right_page(tmp_path_factory, pages, num_words):
    folder = tmp_path_factory.mktemp("pdf")
    of_page = [(word, i) for i, page in enumerate(pages, start=1) for word in words_of(folder, page)]
    (folder / "all.pdf").write_bytes(pdf(pages))
    (document,) = read(folder / "all.pdf")
    found = list(split(document, words=num_words))
    assert [word for z in found for word in z.text.split()] == [word for word, _ in of_page]
    assert [z.page for z in found] == [page for _, page in of_page[::num_words]]
    assert all(z.text == document.text[z.start : z.end] for z in found)
