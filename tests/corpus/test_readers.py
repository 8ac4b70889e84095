"""The seams: a reader of another package, ledgers, and a splitter that is given a counter."""

import bz2
import io
import zipfile

import pytest

from latentrag.corpus import READERS, Ledger, Reader, passages, read
from latentrag.corpus.readers import Formats
from latentrag.types import Document
from tests.corpus import making

SUBTITLES = '''
from latentrag.corpus import Reader, UnreadableError
from latentrag.types import Document

def read(file, name, ledger):
    """Lines that are spoken; times and numbers are left out."""
    ledger.encoding = "latin-1"
    lines = file.read().decode("latin-1").splitlines()
    if not lines:
        raise UnreadableError("no line in it; fetch it again")
    spoken = [line for line in lines if line and not line[0].isdigit()]
    ledger.leave_out("line of numbers", len(lines) - len(spoken))
    yield Document(name, "\\n".join(spoken), source=ledger.file, fields={"language": "es", "lines": 4, "clean": True})

SRT = Reader(read, suffixes=(".srt",), mime_types=("application/x-subrip",), magic=(b"1\\n00:",), one_document=True)
'''
SPOKEN = "1\n00:00:01 --> 00:00:02\nQu\xe9?\n2\n00:00:03 --> 00:00:04\nNada.\n".encode("latin-1")


@pytest.fixture
def subtitles(tmp_path, monkeypatch) -> None:
    """Another package that adds a reader."""
    packages = tmp_path / "packages"
    info = packages / "subtitles-1.0.dist-info"
    info.mkdir(parents=True)
    (packages / "subtitles.py").write_text(SUBTITLES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: subtitles\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[latentrag.readers]\nsubtitles = subtitles:SRT\n")
    monkeypatch.syspath_prepend(str(packages))


@pytest.mark.parametrize("workers", [0, 1])
def test_another_package_adds_a_format(subtitles, tmp_path, workers):
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "a.srt").write_bytes(SPOKEN)
    (folder / "b").write_bytes(SPOKEN)  # by its first bytes
    (folder / "c.srt").write_bytes(b"")
    (folder / "d").write_bytes(b"no subtitles")
    (folder / "e.txt").write_bytes(b"text")
    skipped: dict[str, str] = {}
    ledgers: list[Ledger] = []
    documents = read(
        folder, on_skip=lambda path, why: skipped.update({path.name: why}), on_ledger=ledgers.append, workers=workers
    )
    assert [(d.id, d.text) for d in documents] == [("a.srt", "Qué?\nNada."), ("b", "Qué?\nNada."), ("e.txt", "text")]
    assert skipped["c.srt"] == "no line in it; fetch it again"
    assert skipped["d"].endswith(f"convert it to one of {Formats().readable}")
    assert Formats().readable.endswith(".jsonl, .tsv, .xml, .srt")
    assert ledgers == [
        Ledger(str(folder / "a.srt"), 10, {"line of numbers": 4}, "latin-1"),
        Ledger(str(folder / "b"), 10, {"line of numbers": 4}, "latin-1"),
        Ledger(str(folder / "c.srt"), 0, {"no line in it; fetch it again": 1}, "latin-1"),
        Ledger(str(folder / "e.txt"), 4, {}, "utf-8"),
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_fields_that_a_reader_finds_go_to_every_passage(subtitles, tmp_path, workers):
    (tmp_path / "a.srt").write_bytes(SPOKEN)
    found = list(passages(tmp_path / "a.srt", words=1, workers=workers))
    assert [z.text for z in found] == ["Qué?", "Nada."]
    assert [z.fields for z in found] == [{"language": "es", "lines": 4, "clean": True}] * 2


def test_a_name_is_asked_first_then_a_type_then_the_first_bytes(subtitles):
    formats = Formats()
    assert formats.of("a.SRT") == "subtitles"
    assert formats.of("a.txt", mime_type="application/x-subrip", start=SPOKEN) == "text"
    assert formats.of("a", mime_type="text/html", start=SPOKEN) == "html"
    assert formats.of("a", mime_type="image/png", start=SPOKEN) == "subtitles"
    assert formats.of("a", mime_type="image/png", start=b"1") is None


def test_own_readers_come_first(tmp_path):
    def shout(file, name, ledger):
        yield Document(name, file.read().decode().upper())

    READERS.add("shout", Reader(shout, suffixes=(".txt", ".shout")))
    try:
        for suffix in ("txt", "shout"):
            (tmp_path / f"a.{suffix}").write_text("text")
        assert [(d.id, d.text) for d in read(tmp_path)] == [("a.shout", "TEXT"), ("a.txt", "text")]
    finally:
        READERS.remove("shout")


PROSE = "The keeper of the lighthouse writes down every evening what ships have passed, and which way the wind blew. "
HIDDEN = f"<p hidden>{'ab' * 40}</p>"
WORD = making.docx(making.paragraph("kept") + "<w:p><w:del><w:r><w:t>old</w:t></w:r></w:del></w:p>")
FILES = {
    "text.txt": ("\ufeffñ\n".encode(), 2, {}, "utf-8"),
    "rows.jsonl": (
        b'{"text": "abc"}\n{"text": "de"}\nno\n',
        5,
        {"from line 3 on: not valid JSON (Expecting value, column 1); fix or remove the line": 1},
        "utf-8",
    ),
    "latin.html": (
        b"<meta charset=iso-8859-2><p>caf\xe9" + HIDDEN.encode() + f"<p>{PROSE * 3}".encode(),
        len("café\n" + PROSE * 3) - 1,
        {"character in menus, banners, hidden elements and the like": 80},
        "iso8859-2",
    ),
    "wrong.html": (b"<meta charset=utf-8><p>a\xffb", 3, {"character that is not utf-8": 1}, "utf-8"),
    "scan.pdf": (making.pdf([["one"], [], ["three"], []]), len("one\n\nthree\n"), {"page without text": 2}, ""),
    "letter.docx": (WORD, 4, {"element that is not shown: del": 1}, ""),
    "wiki.xml.bz2": (
        bz2.compress(making.dump(making.page(1, "A", "text"), making.page(2, "Talk", "no", ns=1))),
        4,
        {"page that is a redirect or of another namespace than articles": 1},
        "",
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("workers", [0, 1])
def test_ledgers_of_our_own_readers(tmp_path, name, workers):
    raw, characters, left_out, encoding = FILES[name]
    (tmp_path / name).write_bytes(raw)
    ledgers: list[Ledger] = []
    documents = list(read(tmp_path, on_skip=lambda *_: None, on_ledger=ledgers.append, workers=workers))
    assert ledgers == [Ledger(str(tmp_path / name), characters, left_out, encoding)]
    assert characters == sum(len(document.text) for document in documents)


def test_comments_of_a_word_document_are_counted(tmp_path):
    raw = io.BytesIO(making.docx(making.paragraph("kept")))
    with zipfile.ZipFile(raw, "a") as archive:
        archive.writestr("word/comments.xml", "<comments><comment>no</comment><comment>yes</comment></comments>")
    (tmp_path / "a.docx").write_bytes(raw.getvalue())
    ledgers: list[Ledger] = []
    list(read(tmp_path / "a.docx", on_ledger=ledgers.append))
    assert ledgers[0].left_out == {"comment": 2}
