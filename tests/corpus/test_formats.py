"""Which format a name stands for, and what is said where its library is not installed."""

import sys

import pytest

from latentrag.corpus import passages, read
from latentrag.corpus.readers import READERS, Formats
from latentrag.errors import DataError
from tests.corpus import making


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("a.txt", "plain_text"),
        ("a.b.MD", "markdown"),
        ("a.HTML", "html"),
        ("a.htm", "html"),
        ("a.markdown", "markdown"),
        ("a.rst", "restructured_text"),
        ("a.csv.gz", "csv"),
        ("a.json", "json_file"),
        ("a.ipynb", "notebook"),
        ("a.epub", "epub"),
        ("a.pptx", "pptx"),
        ("a.xlsx", "excel"),
        ("a.xhtml", "html"),
        ("a.pdf", "pdf"),
        ("a.docx", "docx"),
        ("a.jsonl", "json_lines"),
        ("a.jsonl.gz", "json_lines"),
        ("a.jsonl.bz2", "json_lines"),
        ("psgs_w100.tsv.gz", "tsv"),
        ("simplewiki-latest-pages-articles.xml", "dump"),
        ("enwiki-20260101-pages-articles-multistream1.xml-p1p41242.bz2", "dump"),
        ("enwiki-20260101-pages-articles1.xml-p1p41242", "dump"),
        ("wiki_00", "extracted"),
        ("wiki_99.bz2", "extracted"),
    ],
)
def test_names_of_files_that_are_read(name, reader):
    known = Formats().of(name)
    assert known is not None
    assert READERS[known].read.__name__ == reader


@pytest.mark.parametrize(
    "name", ["a", "a.txt.gz", "a.pdf.bz2", "a.doc", "my_wiki_00", "wiki_0", "wiki_x", "a.jsonl.zip", ".gz", "a.xml-p1"]
)
def test_names_of_files_that_are_not(name):
    assert Formats().of(name) is None


LIBRARIES = {
    "a.pdf": "pypdfium2",
    "a.html": "selectolax",
    "a.epub": "selectolax",
    "a.xlsx": "python_calamine",
    "a.xml.bz2": "mwparserfromhell",
}


@pytest.fixture
def without_libraries(monkeypatch):
    for library in LIBRARIES.values():
        monkeypatch.setitem(sys.modules, library, None)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_that_is_not_installed_is_named_at_the_call(without_libraries, tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError) as raised:
        read(tmp_path / name)
    remedy = f"reading it needs {LIBRARIES[name]}; run pip install 'latentrag[documents]'"
    assert str(raised.value) == f"{tmp_path / name}: {remedy}"
    with pytest.raises(DataError, match="run pip install"):
        passages(tmp_path)
    skipped = []
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "c.docx").write_bytes(making.docx(making.paragraph("text")))
    found = read(tmp_path, on_skip=lambda file, reason: skipped.append((file.name, reason)))
    assert skipped == [(name, remedy)]
    assert [document.id for document in found] == ["b.txt", "c.docx"]
