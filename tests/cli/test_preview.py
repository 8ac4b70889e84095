"""index preview, and index add --report."""

import json

import pytest

from latentrag.ids import id_of_part
from latentrag.memory import Memory
from tests.cli.conftest import cli
from tests.corpus import making
from tests.encoder.tiny import write_sentence_encoder

GERMAN = "Am Abend geht der Wärter über die Brücke – er löscht das Öl und schließt die Tür."


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "notes"
    made.mkdir()
    (made / "a.txt").write_bytes(GERMAN.encode("cp1252"))
    (made / "b.pdf").write_bytes(making.placed_pdf([[(72, 770, 11, "one two")], [(0, 0, 1, "□")]], title="Lease"))
    (made / "c.txt").write_bytes(b"\xff\x00")
    (made / "d.png").write_bytes(b"")
    return made


LEDGERS = [
    ("a.txt", len(GERMAN), {}, "cp1252", True),
    ("b.pdf", 8, {"page that is a picture, without text": 1}, "", False),
    ("c.txt", 0, None, "", False),
    ("d.png", 0, None, "", False),
]


def check(records, folder) -> None:
    assert len(records) == len(LEDGERS)
    for record, (name, characters, left_out, encoding, is_guess) in zip(records, LEDGERS, strict=True):
        assert record["file"] == str(folder / name)
        assert (record["characters"], record["encoding"], record["is_guess"]) == (characters, encoding, is_guess)
        assert record["left_out"] == left_out if left_out is not None else len(record["left_out"]) == 1


def test_preview_shows_passages_then_a_ledger_for_each_file(folder):
    done = cli("index", "preview", folder, "--words", 9, "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    found = [record for record in records if "text" in record]
    assert records[: len(found)] == found
    assert [(z["id"], z["title"], z["page"], z["start"], z["end"]) for z in found] == [
        (id_of_part("a.txt", GERMAN[:42]), "a", None, 0, 42),
        (id_of_part("a.txt", GERMAN[43:81]), "a", None, 43, 81),
        ("b.pdf", "Lease", 1, 0, 7),
    ]
    assert [z["text"] for z in found[:2]] == [GERMAN[:42], GERMAN[43:81]]
    check(records[len(found) :], folder)


def test_preview_in_words(folder):
    lines = cli("index", "preview", folder).stdout.splitlines()
    assert lines[0] == f"a.txt | a | 0:{len(GERMAN)} | {GERMAN}"
    assert lines[1] == "b.pdf | Lease | page 1 | 0:7 | one two"
    assert lines[2] == f"{folder}/a.txt: {len(GERMAN)} characters kept, cp1252 (a guess); left out: nothing"
    assert lines[3].endswith("8 characters kept; left out: 1 × page that is a picture, without text")
    assert ".png is not a format that is read" in lines[5]
    assert cli("index", "preview", folder / "d.png").error()
    stated = cli("index", "preview", folder / "a.txt", "--encoding", "cp1252").stdout
    assert stated.splitlines()[1].endswith("kept, cp1252; left out: nothing")


def test_add_writes_the_same_and_says_it_in_short(tmp_path, folder, encoder):
    report = tmp_path / "report.jsonl"
    done = cli("index", "add", tmp_path / "m.lance", folder, "--encoder", encoder, "--report", report)
    assert done.code == 0
    check([json.loads(line) for line in report.read_text().splitlines()], folder)
    *skipped, guess, left_out = done.stderr.splitlines()
    assert len(skipped) == 2
    assert guess == "files without a stated encoding, taken for cp1252: 1; --encoding states it"
    assert left_out.startswith("left out: 1 × page that is a picture, without text; `latentrag index preview`")
    error = cli(
        "index", "add", tmp_path / "n.lance", folder, "--encoder", encoder, "--report", tmp_path / "no" / "r"
    ).error()
    assert "cannot be written" in error
    assert not (tmp_path / "n.lance").exists()


@pytest.mark.parametrize("content", ['{"question": "Who?", "answer": ["I"]}\n', "A text.", "[1]", "null", b"\xff"])
def test_a_report_replaces_no_file_but_an_earlier_report(tmp_path, folder, encoder, content):
    """Above all not one that was to be read: it was empty then, and gone."""
    rows = folder / "rows.jsonl"
    rows.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = rows.read_bytes()
    add = ("index", "add", tmp_path / "m.lance", folder, "--encoder", encoder, "--report")
    assert "is no report of files; name another file" in cli(*add, rows).error()
    assert (rows.read_bytes(), (tmp_path / "m.lance").exists()) == (before, False)
    assert "is no report of files" in cli(*add, "/dev/null").error()
    assert "is no report of files" in cli(*add, folder).error()
    for _ in range(2):
        assert cli(*add, tmp_path / "report.jsonl", "--upsert").code == 0


def test_preview_is_bounded_as_add_is_and_says_by_which_encoder(tmp_path):
    folder = write_sentence_encoder(tmp_path / "short", max_seq_length=20)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("the river in london is the thames . " * 12)
    report = tmp_path / "report.jsonl"
    shown = cli("index", "preview", tmp_path / "notes", "--encoder", folder, "--json").stdout.splitlines()
    *found, ledger = map(json.loads, shown)
    assert len(found) > 4
    add = ("index", "add", tmp_path / "m.lance", tmp_path / "notes", "--encoder", folder, "--report", report)
    assert cli(*add).code == 0
    added = {z.id: (z.start, z.end, z.text) for z in Memory.open(tmp_path / "m.lance").passages()}
    assert {z["id"]: (z["start"], z["end"], z["text"]) for z in found} == added
    assert json.loads(report.read_text()) == ledger
    assert (ledger["encoder"], ledger["max_tokens"]) == ("short", 20)
    assert ", bounded by short, 20 tokens;" in cli("index", "preview", tmp_path / "notes", "--encoder", folder).stdout
    unbounded = cli("index", "preview", tmp_path / "notes", "--json").stdout.splitlines()
    assert len(unbounded) == 2
    assert json.loads(unbounded[-1])["encoder"] is None
