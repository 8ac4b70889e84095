"""index sync."""

import shutil
from pathlib import Path

import pytest

from latentrag.memory import Memory
from tests.cli.conftest import DOCUMENTS, cli

NOT_UTF_8 = "not UTF-8 text (byte 0xff at offset 0); save it as UTF-8, or say with --encoding what it is"


@pytest.fixture
def folder(files, tmp_path) -> Path:
    """A folder of text files that the test may change, one of them not readable."""
    own = shutil.copytree(files, tmp_path / "notes")
    (own / "broken.txt").write_bytes(b"\xff\x00")
    return own


def test_a_folder_is_synced_and_can_be_asked(tmp_path, folder, encoder, model) -> None:
    path = tmp_path / "m.lance"
    done = cli("index", "sync", path, folder, "--encoder", encoder, "--json")
    assert done.code == 0
    assert done.stderr.splitlines() == [
        f"skipped {folder}/broken.txt: {NOT_UTF_8}",
    ]
    assert done.json == {
        "memory": str(path),
        "folder": str(folder),
        "name": "notes",
        "dry_run": False,
        "version": 2,
        "files": {"added": 4, "changed": 0, "removed": 0, "missing": 0, "unchanged": 0, "skipped": 1},
        "passages": {
            "added": 4,
            "changed": 0,
            "removed": 0,
            "missing": 0,
            "unchanged": 0,
            "encoded": 4,
            "in_all": 4,
        },
        "skipped": [
            {
                "file": str(folder / "broken.txt"),
                "reason": NOT_UTF_8,
            }
        ],
        "ledgers": [],
        "missing": [],
        "pruned": [],
    }
    passages = {passage.id: passage.text for passage in Memory.open(path).passages()}
    assert passages == {f"notes/{name}.txt": text for name, text in DOCUMENTS.items()}
    asked = cli("ask", "Who wrote Emma?", "-m", model, "-i", path, "-k", 4, "--max-tokens", 2, "--json").json
    assert {source["source"] for source in asked["sources"]} == set(passages)


def test_changes_are_said_in_one_line(tmp_path, folder, encoder) -> None:
    path = tmp_path / "m.lance"
    (folder / "broken.txt").unlink()
    common = ["index", "sync", path, folder, "--encoder", encoder]
    assert cli(*common).stdout == (
        f"{path} version 2: files 4 added, 0 changed, 0 removed, 0 unchanged, 0 skipped; "
        "passages 4 added, 0 changed, 0 removed, 0 unchanged, 4 encoded; 4 in all\n"
    )
    (folder / "emma.txt").write_text("Emma is a book.")
    (folder / "rome.txt").unlink()
    gone = f"1 files are gone from {folder}, their 1 passages stay; --delete-missing removes them\n"
    dry = cli(*common, "--dry-run")
    told = (
        "files 0 added, 1 changed, 0 removed, 2 unchanged, 0 skipped; "
        "passages 1 added, 0 changed, 1 removed, 2 unchanged, 1 encoded; 4 in all\n"
    )
    assert (dry.stdout, dry.stderr) == (f"dry run, nothing is changed: {path} version 2: {told}", gone)
    done = cli(*common)
    assert (done.stdout, done.stderr) == (f"{path} version 3: {told}", gone)
    done = cli(*common, "--delete-missing", "--json")
    assert (done.json["files"]["removed"], done.json["passages"]["in_all"], done.stderr) == (1, 3, "")


def test_dry_run_of_a_first_sync_makes_nothing(tmp_path, folder, encoder) -> None:
    done = cli("index", "sync", tmp_path / "m.lance", folder, "--dry-run", "--json", "--encoder", encoder)
    assert (done.code, done.json["version"], done.json["passages"]["encoded"]) == (0, None, 4)
    assert [each.name for each in tmp_path.iterdir()] == ["notes"]
    text = cli("index", "sync", tmp_path / "m.lance", folder, "--dry-run", "--encoder", encoder).stdout
    assert text.startswith(f"dry run, nothing is changed: {tmp_path}/m.lance no memory: files 4 added")


def test_control_c(tmp_path, folder, encoder, monkeypatch) -> None:
    from latentrag.encoder.sentence import SentenceEncoder

    encode = SentenceEncoder.encode_passages
    calls = []

    def interrupted(self, passages, **options):
        calls.append(len(passages))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, passages, **options)

    common = ["index", "sync", tmp_path / "m.lance", folder, "--encoder", encoder, "--commit-every", 1]
    with monkeypatch.context() as patch:
        patch.setattr(SentenceEncoder, "encode_passages", interrupted)
        done = cli(*common)
    assert (done.code, done.stdout) == (130, "")
    assert done.stderr == "interrupted; what was committed stays, run the same command again to continue\n"
    assert len(Memory.open(tmp_path / "m.lance")) == 2
    assert cli(*common, "--json").json["passages"]["encoded"] == 2


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--words", 0], "--words=0; needed 1 or more"),
        (["--commit-every", 0], "--commit-every=0; needed 1 or more"),
        (["--name", "a/b"], "a folder cannot be known as 'a/b'"),
        (["--name", "\udcff"], "not UTF-8"),
        (["-m", "x", "--encoder", "y"], "give one of them"),
        (["--encoder", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_cost_one_line_and_change_nothing(options, problem, tmp_path, folder) -> None:
    (folder / "broken.txt").unlink()
    assert problem in cli("index", "sync", tmp_path / "m.lance", folder, *options).error()
    assert [each.name for each in tmp_path.iterdir()] == ["notes"]


def test_what_is_no_folder_or_no_memory(tmp_path, folder, encoder) -> None:
    done = cli("index", "sync", tmp_path / "m.lance", tmp_path / "nowhere", "--encoder", encoder)
    assert "nowhere: cannot be read (No such file or directory)" in done.error()
    done = cli("index", "sync", tmp_path / "m.lance", folder / "emma.txt", "--encoder", encoder)
    assert "add a file with `latentrag index add`" in done.error()
    assert "pickles and foreign indexes" in cli("index", "sync", folder, folder, "--encoder", encoder).error()


def test_progress_says_files_and_passages() -> None:
    from latentrag import io
    from latentrag.cli.sync import _shown_on
    from latentrag.sync import Progress

    shown: list[tuple[int | None, int | None, str | None]] = []

    class Bar(io.Progress):
        def update(
            self, *, completed: int | None = None, total: int | None = None, description: str | None = None
        ) -> None:
            shown.append((completed, total, description))

    show = _shown_on(Bar())
    show(Progress(1, 3, 0))
    show(Progress(2, 3, 120))
    assert shown[0] == (1, 3, "files")
    assert shown[1][:2] == (2, 3)
    assert (shown[1][2] or "").startswith("files, 120 passages, ")
