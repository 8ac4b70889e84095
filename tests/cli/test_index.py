"""index add, log, delete."""

import json
import os
import shutil
from pathlib import Path

import pytest

from latentrag.encoder.sentence import SentenceEncoder
from latentrag.ids import id_of_part
from latentrag.memory import Memory
from tests.cli.conftest import DOCUMENTS, cli
from tests.corpus import making
from tests.encoder.tiny import write_sentence_encoder


@pytest.fixture
def own(memory, tmp_path) -> Path:
    """A memory that the test may change."""
    return shutil.copytree(memory, tmp_path / "own.lance")


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_add_makes_a_memory(tmp_path, encoder, files) -> None:
    done = cli("index", "add", tmp_path / "new" / "m.lance", files, "--encoder", encoder, "--json")
    assert (done.code, done.stderr) == (0, "")
    assert done.json == {
        "memory": str(tmp_path / "new" / "m.lance"),
        "version": 2,
        "added": 4,
        "replaced": 0,
        "removed": 0,
        "unchanged": 0,
        "passages": 4,
        "skipped": [],
    }
    assert listing(tmp_path / "new") == ["m.lance"]
    passages = {passage.id: passage.text for passage in Memory.open(tmp_path / "new" / "m.lance").passages()}
    assert passages == {f"{name}.txt": text for name, text in DOCUMENTS.items()}


def test_add_to_a_memory_uses_the_model_s_encoder_and_its_own_splitting(own, model, tmp_path) -> None:
    (tmp_path / "tokyo.txt").write_text("one two three four five")
    done = cli("index", "add", own, tmp_path / "tokyo.txt", "-m", model, "--words", 2)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == f"{own} version 3: added 3; 7 passages in all\n"
    added = [z.text for z in Memory.open(own).passages() if z.id.startswith("tokyo.txt#")]
    assert added == ["one two", "three four", "five"]


def test_upsert_replaces(own, encoder, tmp_path) -> None:
    rows = [{"id": "emma.txt", "text": "Emma is red."}, {"id": "moon", "text": "The moon is blue."}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused = cli("index", "add", own, tmp_path / "rows.jsonl", "--encoder", encoder)
    assert "'emma.txt' is in the memory already; use upsert" in refused.error()
    assert Memory.open(own).version == 2
    done = cli("index", "add", own, tmp_path / "rows.jsonl", "--encoder", encoder, "--upsert", "--json").json
    assert (done["added"], done["replaced"], done["passages"]) == (1, 1, 5)
    assert Memory.open(own).get(["emma.txt"])[0].text == "Emma is red."


def test_log_and_delete(own) -> None:
    done = cli("index", "delete", own, "emma.txt", "rome.txt", "--json")
    assert done.json == {"memory": str(own), "version": 3, "deleted": 2, "passages": 2}
    versions = cli("index", "log", own, "--json").json["versions"]
    assert [(v["version"], v["passages"], v["change"]) for v in versions] == [
        (1, 0, "created"),
        (2, 4, "added 4"),
        (3, 2, "deleted 2"),
    ]
    assert all(v["time"].endswith("+00:00") for v in versions)
    shown = cli("index", "log", own).stdout.splitlines()
    assert [line.split()[0] for line in shown[1:]] == ["1", "2", "3"]
    assert cli("index", "delete", own, "paris.txt").stdout == f"{own} version 4: deleted 1; 1 passages left\n"
    assert "1 ids are not in" in cli("index", "delete", own, "paris.txt").error()
    assert Memory.open(own).version == 4


def test_files_of_a_folder_that_cannot_be_read_are_skipped_and_reported(tmp_path, encoder) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.txt").write_text("Paris is a city.")
    (folder / "broken.txt").write_bytes(b"\xff\x00")
    (folder / "model.pkl").write_bytes(b"\x80\x04.")
    os.mkfifo(folder / "pipe.txt")
    done = cli("index", "add", tmp_path / "m.lance", folder, "--encoder", encoder, "--json")
    assert done.code == 0
    assert done.json["added"] == 1
    skipped = {Path(each["file"]).name: each["reason"] for each in done.json["skipped"]}
    assert set(skipped) == {"broken.txt", "model.pkl", "pipe.txt"}
    assert "not UTF-8" in skipped["broken.txt"]
    assert "pickle files are never read" in skipped["model.pkl"]
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"skipped {folder}/") for line in lines)


def test_skipped_files_are_reported_when_nothing_is_left(tmp_path, encoder) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "broken.txt").write_bytes(b"\xff\x00")
    done = cli("index", "add", tmp_path / "m.lance", tmp_path / "mixed", "--encoder", encoder)
    assert done.code == 2
    skipped, error = done.stderr.splitlines()
    assert skipped.startswith("skipped ")
    assert error.startswith("error: no passages in the input")
    assert listing(tmp_path) == ["mixed"]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_documents_of_every_format_are_added(tmp_path, encoder, workers) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(making.pdf([["Paris is a city."], ["Rome too."]]))
    (folder / "b.html").write_text("<title>Emma</title><nav>menu</nav><main>Emma is a novel.</main>")
    (folder / "c.docx").write_bytes(making.docx(making.paragraph("Austen wrote Emma.")))
    (folder / "d.xml").write_bytes(making.dump(making.page(7, "Fidelio", "'''Fidelio''' is an opera.")))
    (folder / "e.pdf").write_bytes(making.pdf([[]]))
    arguments = ["--encoder", encoder, "--words", 4, "--workers", workers, "--json"]
    done = cli("index", "add", tmp_path / "m.lance", folder, *arguments)
    assert (done.code, done.json["added"]) == (0, 5)
    assert [Path(each["file"]).name for each in done.json["skipped"]] == ["e.pdf"]
    assert "run OCR over it" in done.stderr
    found = {z.id: (z.title, z.text, z.page) for z in Memory.open(tmp_path / "m.lance").passages()}
    assert found == {
        id_of_part("a.pdf", "Paris is a city."): ("a", "Paris is a city.", 1),
        id_of_part("a.pdf", "Rome too."): ("a", "Rome too.", 2),
        "b.html": ("Emma", "Emma is a novel.", None),
        "c.docx": ("c", "Austen wrote Emma.", None),
        "7": ("Fidelio", "Fidelio is an opera.", None),
    }


def test_an_impossible_number_of_workers(tmp_path, encoder, files) -> None:
    done = cli("index", "add", tmp_path / "m.lance", files, "--encoder", encoder, "--workers", -1)
    assert "--workers=-1; needed 0 or more" in done.error()
    assert listing(tmp_path) == []


def write_damaged(name: str, folder: Path) -> Path:
    file = folder / name
    if name == "half.jsonl":
        file.write_text(json.dumps({"id": "1", "text": "Paris"}) + "\n{")
    elif name == "twice.jsonl":
        file.write_text((json.dumps({"id": "1", "text": "Paris"}) + "\n") * 2)
    elif name != "none.txt":
        file.write_bytes(b"\x80\x04.")
    return file


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("half.jsonl", "half.jsonl line 2: not valid JSON"),
        ("twice.jsonl", "'1' comes twice"),
        ("none.txt", "cannot be read"),
        ("index.pkl", "pickle files are never read"),
    ],
)
def test_bad_files_leave_nothing_behind(name, problem, tmp_path, encoder, own) -> None:
    file = write_damaged(name, tmp_path)
    before = listing(tmp_path)
    assert problem in cli("index", "add", tmp_path / "m.lance", file, "--encoder", encoder).error()
    assert listing(tmp_path) == before
    assert problem in cli("index", "add", own, file, "--encoder", encoder).error()
    assert Memory.open(own).version == 2


def test_an_encoder_that_does_not_match_is_refused(own, tmp_path) -> None:
    other = write_sentence_encoder(tmp_path / "other", head=["Normalize"], seed=9)
    (tmp_path / "new.txt").write_text("Tokyo is a city.")
    error = cli("index", "add", own, tmp_path / "new.txt", "--encoder", other, "--upsert").error()
    assert "passage encoder other (" in error
    assert "use that one, or bring the memory to another encoder" in error
    assert Memory.open(own).version == 2


@pytest.mark.parametrize("kind", ["pickle", "folder"])
@pytest.mark.parametrize("command", [["log"], ["add", "FILES"], ["delete", "x"]])
def test_what_is_no_memory_is_refused_and_left_alone(command, kind, tmp_path, encoder, files) -> None:
    place = tmp_path / "index.pkl"
    if kind == "pickle":
        place.write_bytes(b"\x80\x04.")
    else:
        place.mkdir()
        (place / "thesis.txt").write_text("years of work")
    name, *rest = command
    more = [files, "--encoder", encoder] if name == "add" else rest
    assert "pickles and foreign indexes" in cli("index", name, place, *more).error()
    assert listing(tmp_path) == ["index.pkl"]
    assert place.read_bytes() == b"\x80\x04." if kind == "pickle" else listing(place) == ["thesis.txt"]


def test_demo_is_the_default_encoder(tmp_path, files, home) -> None:
    assert "run `latentrag demo`" in cli("index", "add", tmp_path / "m.lance", files).error()
    assert "give one of them" in cli("index", "add", "m.lance", files, "-m", "a", "--encoder", "b").error()


def test_an_empty_folder_is_a_free_place(tmp_path, encoder, files) -> None:
    (tmp_path / "m.lance").mkdir()
    assert cli("index", "add", tmp_path / "m.lance", files, "--encoder", encoder).code == 0
    assert len(Memory.open(tmp_path / "m.lance")) == 4


def test_interrupted_it_goes_on_with_the_same_command(tmp_path, encoder, files, monkeypatch) -> None:
    working = SentenceEncoder.encode_passages
    encoded: list[object] = []

    def interrupted(self, passages, **options):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.extend(passage.id for passage in passages)
        return working(self, passages, **options)

    command = ["index", "add", tmp_path / "m.lance", files, "--encoder", encoder, "--commit-every", 1]
    with monkeypatch.context() as patch:
        patch.setattr(SentenceEncoder, "encode_passages", interrupted)
        done = cli(*command)
    assert (done.code, done.stdout) == (130, "")
    assert done.stderr == "interrupted; what was committed stays, run the same command again to continue\n"
    committed = [passage.id for passage in Memory.open(tmp_path / "m.lance").passages()]
    assert committed == encoded
    done = cli(*command)
    assert done.stdout == f"{tmp_path}/m.lance version 5: added 2, 2 were there already; 4 passages in all\n"
    assert sorted(z.id for z in Memory.open(tmp_path / "m.lance").passages()) == sorted(f"{n}.txt" for n in DOCUMENTS)
    assert cli(*command).stdout.endswith("version 5: added 0, 4 were there already; 4 passages in all\n")


@pytest.mark.parametrize("command", ["add", "sync"])
def test_a_file_that_never_ends_is_skipped(command, tmp_path, encoder) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("before")
    (folder / "endless.pdf").write_bytes(making.endless_pdf())
    (folder / "z.txt").write_text("after")
    path = tmp_path / "m.lance"
    done = cli("index", command, path, folder, "--encoder", encoder, "--time-limit", 1, "--json")
    assert (done.code, len(Memory.open(path))) == (0, 2)
    assert done.stderr == (
        f"skipped {folder}/endless.pdf: given up: a document took more than 1 s; "
        "remove or repair the file, or raise the limit\n"
    )
    assert [skipped["file"] for skipped in done.json["skipped"]] == [str(folder / "endless.pdf")]


@pytest.mark.parametrize("command", ["add", "sync"])
@pytest.mark.parametrize("limit", [0, -1, "nan"])
def test_a_time_limit_that_nothing_meets(command, limit, tmp_path, encoder, files) -> None:
    done = cli("index", command, tmp_path / "m.lance", files, "--encoder", encoder, "--time-limit", limit)
    assert done.error().endswith("needed a finite number" if limit == "nan" else "needed more than 0")


def test_the_files_of_a_memory_are_no_documents(memory, files, encoder, tmp_path) -> None:
    """Neither where it lies in the folder that is read, nor where it is named itself."""
    place = shutil.copytree(files, tmp_path / "place")
    own, other = (shutil.copytree(memory, place / name) for name in ("own.lance", "other.lance"))
    for command in ("add", "sync"):
        assert (
            "it is a memory, and its files are no documents"
            in cli("index", command, tmp_path / f"{command}.lance", own, "--encoder", encoder).error()
        )
    done = cli("index", "sync", own, place, "--encoder", encoder, "--json")
    assert done.json["files"]["added"] == 4
    assert done.stderr.startswith(f"skipped {other}: it is a memory")
    assert len(done.stderr.splitlines()) == 1
