"""What each format yields, and what it says of rows that are wrong."""

import csv
import gzip
import io
import json
import tracemalloc
from collections import deque
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from latentrag.corpus import Ledger, passages, read, split
from latentrag.corpus.text import tsv
from latentrag.errors import DataError
from latentrag.types import Document


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_text_is_the_files_own_to_the_character(tmp_path):
    path = tmp_path / "Élan.v2.txt"
    path.write_bytes("première\r\nligne\r\n\n fin\n".encode())
    (document,) = read(path)
    assert document == Document(path.name, "première\r\nligne\r\n\n fin\n", "Élan.v2", str(path))
    (passage,) = split(document)
    assert path.read_bytes().decode()[passage.start : passage.end] == passage.text


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.md").write_text("\ufeff# Title\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('\ufeff{"id": "b", "text": "t"}', encoding="utf-8")
    (tmp_path / "c.tsv").write_text("\ufeffid\ttext\ttitle\n1\tt\tT\n", encoding="utf-8")
    assert [(d.id, d.text, d.title) for d in read(tmp_path)] == [
        ("a.md", "# Title\n", "Title"),
        ("b", "t", ""),
        ("1", "t", "T"),
    ]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("intro\n\n# First\n# Second\n", "First"),
        ("#  Padded  ##\n", "Padded"),
        ("# About C#\r\ntext\n", "About C#"),
        ("#hashtag\n# \n", "notes"),
        ("## Smaller\ntext\n### Smallest\n", "Smaller"),
        ("## Smaller\n# First\n", "First"),
        ("Under*lined*\n====\n\ntext", "Underlined"),
        ("# [Linked](http://a.b) `code` ![picture](p.png) <b>bold</b> &amp; {#anchor}\n", "Linked code picture bold &"),
        ("<!--\n# a comment\n-->\n> # quoted\n\n    # indented\n", "notes"),
        ("~~~~\n~~~\n# a comment\n~~~~\n## After\n", "After"),
        ("---\n# a comment\ntitle: Front\n---\n# First\n", "Front"),
        ("---\r\ntitle: 'Front'\r\n...\r\ntext", "Front"),
        ("---\ntitle: Untitled\n---\n# First\n", "First"),
        ("---\ntitle:\nweight: 1\n---\n# First\n", "First"),
        ("---\ntitle: Not YAML: this\nx: [\n---\ntext", "Not YAML: this"),
        ("---\ntitle: 2024\n---\ntext", "2024"),
        ('+++\n# a comment\ntitle = "Front"\n+++\ntext', "Front"),
        ('{\n"title": "Front"\n}\n\ntext', "Front"),
        ("---\n# First\n---\ntext", "First"),
        ("---\nx: " + "[" * 9_000 + "\n---\n# First\n", "First"),
        ("", "notes"),
        ("```sh\n# a comment\n```\n# After\n", "After"),
    ],
)
def test_markdown_title(tmp_path, text, title):
    (tmp_path / "notes.md").write_text(text, newline="")
    (document,) = read(tmp_path / "notes.md")
    assert (document.title, document.text) == (title, text)


@pytest.mark.parametrize(
    ("front", "fields"),
    [
        (
            "date: 2021-03-04\nauthor: Ada\nlang: de\nsection: Quays",
            {"date": "2021-03-04", "author": "Ada", "language": "de", "section": "Quays"},
        ),
        ("Published: 4 March\nauthors:\n- Ada\n- {name: Bo}", {"date": "4 March", "author": "Ada, Bo"}),
        ("weight: 3\nauthor: [[x]]\ndate:\ndraft: true", {}),
    ],
)
def test_front_matter_gives_fields(tmp_path, front, fields):
    (tmp_path / "a.md").write_text(f"---\ntitle: T\n{front}\n---\none two three")
    found = list(passages(tmp_path / "a.md", words=2))
    assert len(found) > 1
    assert all(z.fields == fields for z in found)


def test_rows_give_fields(tmp_path):
    row: dict[str, object] = {
        "text": "t",
        "Date": "2021-03-04",
        "authors": ["Ada", "Bo"],
        "lang": "de",
        "section": None,
        "views": 7,
    }
    (document,) = read(write(tmp_path / "a.jsonl", row))
    assert document.fields == {"date": "2021-03-04", "author": "Ada, Bo", "language": "de"}


def test_a_title_leaves_room_for_text(tmp_path):
    title = "word " * 5000
    (tmp_path / "a.md").write_text(f"# {title}\ntext")
    write(tmp_path / "b.jsonl", {"text": "t", "title": "x" * 5000}, {"text": "t", "title": "y" * 200})
    ledgers: list[Ledger] = []
    titles = [document.title for document in read(tmp_path, on_ledger=ledgers.append)]
    assert titles == ["word " * 38 + "word…", "x" * 199 + "…", "y" * 200]
    assert ledgers[1].left_out == {"character at the end of a long title": 4800}


def test_plain_text_has_no_headings(tmp_path):
    (tmp_path / "notes.txt").write_text("# comment\n")
    assert [document.title for document in read(tmp_path / "notes.txt")] == ["notes"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # DPR
        ({"id": "7", "text": "t", "title": "T"}, ("7", "t", "T")),
        # KILT
        ({"_id": "12", "wikipedia_id": 12, "wikipedia_title": "T", "text": ["T\n", "u"]}, ("12", "T\nu", "T")),
        ({"wikipedia_id": 12, "wikipedia_title": "T", "text": ["t"], "history": {}}, ("12", "t", "T")),
        # BEIR
        ({"_id": "d1", "title": "T", "text": "t", "metadata": {}}, ("d1", "t", "T")),
        # FlashRAG
        ({"id": "0", "contents": '"T"\nt\nu'}, ("0", "t\nu", "T")),
        ({"id": 0, "contents": "T\nt"}, ("0", "t", "T")),
        ({"id": "0", "contents": "no title"}, ("0", "no title", "")),
        ({"id": "0", "title": "T", "contents": '"T"\nt'}, ("0", "t", "T")),
        ({"id": "0", "title": "T", "contents": "t\nu"}, ("0", "t\nu", "T")),
        ({"id": "0", "title": "T", "text": "t", "contents": '"T"\nt'}, ("0", "t", "T")),
        # plain
        ({"text": "t"}, ("rows.jsonl:1", "t", "")),
        ({"id": None, "title": None, "text": "t"}, ("rows.jsonl:1", "t", "")),
        ({"id": "e", "text": ""}, ("e", "", "")),
    ],
)
def test_json_fields(tmp_path, row, expected):
    (document,) = read(write(tmp_path / "rows.jsonl", row))
    assert (document.id, document.text, document.title) == expected
    assert document.source == str(tmp_path / "rows.jsonl")
    assert not document.whole


def test_json_rows_may_differ_name_a_source_and_leave_lines_blank(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    rows = '{"text": "a", "source": "s.pdf"}\r\n\n{"contents": "T\\nb"}\n   \n{"text": "line\u2028separator"}'
    path.write_bytes(gzip.compress(rows.encode()))
    assert list(read(path)) == [
        Document("rows.jsonl.gz:1", "a", source="s.pdf"),
        Document("rows.jsonl.gz:3", "b", title="T", source=str(path)),
        Document("rows.jsonl.gz:5", "line\u2028separator", source=str(path)),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "cut', r"not valid JSON \(Unterminated string starting at, column 10\)"),
        ("{'text': 't'}", r"not valid JSON \("),
        ('{"text": "t"} {}', r"not valid JSON \(Extra data"),
        ("[" * 100_000, r"not JSON that can be read \("),
        ('{"text": ' + "9" * 5000 + "}", r"not JSON that can be read \("),
        ('["text"]', r"\['text'\] is not an object, needed one with a text"),
        ('{"id": "7", "body": "t"}', r"no text among its fields \['id', 'body'\], needed text or contents"),
        ('{"text": null}', r"no text among its fields \['text'\]"),
        ('{"text": 42}', "text is 42, needed a string"),
        ('{"text": ["one", null]}', "a paragraph of text is None, needed a string"),
        ('{"contents": {}}', "contents is {}, needed a string"),
        ('{"text": "t", "title": 1984}', "title is 1984, needed a string"),
        ('{"text": "t", "id": 1.5}', "id is 1.5, needed a string"),
        ('{"text": "t", "_id": true}', "_id is True, needed a string"),
        ('{"text": "t", "source": {}}', "source is {}, needed a string"),
        ('{"text": "\\ud83d"}', r"text has half a character \(\\ud83d alone\)"),
    ],
)
def test_a_wrong_json_line_is_named(tmp_path, line, problem):
    path = tmp_path / "docs.jsonl"
    path.write_text(f'{{"id": "a", "text": "t"}}\n\n{line}\n')
    documents = read(path)
    assert next(documents).id == "a"
    with pytest.raises(DataError, match=rf"docs\.jsonl line 3: {problem}.*; fix or remove the line$") as raised:
        next(documents)
    assert "\n" not in str(raised.value)


DPR_HEADER = "id\ttext\ttitle\n"
DPR_ROWS = '''1\t"Aaron ( or ; ""Ahärôn"") is a prophet, high priest"\tAaron
2\t"""A"" is a letter"\t"""A"" (letter)"
'''


@pytest.mark.parametrize("name", ["psgs_w100.tsv", "psgs_w100.tsv.gz"])
@pytest.mark.parametrize("header", ["", DPR_HEADER])
def test_dpr_passages(tmp_path, name, header):
    raw = (header + DPR_ROWS).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert list(read(path)) == [
        Document("1", 'Aaron ( or ; "Ahärôn") is a prophet, high priest', "Aaron", str(path), whole=True),
        Document("2", '"A" is a letter', '"A" (letter)', str(path), whole=True),
    ]


def tsv_rows(text: str) -> list[tuple[str, str, str]]:
    return [(d.id, d.text, d.title) for d in tsv(io.BytesIO(text.encode()), "x.tsv", Ledger("x.tsv"))]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        pytest.param("ID\tTitle\tText\r\n1\tT\tt\r\n", [("1", "t", "T")], id="header-in-another-order"),
        pytest.param("1\tt\tT\n\n\tu\t", [("1", "t", "T"), ("x.tsv:3", "u", "")], id="blank-line-and-no-id"),
        pytest.param('1\tsix 6" nails\tT', [("1", 'six 6" nails', "T")], id="quote-inside"),
        pytest.param('1\t"Foo" is a song\tT', [("1", '"Foo" is a song', "T")], id="quoted-word-first"),
        pytest.param('1\t""\t"T"', [("1", "", "T")], id="quoted-empty"),
        pytest.param('1\t"a\tb"\tT', [("1", "a\tb", "T")], id="tab-in-quotes"),
        pytest.param('1\t"a\n\nb"\tT\n2\tc\tU', [("1", "a\n\nb", "T"), ("2", "c", "U")], id="lines-in-quotes"),
        pytest.param("1\ta\u2028b\tT", [("1", "a\u2028b", "T")], id="line-separator"),
    ],
)
def test_tsv_rows(text, rows):
    assert tsv_rows(text) == rows


@given(st.lists(st.tuples(st.integers(0).map(str), st.text(), st.text()), max_size=5), st.booleans())
def test_tsv_reads_what_csv_writes(rows, quote_all):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL)
    writer.writerows([("id", "text", "title"), *rows])
    assert tsv_rows(file.getvalue()) == rows


def test_tsv_fields_have_no_limit(tmp_path):
    text = "w " * csv.field_size_limit()
    limit = csv.field_size_limit()
    (tmp_path / "a.tsv").write_text(f'1\t"{text}"\tT\n2\t{text}\tT\n')
    assert [document.text for document in read(tmp_path / "a.tsv")] == [text, text]
    assert csv.field_size_limit() == limit


UNCLOSED = "a quote opens a field and is not closed"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        pytest.param("2\tu\n", "2 tab-separated columns, needed id, text, title", id="too-few"),
        pytest.param("2\tu\tU\t\n", "4 tab-separated columns", id="too-many"),
        pytest.param('2\t"u\tU\n3\tv\tV\n', UNCLOSED, id="to-the-end"),
        pytest.param('2\t"u\tU\n3\t"v"\tV\n', UNCLOSED, id="to-another-quote"),
        pytest.param('2\t"u\tU\n' + "3\tv\tV\n" * 2000, UNCLOSED, id="on-and-on"),
    ],
)
def test_a_wrong_tsv_row_is_named(tmp_path, rows, problem):
    (tmp_path / "a.tsv").write_text(f"1\tt\tT\n{rows}")
    documents = read(tmp_path / "a.tsv")
    assert next(documents).id == "1"
    with pytest.raises(DataError, match=rf"a\.tsv line 2: {problem}"):
        next(documents)


def test_an_unclosed_quote_costs_bounded_memory(tmp_path):
    path = tmp_path / "a.tsv"
    with path.open("w") as file:
        file.write('1\t"open\tT\n')
        file.writelines(f"{i}\t{'w ' * 100}\tT\n" for i in range(100_000))
    tracemalloc.start()
    with pytest.raises(DataError, match=f"line 1: {UNCLOSED}"):
        list(read(path))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4e6  # of 21 MB; a thousand lines, joined and with a copy, are under 1 MB


@pytest.mark.parametrize(
    ("name", "row"),
    [("rows.tsv", '%d\t"%s"\tTitle\n'), ("rows.jsonl", '{"id": %d, "text": "%s", "title": "Title"}\n')],
)
def test_large_files_are_read_in_constant_memory(tmp_path, name, row):
    path = tmp_path / name
    with path.open("w") as file:
        file.writelines(row % (i, f"word {'x' * 2600}") for i in range(4_000))
    assert path.stat().st_size > 10e6
    tracemalloc.start()
    (last,) = deque((z for document in read(path) for z in split(document)), maxlen=1)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last.id.startswith("3999")
    assert peak_bytes < 2e6  # a few rows of 2.5 kB and the file's buffer, and what is imported on the way: 1.5 MB
