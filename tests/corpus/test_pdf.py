"""PDF: pages, their numbers, and files that give no text."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from latentrag.corpus import passages, read, split
from latentrag.errors import DataError
from tests.corpus.making import pdf

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


def words_of(folder, page):
    """What PDFium finds on a page, read alone."""
    if not page:
        return []
    (folder / "page.pdf").write_bytes(pdf([page]))
    (document,) = read(folder / "page.pdf")
    return document.text.split()


@settings(max_examples=40)
@given(st.lists(st.lists(lines, max_size=3), min_size=1, max_size=5).filter(any), st.integers(1, 4))
def test_passages_are_slices_of_the_text_with_the_right_page(tmp_path_factory, pages, num_words):
    folder = tmp_path_factory.mktemp("pdf")
    of_page = [(word, i) for i, page in enumerate(pages, start=1) for word in words_of(folder, page)]
    (folder / "all.pdf").write_bytes(pdf(pages))
    (document,) = read(folder / "all.pdf")
    found = list(split(document, words=num_words))
    assert [word for z in found for word in z.text.split()] == [word for word, _ in of_page]
    assert [z.page for z in found] == [page for _, page in of_page[::num_words]]
    assert all(z.text == document.text[z.start : z.end] for z in found)
