"""index diff, tag, use, prune, compact, forget, verify, repair, and ask --as-of."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from latentrag.cli.index import listed_versions
from latentrag.ids import id_of_part
from latentrag.memory import Memory, storage, version_files
from tests.cli.conftest import DOCUMENTS, QUESTION, cli

RED_ROME = id_of_part("rome.txt", "Rome is red.")


@pytest.fixture
def own(memory, tmp_path, encoder) -> Path:
    """Version 2 has four passages, 3 lacks emma.txt, 4 has moon.txt and another rome.txt."""
    own = shutil.copytree(memory, tmp_path / "own.lance")
    assert cli("index", "delete", own, "emma.txt").code == 0
    (tmp_path / "moon.txt").write_text("The moon is blue.")
    (tmp_path / "rome.txt").write_text("Rome is red.")
    added = cli("index", "add", own, tmp_path / "moon.txt", tmp_path / "rome.txt", "--encoder", encoder, "--upsert")
    assert added.code == 0
    return own


def test_diff(own) -> None:
    assert cli("index", "diff", own, "2", "newest").stdout.splitlines() == [
        "+ moon.txt",
        f"+ {RED_ROME}",
        "- emma.txt",
        "- rome.txt",
        f"{own} version 2 to 4: 2 added, 0 changed, 2 removed",
    ]
    found = cli("index", "diff", own, "4", "2", "--json").json
    assert (found["from"], found["to"]) == (4, 2)
    assert (found["added"], found["changed"], found["removed"]) == (
        ["emma.txt", "rome.txt"],
        [],
        ["moon.txt", RED_ROME],
    )
    assert found["reencoded"] is False


def test_tags(own) -> None:
    assert cli("index", "tag", own, "before", "2").stdout == f"{own} version 2 is now named before\n"
    assert cli("index", "tag", own, "now", "--json").json["version"] == 4
    assert cli("index", "tag", own).stdout == "before 2\nnow 4\n"
    assert cli("index", "tag", own, "--json").json["tags"] == {"before": 2, "now": 4}
    log = cli("index", "log", own, "--json").json["versions"]
    assert [(v["version"], v["tags"], v["served"]) for v in log] == [
        (1, [], False),
        (2, ["before"], False),
        (3, [], False),
        (4, ["now"], True),
    ]
    assert "names version 2 already; remove it first" in cli("index", "tag", own, "before").error()
    assert "--remove takes one name" in cli("index", "tag", own, "--remove").error()
    assert "cannot be a tag" in cli("index", "tag", own, "7").error()
    assert cli("index", "tag", own, "before", "--remove").stdout == f"{own} version 2 is no longer named before\n"
    assert cli("index", "tag", own, "--json").json["tags"] == {"now": 4}


def ask(model: Path, own: Path, *more: object) -> int:
    return cli("ask", QUESTION, "-m", model, "-i", own, "--json", *more).json["memory_version"]


def test_ask_as_of(model, own) -> None:
    cli("index", "tag", own, "before", "2")
    today = str(datetime.now(UTC).date())
    assert [ask(model, own, "--as-of", name) for name in ("2", "before", "newest", today)] == [2, 2, 4, 4]
    refused = cli("ask", QUESTION, "-m", model, "-i", own, "--as-of", "9").error()
    assert "has no version 9; choose one of 1, 2, 3, 4" in refused
    assert (
        "has no version 'x'; give a number or a tag (before)"
        in cli("ask", QUESTION, "-m", model, "-i", own, "--as-of", "x").error()
    )


def test_notes_say_when_upkeep_is_worth_it(own, monkeypatch) -> None:
    monkeypatch.setattr("latentrag.memory.upkeep.MANY_VERSIONS", 4)
    done = cli("index", "log", own)
    assert done.code == 0
    assert done.stderr.startswith("note: every commit gets slower; remove the oldest of 4 versions with `latentrag ")


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([], "no version"),
        ([7], "version 7"),
        ([1, 2], "versions 1, 2"),
        ([*range(1, 494)], "versions 1–493"),
        ([9, 1, 2, 3, 5, 6], "versions 1–3, 5, 6, 9"),
    ],
)
def test_versions_are_listed_as_runs(numbers, words) -> None:
    assert listed_versions(numbers) == words


def test_use_chooses_what_is_asked_and_changes_nothing(model, own) -> None:
    assert cli("index", "use", own, "3").stdout == f"{own} version 3 is served; 3 passages\n"
    assert (ask(model, own), ask(model, own, "--as-of", "newest")) == (3, 4)
    assert cli("index", "delete", own, "moon.txt", "--json").json["version"] == 5
    assert ask(model, own) == 3
    assert "(served)" in cli("index", "log", own).stdout.splitlines()[3]
    assert cli("index", "use", own, "newest", "--json").json["follows_newest"] is True
    assert ask(model, own) == 5
    assert "has no version 9" in cli("index", "use", own, "9").error()


def test_prune_and_compact(own) -> None:
    cli("index", "tag", own, "before", "2")
    assert "give one of them" in cli("index", "prune", own).error()
    assert "the newest always stays" in cli("index", "prune", own, "--keep", 0).error()
    done = cli("index", "prune", own, "--keep", 1, "--json").json
    assert (done["removed"], done["kept"]) == ([1, 3], [2])
    assert done["freed_bytes"] > 0
    cli("index", "tag", own, "before", "--remove")
    assert cli("index", "prune", own, "--older-than", 0).stdout.startswith(f"{own}: removed version 2, ")
    assert cli("index", "compact", own).stdout == f"{own} version 5: 2 files are now 1\n"
    assert cli("index", "compact", own).stdout == f"{own} version 5: nothing to compact\n"
    assert len(Memory.open(own)) == 4


def test_forget(own, model) -> None:
    cli("index", "tag", own, "before", "2")
    done = cli("index", "forget", own, "emma.txt", "-m", model, "--json").json
    assert [z["text"] for z in done["forgotten"]] == [DOCUMENTS["emma"]]
    assert (done["version"], done["dropped"], done["tags"], done["left"]) == (5, [2, 3, 4], ["before"], [])
    (known,) = done["closed_book"]
    assert (known["id"], known["x"], known["y"]) == ("emma.txt", "emma Emma is a", "novel. Austen wrote Emma.")
    assert known["log_prob"] < 0
    assert "does not unlearn parameters" in done["note"]

    done = cli("index", "forget", own, RED_ROME)
    assert done.stdout.splitlines()[0] == f"- {RED_ROME}: Rome is red."
    assert f"{own} version 7: forgot 1; removed version" in done.stdout
    assert "does not unlearn parameters" in done.stderr
    assert "1 ids are in no version of" in cli("index", "forget", own, "emma.txt").error()
    assert {z.id for z in Memory.open(own).passages()} == {"paris.txt", "fidelio.txt", "moon.txt"}


def test_forget_names_the_files_that_bring_a_passage_back(tmp_path, files, encoder) -> None:
    folder, path = shutil.copytree(files, tmp_path / "notes"), tmp_path / "m.lance"
    sync = ["index", "sync", path, folder, "--encoder", encoder]
    assert cli(*sync).code == 0
    back = (
        "notes/emma.txt came by sync and comes back with the next one unless its file goes too: "
        f"{folder.resolve()}/emma.txt"
    )
    done = cli("index", "forget", path, "notes/emma.txt")
    assert back in done.stderr.splitlines()
    assert cli(*sync, "--json").json["passages"]["added"] == 1  # it did

    (returning,) = cli("index", "forget", path, "notes/rome.txt", "--json").json["returning"]
    assert returning == {
        "origin": "notes/rome.txt",
        "file": str(folder.resolve() / "rome.txt"),
        "ids": ["notes/rome.txt"],
    }
    (folder / "emma.txt").unlink()
    done = cli("index", "forget", path, "notes/emma.txt")
    assert "comes back" not in done.stderr
    shutil.rmtree(path / "_sync")  # nothing is known of where the folder lay
    assert cli("index", "forget", path, "notes/paris.txt").stderr.splitlines()[0].endswith("too: notes/paris.txt")
    assert cli(*sync, "--json").json["passages"]["in_all"] == 3


def test_forget_says_what_it_cannot_remove(own) -> None:
    (own / "notes.txt").write_text(DOCUMENTS["emma"])
    done = cli("index", "forget", own, "emma.txt")
    assert done.code == 1
    assert "warning: notes.txt still holds a text" in done.stderr


@pytest.mark.filterwarnings("default")  # the command shows it as a line
def test_verify_and_repair(own) -> None:
    done = cli("index", "verify", own)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{own} version 4: whole; 4 passages, 4 versions, ")
    assert cli("index", "verify", own, "--json").json["whole"] is True
    (own / version_files.manifest_name(4)).write_bytes(b"")

    done = cli("index", "verify", own)
    assert done.code == 1
    problem, summary = done.stdout.splitlines()
    assert problem.startswith(f"problem: version 4 of the memory at {own} cannot be read (")
    assert f"`latentrag index repair {own}`" in problem
    assert summary.startswith(f"{own} version 3: 1 problems; 3 passages")
    found = cli("index", "verify", own, "--json")
    assert (found.code, found.json["whole"], len(found.json["problems"])) == (1, False, 1)

    warning, error = cli("index", "delete", own, "paris.txt").stderr.splitlines()
    assert warning.startswith("warning: version 4 ")
    assert "; opened version 3, the newest that can" in warning
    assert error.startswith("error: version 4 ")
    why, lost, repaired = cli("index", "repair", own).stdout.splitlines()
    assert why == f"version 4: {version_files.manifest_name(4)} is not as it was written"
    assert lost == f"lost: moon.txt, {RED_ROME}"
    assert repaired == f"{own} version 3: set aside version 4"
    assert cli("index", "repair", own).stdout == f"{own} version 3: every version is whole\n"
    assert cli("index", "delete", own, "paris.txt").code == 0
    assert cli("index", "verify", own).code == 0


def test_verify_measures_indexes(own) -> None:
    assert cli("index", "build", own, "--index", "ivf-rabitq").code == 0
    done = cli("index", "verify", own, "--sample", 3, "--seed", 7)
    assert done.code == 0
    line = done.stdout.splitlines()[0]
    assert line.startswith("the index ivf-rabitq-4-")
    assert line.endswith(" finds 100.0% (±0.0%) of the 4 best passages, over 3 questions")
    (index,) = cli("index", "verify", own, "--json").json["indexes"]
    assert (index["kind"], index["built_version"], index["version"], index["faults"]) == ("ivf-rabitq", 4, 4, [])
    (recall,) = index["recall"]
    assert recall == {"k": 4, "share": 1.0, "standard_error": 0.0, "num_questions": 4, "needed": 0.98}
    (own / "_indexes" / index["folder"] / "index.faiss").write_bytes(b"")
    done = cli("index", "verify", own)
    assert done.code == 1
    assert "is damaged" in done.stdout.splitlines()[0]


def test_a_second_writer_gets_one_line(own) -> None:
    with storage.LocalDisk(own).lock() as held:
        error = cli("index", "delete", own, "paris.txt").error()
        assert "is being changed by process" in error
        assert "try again when that is done" in error
        held.done()


@pytest.mark.parametrize(
    "command",
    [["diff", "1", "2"], ["tag"], ["use", "1"], ["prune", "--keep", "1"], ["compact"], ["forget", "x"], ["verify"]],
)
def test_what_is_no_memory_is_refused_and_left_alone(command, tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    name, *rest = command
    for place in ("folder", "none"):
        assert "memory" in cli("index", name, tmp_path / place, *rest).error()
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]
