"""What a sync does to the memory, and what it leaves alone."""

import json
import os
import shutil
import sys
import unicodedata
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from latentrag.errors import DataError, EncoderMismatchError, InputError, MemoryStoreError
from latentrag.ids import id_of_part
from latentrag.memory import Memory
from latentrag.memory.schema import schema
from latentrag.memory.table import Table
from latentrag.sync import Report
from latentrag.sync.folder import read_again
from latentrag.types import Passage
from tests.sync.conftest import CountingEncoder, Synced


def files(report: Report) -> tuple[int, ...]:
    """added, changed, removed, missing, unchanged, skipped"""
    return (*astuple(report.files), len(report.skipped))


def rows(*pairs: tuple[str, str]) -> str:
    return "".join(json.dumps({"id": key, "text": text, "title": "t"}) + "\n" for key, text in pairs)


def words(start: int, stop: int) -> str:
    return " ".join(f"w{i}" for i in range(start, stop))


def id_of(name: str, text: str) -> str:
    """Of a passage that is a part of a file."""
    return id_of_part(f"notes/{name}", text)


def test_a_first_sync_makes_the_memory(synced: Synced):
    synced.write("a.txt", "Paris is a city.")
    synced.write("sub/b.md", "# Rome\nRome is a city.")
    synced.write("c.jsonl", '{"text": "no id"}\n{"id": "own", "text": "own id", "source": "https://x"}\n')
    report = synced.sync()
    assert files(report) == (3, 0, 0, 0, 0, 0)
    assert astuple(report.passages) == (4, 0, 0, 0, 0)
    assert (report.name, report.num_encoded, report.num_passages, report.version) == ("notes", 4, 4, 2)
    assert [v.change for v in synced.memory.log()] == ["created", "synced notes: added 4, changed 0, removed 0"]
    found = synced.passages()
    assert {key: (z.source, z.origin) for key, z in found.items()} == {
        "notes/a.txt": ("notes/a.txt", "notes/a.txt"),
        "notes/sub/b.md": ("notes/sub/b.md", "notes/sub/b.md"),
        "notes/c.jsonl:1": ("notes/c.jsonl", "notes/c.jsonl"),
        "own": ("https://x", "notes/c.jsonl"),
    }
    assert found["notes/sub/b.md"].title == "Rome"


def test_a_second_sync_reads_no_file_and_commits_nothing(synced: Synced, monkeypatch):
    for i in range(5):
        old = synced.write(f"{i}.txt", f"text {i}")
        os.utime(old, (1_000_000, 1_000_000))
    synced.sync()
    before = sorted(synced.path.rglob("*"))
    monkeypatch.setattr("latentrag.sync.folder._contents", lambda *_, **__: pytest.fail("read again"))
    monkeypatch.setattr("latentrag.sync.folder.sha256_of_file", lambda *_: pytest.fail("hashed again"))
    monkeypatch.setattr("latentrag.memory.origins.file_digests", lambda *_: pytest.fail("the table was read"))
    report = synced.sync()
    assert (files(report), report.version) == ((0, 0, 0, 0, 5, 0), 2)
    assert astuple(report.passages) == (0, 0, 0, 0, 5)
    assert synced.encoder.texts == []
    assert sorted(synced.path.rglob("*")) == before


def test_a_file_that_was_only_touched_is_hashed_and_not_read(synced: Synced, monkeypatch):
    file = synced.write("a.txt", "text")
    synced.sync()
    os.utime(file, (1_000_000, 1_000_000))
    monkeypatch.setattr("latentrag.sync.folder._contents", lambda *_, **__: pytest.fail("read again"))
    assert files(synced.sync()) == (0, 0, 0, 0, 1, 0)
    monkeypatch.setattr("latentrag.sync.folder.sha256_of_file", lambda *_: pytest.fail("hashed again"))
    assert files(synced.sync()) == (0, 0, 0, 0, 1, 0)  # the new time was noted


def test_only_changed_passages_are_encoded(synced: Synced):
    synced.write("a.txt", words(0, 350))
    synced.write("b.txt", "other")
    synced.sync()
    synced.write("a.txt", words(0, 250) + " " + words(900, 1000) + " " + words(0, 7))
    report = synced.sync()
    assert files(report) == (0, 1, 0, 0, 1, 0)
    assert astuple(report.passages) == (2, 0, 2, 0, 3)
    assert report.num_encoded == len(synced.encoder.texts) == 2
    assert synced.texts()[id_of("a.txt", words(950, 1000) + " " + words(0, 7))].split()[-1] == "w6"
    # The start of each passage is compared too: one space more at the top moves them all, and nothing is encoded.
    synced.write("a.txt", " " + words(0, 250) + " " + words(900, 1000) + " " + words(0, 7))
    report = synced.sync()
    assert (astuple(report.passages), report.num_encoded, synced.encoder.texts) == ((0, 4, 0, 0, 1), 0, [])
    assert synced.passages()[id_of("a.txt", words(0, 100))].start == 1


def test_passages_that_vanish_from_a_file_are_removed(synced: Synced):
    synced.write("a.txt", words(0, 350))
    synced.write("rows.jsonl", rows(("1", "one"), ("2", "two"), ("3", "three")))
    synced.sync()
    synced.write("a.txt", words(0, 150))
    synced.write("rows.jsonl", rows(("3", "three"), ("1", "uno")))
    report = synced.sync()
    assert astuple(report.passages) == (1, 1, 4, 0, 2)
    assert set(synced.texts()) == {id_of("a.txt", words(0, 100)), id_of("a.txt", words(100, 150)), "1", "3"}
    assert synced.texts()["1"] == "uno"
    synced.write("rows.jsonl", "")  # a file that is empty is one whose passages have all gone
    assert astuple(synced.sync().passages) == (0, 0, 2, 0, 2)
    assert files(synced.sync()) == (0, 0, 0, 0, 2, 0)


def test_files_that_are_gone_stay_unless_asked(synced: Synced):
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        synced.write(name, f"text of {name}")
    synced.sync()
    (synced.folder / "b.txt").unlink()
    shutil.rmtree(synced.folder / "sub")
    report = synced.sync()
    assert (files(report), report.version) == ((0, 0, 0, 2, 1, 0), 2)
    assert (report.missing, report.passages.missing) == (["notes/b.txt", "notes/sub/c.txt"], 2)
    report = synced.sync(delete_missing=True)
    assert (files(report), astuple(report.passages)) == ((0, 0, 2, 0, 1, 0), (0, 0, 2, 0, 1))
    assert set(synced.texts()) == {"notes/a.txt"}
    assert synced.sync(delete_missing=True).version == report.version == 3


def test_an_empty_folder_does_not_empty_the_memory(synced: Synced):
    file = synced.write("a.txt", "text")
    synced.sync()
    file.unlink()
    with pytest.raises(InputError, match="has no file that is read, and the memory has 1 from there"):
        synced.sync(delete_missing=True)
    assert files(synced.sync()) == (0, 0, 0, 1, 0, 0)
    with pytest.raises(DataError, match="cannot be read"):
        synced.sync(synced.folder / "nowhere", name="notes", delete_missing=True)
    assert set(synced.texts()) == {"notes/a.txt"}


def test_a_renamed_file_keeps_its_vectors(synced: Synced):
    synced.write("a.md", "# Same title\n" + words(0, 250))
    synced.write("rows.jsonl", rows(("1", "one"), ("2", "two")))
    synced.sync()
    (synced.folder / "a.md").rename(synced.folder / "z.md")
    (synced.folder / "rows.jsonl").rename(synced.folder / "lines.jsonl")
    report = synced.sync(delete_missing=True)
    # The rows' own ids went with them; the ids of z.md are new.
    assert (files(report), astuple(report.passages)) == ((2, 0, 2, 0, 0, 0), (3, 2, 3, 0, 0))
    assert (report.num_encoded, synced.encoder.texts) == (0, [])
    assert {z.origin for z in synced.passages().values()} == {"notes/z.md", "notes/lines.jsonl"}
    assert files(synced.sync()) == (0, 0, 0, 0, 2, 0)


def test_vectors_are_not_taken_over_from_a_damaged_file(synced: Synced):
    synced.write("a.md", "# Paris\nParis is a city.")
    synced.sync()
    (written,) = (synced.path / "data").iterdir()
    content = bytearray(written.read_bytes())
    ((_, vectors),) = Table.open(synced.path).vectors()
    place = content.index(vectors[0].tobytes())
    content[place] ^= 1
    written.write_bytes(content)
    (synced.folder / "a.md").rename(synced.folder / "z.md")
    with pytest.raises(MemoryStoreError, match="is not as it was written, so nothing of .* is copied"):
        synced.sync(delete_missing=True)
    assert [passage.id for passage in synced.memory.passages()] == ["notes/a.md"]


def test_rows_that_move_to_another_file_go_with_it(synced: Synced):
    synced.write("1.jsonl", rows(("a", "A"), ("b", "B")))
    synced.write("2.jsonl", rows(("c", "C"), ("d", "D")))
    synced.sync()
    synced.write("1.jsonl", rows(("a", "A"), ("b", "B"), ("c", "C")))
    synced.write("2.jsonl", rows(("d", "D"), ("e", "E")))
    report = synced.sync()
    assert astuple(report.passages) == (1, 1, 0, 0, 3)
    assert synced.encoder.texts == ["E"]
    assert {key: z.origin[-7] for key, z in synced.passages().items()} == dict(zip("abcde", "11122", strict=True))
    assert (files(synced.sync()), synced.memory.version) == ((0, 0, 0, 0, 2, 0), 3)


def test_an_id_belongs_to_one_file(synced: Synced):
    synced.write("1.jsonl", rows(("a", "first")))
    synced.write("2.jsonl", rows(("a", "second"), ("b", "B")))
    synced.write("3.jsonl", rows(("c", "C"), ("c", "twice")))
    for _ in range(2):
        report = synced.sync()
        assert [(path.name, reason) for path, reason in report.skipped] == [
            ("2.jsonl", "passage 'a' is in the memory already, from notes/1.jsonl; rename it or delete that one"),
            ("3.jsonl", "passage 'c' comes twice in it; give each row its own id"),
        ]
        assert (synced.texts(), report.version) == ({"a": "first"}, 2)
    (synced.folder / "1.jsonl").unlink()
    assert astuple(synced.sync().passages) == (1, 1, 0, 0, 0)
    assert synced.texts() == {"a": "second", "b": "B"}


def test_what_was_added_by_hand_stays(synced: Synced):
    synced.write("a.txt", "synced")
    synced.write("rows.jsonl", rows(("1", "of the file"), ("2", "two")))
    memory = Memory.create(synced.path, synced.encoder)
    memory.add([Passage("1", "by hand", source="notes/rows.jsonl"), Passage("x", "X")], synced.encoder)
    report = synced.sync()
    assert [reason for _, reason in report.skipped] == [
        "passage '1' is in the memory already, added by hand; rename it or delete that one"
    ]
    assert synced.texts() == {"1": "by hand", "x": "X", "notes/a.txt": "synced"}
    synced.write("rows.jsonl", rows(("2", "two")))
    synced.sync()
    (synced.folder / "a.txt").unlink()
    synced.sync(delete_missing=True)
    assert synced.texts() == {"1": "by hand", "x": "X", "2": "two"}
    # A synced passage that is replaced by hand is by hand from then on.
    synced.memory.upsert([Passage("2", "mine")], synced.encoder)
    assert len(synced.sync().skipped) == 1
    assert synced.texts()["2"] == "mine"


def test_a_passage_deleted_from_the_memory_alone_comes_back(synced: Synced):
    synced.write("a.txt", words(0, 150))
    synced.sync()
    before = synced.passages()
    synced.memory.delete([id_of("a.txt", words(100, 150))])
    report = synced.sync()
    assert (files(report), astuple(report.passages)) == ((0, 1, 0, 0, 0, 0), (1, 0, 0, 0, 1))
    assert synced.passages() == before


def test_two_folders_in_one_memory(synced: Synced, tmp_path):
    synced.write("a.txt", "ours")
    other = tmp_path / "papers"
    other.mkdir()
    (other / "a.txt").write_text("theirs")
    synced.sync()
    synced.sync(other)
    assert synced.texts() == {"notes/a.txt": "ours", "papers/a.txt": "theirs"}
    (other / "a.txt").rename(other / "b.txt")
    synced.sync(other, delete_missing=True)
    assert synced.texts() == {"notes/a.txt": "ours", "papers/b.txt": "theirs"}
    assert files(synced.sync(delete_missing=True)) == (0, 0, 0, 0, 1, 0)


def test_another_folder_of_the_same_name_is_refused(synced: Synced, tmp_path):
    synced.write("a.txt", "ours")
    synced.sync()
    twin = tmp_path / "elsewhere" / "notes"
    shutil.copytree(synced.folder, twin)
    (twin / "a.txt").write_text("theirs")
    with pytest.raises(InputError, match=r"knows .*/notes as 'notes', got .*/elsewhere/notes; pass another --name"):
        synced.sync(twin)
    synced.sync(twin, name="twin")
    assert synced.texts() == {"notes/a.txt": "ours", "twin/a.txt": "theirs"}
    synced.sync(twin, name="notes")
    assert synced.texts() == {id_of("a.txt", "theirs"): "theirs", "twin/a.txt": "theirs"}
    shutil.rmtree(twin)
    assert files(synced.sync()) == (0, 1, 0, 0, 0, 0)  # moved back
    assert synced.texts() == {id_of("a.txt", "ours"): "ours", "twin/a.txt": "theirs"}


def test_a_folder_is_known_by_the_name_it_is_called_by(synced: Synced, tmp_path, monkeypatch):
    synced.write("a.txt", "text")
    (tmp_path / "link").symlink_to(synced.folder)
    assert synced.sync(tmp_path / "link").name == "link"
    monkeypatch.chdir(synced.folder)
    assert [synced.sync(Path(each)).name for each in (".", "../notes")] == ["notes"] * 2


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "/"])
def test_names_that_ids_cannot_be_made_of(synced: Synced, name):
    with pytest.raises(InputError, match="a folder cannot be known as|name is empty"):
        synced.sync(name=name)


def test_the_length_of_passages_is_remembered(synced: Synced):
    synced.write("a.txt", words(0, 100))
    synced.sync(words=20)
    assert len(synced.memory) == 5
    synced.write("b.txt", words(0, 40))
    assert astuple(synced.sync().passages) == (2, 0, 0, 0, 5)
    report = synced.sync(words=50)
    assert (files(report), len(synced.memory)) == ((0, 2, 0, 0, 0, 0), 3)
    assert files(synced.sync(words=50)) == (0, 0, 0, 0, 2, 0)
    for wrong in ({"words": 0}, {"passages_per_commit": 0}):
        with pytest.raises(InputError, match="needed 1 or more"):
            synced.sync(**wrong)


def test_files_that_cannot_be_read_keep_what_the_memory_has(synced: Synced):
    synced.write("a.txt", "a text")
    synced.write("rows.jsonl", rows(("1", "one"), ("2", "two")))
    synced.write("sub/c.txt", "c text")
    synced.sync()
    synced.write("a.txt", b"\xff\x00 broken")
    synced.write("rows.jsonl", rows(("1", "uno"), ("3", "three")) + "{")
    synced.write("new.jsonl", rows(("4", "four")) + "no")
    synced.write("photo.png", b"png")
    os.mkfifo(synced.folder / "pipe.txt")
    for _ in range(2):
        report = synced.sync(delete_missing=True)
        assert (files(report), report.version) == ((0, 0, 0, 0, 1, 5), 2)
    reasons = {path.name: reason for path, reason in report.skipped}
    assert set(reasons) == {"a.txt", "rows.jsonl", "new.jsonl", "photo.png", "pipe.txt"}
    assert reasons["rows.jsonl"].startswith("from line 3 on: not valid JSON")
    assert synced.texts() == {"notes/a.txt": "a text", "1": "one", "2": "two", "notes/sub/c.txt": "c text"}


def test_only_some_versions_are_kept_if_that_is_asked(synced: Synced):
    """Those with a name stay."""
    for number in range(5):
        synced.write("a.txt", f"text {number}")
        synced.sync()
    synced.memory.tag("good", 2)
    synced.write("a.txt", "text")
    assert synced.sync(keep=2, dry_run=True).pruned == []
    report = synced.sync(keep=2)
    assert (report.version, report.pruned) == (7, [1, 3, 4, 5])
    assert [version.number for version in synced.memory.log()] == [2, 6, 7]
    assert synced.sync(keep=2).files.unchanged == 1


def test_what_lies_behind_a_closed_door_is_not_gone(synced: Synced, monkeypatch):
    synced.write("a.txt", "a")
    synced.write("sub/deep/b.txt", "b")
    synced.write("subs/c.txt", "c")
    synced.sync()
    shutil.rmtree(synced.folder / "subs")
    allowed = os.scandir

    def refusing(path):
        if str(path).endswith("/sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    report = synced.sync(delete_missing=True)
    assert [path.name for path, _ in report.skipped] == ["sub"]
    assert (report.files.removed, set(synced.texts())) == (1, {"notes/a.txt", "notes/sub/deep/b.txt"})


def test_a_file_that_changes_or_vanishes_while_it_is_read(synced: Synced, monkeypatch):
    from latentrag.sync import folder as module

    for name in ("a", "b", "c"):
        synced.write(f"{name}.txt", f"first of {name}")
    synced.sync()
    for name in ("a", "b", "c"):
        synced.write(f"{name}.txt", f"second of {name}")
    contents = module._contents

    def meddling(reading, *args):
        if reading.file.path.name == "a.txt":
            synced.write("a.txt", "third of a, longer")
        if reading.file.path.name == "b.txt":
            reading.documents = iter(list(reading.documents))
            reading.file.path.unlink()
        return contents(reading, *args)

    monkeypatch.setattr(module, "_contents", meddling)
    report = synced.sync(delete_missing=True)
    assert [(path.name, reason.split(";")[0]) for path, reason in report.skipped] == [
        ("a.txt", "it changed while it was read"),
        ("b.txt", "cannot be read (No such file or directory)"),
    ]
    monkeypatch.setattr(module, "_contents", contents)
    assert sorted(synced.texts().values()) == ["first of a", "first of b", "second of c"]
    report = synced.sync(delete_missing=True)
    assert (files(report), set(synced.texts().values())) == ((0, 1, 1, 0, 1, 0), {"third of a, longer", "second of c"})


def test_a_change_within_the_clock_s_tick_is_noticed(synced: Synced):
    """Same size, same time, other bytes: so shortly after the first sync, the time proves nothing."""
    file = synced.write("a.txt", "one")
    stat = file.stat()
    synced.sync()
    synced.write("a.txt", "two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert files(synced.sync()) == (0, 1, 0, 0, 0, 0)
    assert list(synced.texts().values()) == ["two"]


def test_checksum_finds_what_size_and_time_hide(synced: Synced):
    file = synced.write("a.txt", "one")
    os.utime(file, (1_000_000, 1_000_000))
    synced.sync()
    synced.write("a.txt", "two")
    os.utime(file, (1_000_000, 1_000_000))
    assert files(synced.sync()) == (0, 0, 0, 0, 1, 0)
    assert files(synced.sync(checksum=True)) == (0, 1, 0, 0, 0, 0)
    assert list(synced.texts().values()) == ["two"]


def test_commits_are_of_bounded_size(synced: Synced):
    for i in range(5):
        synced.write(f"{i}.txt", words(0, 20 * (i + 1)))  # 2, 4, 6, 8, 10 passages
    synced.write("rows.jsonl", rows(*((str(i), f"text {i}") for i in range(23))))
    report = synced.sync(words=10, passages_per_commit=10)
    changes = [v.change for v in synced.memory.log()[1:]]
    added = [int(change.split("added ")[1].split(",")[0]) for change in changes]
    assert added == [6, 6, 8, 10, 10, 10, 3]  # a file is in one commit if it can be
    assert (report.version, report.num_passages) == (8, 53)
    assert synced.sync().version == 8
    synced.write("rows.jsonl", rows(*((str(i), f"text {i if i < 20 else -i}") for i in range(2, 25))))
    report = synced.sync(passages_per_commit=10)
    assert (astuple(report.passages), report.version) == ((2, 3, 2, 0, 48), 9)


def test_a_large_file_that_changes_between_its_two_readings(synced: Synced, monkeypatch):
    from latentrag.sync import writer as module

    synced.write("rows.jsonl", rows(*((str(i), f"text {i}") for i in range(25))))

    def changed_meanwhile(*args):
        synced.write("rows.jsonl", rows(*((str(i), f"text {i if i < 15 else -i}") for i in range(25))))
        return read_again(*args)

    monkeypatch.setattr(module, "read_again", changed_meanwhile)
    report = synced.sync(passages_per_commit=10)
    assert report.skipped[0][1] == "it changed while it was read; sync again"
    monkeypatch.setattr(module, "read_again", read_again)
    synced.sync(passages_per_commit=10)
    assert synced.texts() == {str(i): f"text {i if i < 15 else -i}" for i in range(25)}
    assert synced.sync().files.unchanged == 1


def test_a_memory_inside_the_folder_is_not_read(synced: Synced):
    synced.write("a.txt", "text")
    synced.path = synced.folder / "m.lance"
    synced.sync()
    synced.write("m.lance/readme.txt", "not ours to read")
    assert (files(synced.sync()), set(synced.texts())) == ((0, 0, 0, 0, 1, 0), {"notes/a.txt"})


def test_nothing_to_put_into_a_memory_makes_none(synced: Synced):
    synced.write("broken.txt", b"\xff\x00")
    synced.write("empty.txt", "")
    synced.write("data.txt", "A" * 5_000)
    report = synced.sync()
    assert (report.version, report.num_passages, len(report.skipped)) == (None, 0, 1)
    assert not synced.path.exists()
    synced.write("text.txt", "text")
    assert files(synced.sync()) == (1, 0, 0, 0, 2, 1)


def test_a_place_for_notes_that_cannot_be_made_costs_time_only(synced: Synced):
    synced.write("a.txt", "text")
    synced.sync()
    shutil.rmtree(synced.path / "_sync")
    (synced.path / "_sync").write_text("a file")
    synced.write("b.txt", "more")
    with pytest.warns(UserWarning, match="nothing is lost"):
        assert files(synced.sync()) == (1, 0, 0, 0, 1, 0)


def test_refusals_leave_everything_as_it_was(synced: Synced, tmp_path):
    synced.write("a.txt", "text")
    with pytest.raises(DataError, match="is a file, needed a folder"):
        synced.sync(synced.folder / "a.txt")
    assert not synced.path.exists()
    synced.sync()
    synced.write("b.txt", "more")
    synced.encoder.fingerprint = "c2"
    with pytest.raises(EncoderMismatchError, match="use that one, or bring the memory to another encoder"):
        synced.sync()
    assert synced.memory.version == 2
    synced.path = synced.folder / "a.txt"
    with pytest.raises(MemoryStoreError, match="a memory is a folder"):
        synced.sync()
    assert (synced.folder / "a.txt").read_text() == "text"


def test_an_encoder_that_fails_keeps_what_was_committed(synced: Synced, monkeypatch):
    for i in range(10):
        synced.write(f"{i}.txt", f"text {i}")
    working = synced.encoder.encode_passages

    def failing(passages, **options):
        if any(passage.text == "text 7" for passage in passages):
            raise KeyboardInterrupt
        return working(passages, **options)

    monkeypatch.setattr(synced.encoder, "encode_passages", failing)
    with pytest.raises(KeyboardInterrupt):
        synced.sync(passages_per_commit=3)
    assert len(synced.memory) == 6
    monkeypatch.undo()
    report = synced.sync(passages_per_commit=3)
    assert (files(report), synced.encoder.texts) == ((4, 0, 0, 0, 6, 0), [f"text {i}" for i in (6, 7, 8, 9)])


def test_the_encoder_is_loaded_only_if_a_file_is_read(synced: Synced):
    from latentrag.sync import sync

    synced.write("a.md", "# Title\ntext")
    synced.sync()
    assert sync(synced.path, synced.folder, lambda: pytest.fail("loaded")).files.unchanged == 1
    (synced.folder / "a.md").rename(synced.folder / "b.md")
    report = synced.sync()
    assert (report.passages.added, report.num_encoded) == (1, 0)


def without_origin(schema):
    import pyarrow as pa

    def old(manifest):
        columns = schema(manifest)
        return pa.schema([field for field in columns if field.name != "origin"], metadata=columns.metadata)

    return old


def test_a_memory_from_before_sync(synced: Synced, monkeypatch):
    """Its table has no column ``origin``; all else about it works as before, and the first sync adds the column."""
    from latentrag.memory import table as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "schema", without_origin(schema))
        Memory.create(synced.path, synced.encoder)
    synced.memory.add([Passage("h", "by hand", page=3)], synced.encoder)
    synced.memory.upsert([Passage("i", "too")], synced.encoder)
    assert synced.memory.get(["h"]) == [Passage("h", "by hand", page=3)]
    synced.write("a.txt", "text")
    dry = synced.sync(dry_run=True)
    assert synced.memory.version == dry.version == 3
    report = synced.sync()
    assert [v.change for v in synced.memory.log()[3:]] == [
        "made ready for origin",
        "synced notes: added 1, changed 0, removed 0",
    ]
    assert (report.version, synced.texts()) == (5, {"h": "by hand", "i": "too", "notes/a.txt": "text"})
    assert files(synced.sync()) == (0, 0, 0, 0, 1, 0)
    assert next(Memory.open(synced.path, version=3).passages()).origin == ""


@pytest.mark.parametrize("kind", ["flat", "ivf-rabitq"])
def test_a_memory_from_before_sync_is_compacted_and_indexed(synced: Synced, monkeypatch, kind):
    """Files without the column beside files with it, in one."""
    from latentrag.memory import table as module
    from latentrag.memory import upkeep
    from latentrag.memory.upkeep import forget
    from latentrag.memory.verify import verify

    with monkeypatch.context() as patch:
        patch.setattr(module, "schema", without_origin(schema))
        memory = Memory.create(synced.path, synced.encoder)
        memory = memory.add([Passage(f"h{i}", f"by hand {i}") for i in range(20)], synced.encoder)
    memory.build_index(kind)
    q = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    before = memory.search(q, 20)
    synced.write("a.txt", "text")
    synced.sync()
    expected = synced.texts()
    upkeep.compact(synced.path)
    assert synced.texts() == expected
    assert synced.memory.index.kind == kind
    assert {z.id for z in synced.memory.search(q, 21).passages[0]} == set(expected)
    assert Memory.open(synced.path, version=2).search(q, 20).passages == before.passages
    assert verify(synced.path).problems == []
    assert files(synced.sync()) == (0, 0, 0, 0, 1, 0)
    assert forget(synced.path, ["h3"]).left == []
    assert synced.texts() == {key: text for key, text in expected.items() if key != "h3"}


@pytest.mark.parametrize("first", ["sync", "reencode"])
def test_a_memory_from_before_sync_can_be_reencoded(synced: Synced, monkeypatch, first):
    from latentrag.memory import table as module

    monkeypatch.setattr(module, "schema", without_origin(schema))
    memory = Memory.create(synced.path, synced.encoder).add([Passage("h", "by hand")], synced.encoder)
    monkeypatch.undo()
    synced.write("a.txt", "text")
    if first == "sync":
        synced.sync()
    synced.encoder.fingerprint = "c2"
    synced.memory.reencode(synced.encoder)
    report = synced.sync()
    assert synced.texts() == {"h": "by hand", "notes/a.txt": "text"}
    assert report.files.unchanged == (first == "sync")
    assert len(Memory.open(memory.path, version=2)) == 1


def test_reencoding_keeps_the_origins(synced: Synced, monkeypatch):
    synced.write("a.txt", "text")
    synced.sync()
    other = CountingEncoder()
    other.fingerprint = "c2"
    synced.memory.reencode(other)
    synced.encoder = other
    assert files(synced.sync()) == (0, 0, 0, 0, 1, 0)
    assert synced.memory.version == 3


def test_an_older_version_is_synced_from_what_it_holds(synced: Synced):
    """A memory that was put back to an earlier state is not taken for what the notes say of the later one."""
    synced.write("a.txt", "one")
    synced.sync()
    shutil.copytree(synced.path, synced.path.with_name("copy"))
    synced.write("b.txt", "two")
    synced.sync()
    notes = (synced.path / "_sync" / "notes.journal").read_text()
    shutil.rmtree(synced.path)
    synced.path.with_name("copy").rename(synced.path)
    (synced.path / "_sync" / "notes.journal").write_text(notes)
    synced.memory.add([Passage("h", "by hand")], synced.encoder)  # the same number of versions as before
    report = synced.sync()
    assert (files(report), set(synced.texts())) == ((1, 0, 0, 0, 1, 0), {"notes/a.txt", "notes/b.txt", "h"})


@pytest.mark.parametrize("damage", ["gone", "torn", "a line", "empty", "zeros", "other format", "folder"])
def test_notes_that_are_lost_or_damaged_cost_time_only(synced: Synced, damage):
    for i in range(4):
        synced.write(f"{i}.txt", f"text {i}")
    synced.sync()
    (synced.folder / "3.txt").unlink()
    notes = synced.path / "_sync" / "notes.journal"
    raw = notes.read_bytes()
    notes.unlink()
    if damage == "folder":
        notes.mkdir()
        with pytest.warns(UserWarning, match="nothing is lost, but the next sync reads all files again"):
            report = synced.sync(delete_missing=True)
    else:
        if damage != "gone":
            wrong = raw.replace(b'"journal": 1', b'"journal": 99')
            a_line = raw.replace(b'"held": "notes/1.txt"', b'"h')
            contents = {"torn": raw[:-300], "a line": a_line, "empty": b"", "zeros": bytes(len(raw))}
            notes.write_bytes(contents.get(damage, wrong))
        report = synced.sync(delete_missing=True)
    assert (files(report), report.num_encoded) == ((0, 0, 1, 0, 3, 0), 0)
    assert set(synced.texts().values()) == {"text 0", "text 1", "text 2"}


def test_other_writers_are_refused_from_the_first_commit_of_a_sync_to_its_end(synced: Synced, monkeypatch):
    for i in range(4):
        synced.write(f"{i}.txt", f"text {i}")
    working = synced.encoder.encode_passages

    def meddling(passages, **options):
        with pytest.raises(MemoryStoreError, match="is being changed by .*; try again when that is done"):
            Memory.open(synced.path).add([Passage("h", "by hand")], CountingEncoder())
        return working(passages, **options)

    monkeypatch.setattr(synced.encoder, "encode_passages", meddling)
    assert files(synced.sync(passages_per_commit=1)) == (4, 0, 0, 0, 0, 0)
    synced.memory.add([Passage("h", "by hand")], CountingEncoder())
    assert set(synced.texts().values()) == {"text 0", "text 1", "text 2", "text 3", "by hand"}


def test_a_commit_between_reading_the_memory_and_the_first_of_a_sync_is_noticed(synced: Synced, monkeypatch):
    synced.write("0.txt", "text 0")
    synced.sync()
    synced.write("1.txt", "text 1")
    opened, writing = Memory.open(synced.path), Memory.writing

    def late(memory, encoder, **options):
        monkeypatch.undo()
        opened.add([Passage("h", "by hand")], CountingEncoder())
        return writing(memory, encoder, **options)

    monkeypatch.setattr(Memory, "writing", late)
    with pytest.raises(MemoryStoreError, match="open it without a version and try again"):
        synced.sync()
    assert files(synced.sync()) == (1, 0, 0, 0, 1, 0)
    assert set(synced.texts().values()) == {"text 0", "text 1", "by hand"}


def test_passages_keep_pages_and_offsets(synced: Synced):
    synced.write("a.txt", "  " + words(0, 150))
    synced.sync()
    first, second = sorted(synced.passages().values(), key=lambda passage: passage.start)
    text = (synced.folder / "a.txt").read_text()
    assert [text[z.start : z.end] for z in (first, second)] == [first.text, second.text]
    assert replace(first, origin="").page is None


@pytest.mark.skipif(sys.platform == "darwin", reason="names there are always UTF-8")
def test_a_name_that_is_not_text_may_be_that_of_what_is_missing(synced: Synced):
    """café.txt and süd/c.txt are renamed by a program in another encoding; the others are gone."""
    for name in ("café.txt", "sub/b.txt", "süd/c.txt", "süd/d.txt"):
        synced.write(name, name)
    synced.sync()
    folder = os.fsencode(synced.folder)
    (synced.folder / "sub/b.txt").unlink()
    (synced.folder / "süd/d.txt").unlink()
    for name in ("/café.txt", "/süd"):
        os.rename(folder + name.encode(), folder + name.encode("latin-1"))  # noqa: PTH104
    report = synced.sync(delete_missing=True)
    assert set(synced.texts()) == {"notes/café.txt", "notes/süd/c.txt"}
    assert (report.files.removed, len(report.skipped)) == (2, 2)


NFC, NFD = (unicodedata.normalize(form, "Übersicht") for form in ("NFC", "NFD"))


def test_a_name_in_another_unicode_form_is_the_same_name(synced: Synced):
    """As when a folder goes from macOS to Linux and back."""
    synced.write(f"{NFD}/{NFC}.txt", words(0, 250))
    synced.sync()
    assert {z.origin for z in synced.passages().values()} == {f"notes/{NFC}/{NFC}.txt"}
    before = synced.passages()
    (synced.folder / NFD).rename(synced.folder / NFC)
    (synced.folder / NFC / f"{NFC}.txt").rename(synced.folder / NFC / f"{NFD}.txt")
    report = synced.sync(delete_missing=True)
    assert (files(report), report.num_encoded, report.version) == ((0, 0, 0, 0, 1, 0), 0, 2)
    assert synced.passages() == before


def test_a_memory_from_before_names_were_nfc_keeps_its_ids(synced: Synced, monkeypatch):
    synced.write(f"{NFD}.txt", "text")
    synced.write("sub/a.txt", "text")
    with monkeypatch.context() as patch:
        patch.setattr("latentrag.corpus.finding.in_nfc", str)
        patch.setattr("latentrag.sync.folder.in_nfc", str)
        synced.sync()
    before = synced.passages()
    assert f"notes/{NFD}.txt" in before
    shutil.rmtree(synced.path / "_sync")  # all files are read again
    report = synced.sync(delete_missing=True)
    assert (files(report), report.num_encoded) == ((0, 0, 0, 0, 2, 0), 0)
    assert synced.passages() == before
    (synced.folder / f"{NFD}.txt").unlink()
    assert files(synced.sync()) == (0, 0, 0, 1, 1, 0)


def test_what_becomes_excluded_is_missing(synced: Synced):
    synced.write("a.md", "a")
    synced.write("drafts/b.md", "b")
    synced.write("c.txt", "c")
    synced.sync()
    synced.write(".gitignore", "drafts/")
    report = synced.sync(exclude=("*.txt",))
    assert (files(report), report.missing) == ((0, 0, 0, 2, 1, 0), ["notes/c.txt", "notes/drafts/b.md"])
    assert set(synced.texts().values()) == {"a", "b", "c"}
    assert files(synced.sync(no_gitignore=True, delete_missing=True)) == (0, 0, 0, 0, 3, 0)
    assert files(synced.sync(exclude=("*.txt",), delete_missing=True)) == (0, 0, 2, 0, 1, 0)
    assert set(synced.texts().values()) == {"a"}


def test_links_out_of_the_folder_are_not_synced_unless_asked(synced: Synced, tmp_path):
    (tmp_path / "private.txt").write_text("private")
    synced.write("a.txt", "a")
    (synced.folder / "link.txt").symlink_to(tmp_path / "private.txt")
    (synced.folder / "twice.txt").symlink_to("a.txt")
    report = synced.sync()
    assert (files(report), [path.name for path, _ in report.skipped]) == ((1, 0, 0, 0, 0, 1), ["link.txt"])
    assert set(synced.texts()) == {"notes/a.txt"}
    assert files(synced.sync(follow_links=True)) == (1, 0, 0, 0, 1, 0)
    # It is there still: not followed any more is not gone.
    assert files(synced.sync(delete_missing=True)) == (0, 0, 0, 0, 1, 1)
    assert synced.texts()["notes/link.txt"] == "private"
