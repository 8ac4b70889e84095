"""Names and dates of versions, what differs between them, and getting rid of them."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import lance.dataset as lance_dataset
import numpy as np
import pytest

from latentrag.errors import InputError, MemoryStoreError
from latentrag.memory import LocalDisk, Memory, history, storage, upkeep, version_files
from latentrag.memory import table as table_module
from latentrag.memory.history import Version, diff, num_compared, number_of, titles
from latentrag.memory.schema import to_passages
from latentrag.memory.table import Table
from latentrag.memory.verify import verify
from latentrag.types import Passage
from tests.memory.conftest import FakePassageEncoder
from tests.noting import noting


def numbers(path: Path) -> list[int]:
    return [version.number for version in Memory.open(path).log()]


# What versions are called


def test_a_version_by_its_tag(path, filled):
    history.tag(path, "before-the-move", 2)
    filled.delete(["p0"])
    assert Memory.open(path, version="before-the-move").version == 2
    assert history.tags(path) == {"before-the-move": 2}
    assert lance.dataset(str(path)).tags.list()["before-the-move"]["version"] == 2  # Lance knows it, too
    assert history.untag(path, "before-the-move") == 2
    assert history.tags(path) == {}


def test_a_name_is_one_version_s(path, filled):
    history.tag(path, "a", 1)
    with pytest.raises(MemoryStoreError, match="the tag 'a' names version 1 already; remove it first"):
        history.tag(path, "a", 2)
    with pytest.raises(MemoryStoreError, match="has no tag 'b'; choose one of a$"):
        history.untag(path, "b")
    with pytest.raises(MemoryStoreError, match="version 7 .* cannot be read"):
        history.tag(path, "b", 7)
    assert history.tags(path) == {"a": 1}


@pytest.mark.parametrize(
    "name", ["", "7", "2026-01-31", "a b", "a/b", "../a", ".a", "-a", "a..b", "a.lock", "ä", "a\n"]
)
def test_names_that_cannot_be(path, filled, name):
    with pytest.raises(InputError, match="cannot be a tag; begin with a letter"):
        history.tag(path, name, 1)
    assert not (path / "_refs").exists()


@pytest.mark.parametrize("name", ["served", "newest", "latentrag-unfinished"])
def test_names_with_a_meaning(path, filled, name):
    with pytest.raises(InputError, match="has a meaning of its own"):
        history.tag(path, name, 1)


def test_a_tag_that_cannot_be_read(path, filled):
    history.tag(path, "a", 1)
    (path / "_refs" / "tags" / "a.json").write_text('{"version": "x"}')
    with pytest.raises(MemoryStoreError, match=r"the tag .*a.json cannot be read .*; delete that file"):
        Memory.open(path, version="served")


def test_served_and_newest(path, encoder, filled):
    filled.delete(["p0"]).delete(["p1"])
    assert number_of(path, "served") is None
    history.serve(path, 2)
    assert Memory.open(path, version="served").version == 2
    history.serve(path, 3)
    assert Memory.open(path, version="served").version == 3
    assert {Memory.open(path).version, Memory.open(path, version="newest").version} == {4}
    Memory.open(path).add([Passage("new", "t")], encoder)  # writers go on from the newest
    history.serve(path, None)
    assert Memory.open(path, version="served").version == 5
    history.serve(path, None)
    with pytest.raises(MemoryStoreError, match="version 9 .* cannot be read"):
        history.serve(path, 9)


@pytest.fixture
def dated(monkeypatch, path, filled):
    """Version n was committed on day n of 2026, at noon."""
    filled.delete(["p0"])

    def logged(table: Table, number: int) -> Version:
        return Version(number, datetime(2026, 1, number, 12, tzinfo=UTC), 0, "")

    monkeypatch.setattr(history, "logged", logged)
    return path


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("2026-01-01", 1),
        ("2026-01-02", 2),
        ("2026-01-02T11:59", 1),
        ("2026-01-02 12:00:00", 2),
        ("2026-01-02T12:30+01:00", 1),
        ("2026-01-02T12:00:00Z", 2),
        ("2030-01-01", 3),
        ("3", 3),
    ],
)
def test_a_version_by_its_date(dated, text, version):
    assert number_of(dated, text) == version
    assert Memory.open(dated, version=text).version == version


def test_versions_that_are_not(dated, tmp_path):
    with pytest.raises(
        MemoryStoreError, match="no version as old as 2025-12-31; its oldest, 1, is of 2026-01-01 12:00"
    ):
        number_of(dated, "2025-12-31")
    with pytest.raises(MemoryStoreError, match="has no version 'yesterday'; give a number or a date"):
        number_of(dated, "yesterday")
    history.tag(dated, "a", 1)
    with pytest.raises(MemoryStoreError, match=r"give a number or a tag \(a\) or a date"):
        number_of(dated, "b")
    with pytest.raises(MemoryStoreError, match="has no version 9; choose one of 1, 2, 3$"):
        Memory.open(dated, version="9")
    with pytest.raises(MemoryStoreError, match="there is no memory at"):
        Memory.open(tmp_path / "none", version="a")


def test_dates_are_those_of_the_log(path, filled):
    first, second = (version.time for version in Memory.open(path).log())
    assert number_of(path, first.isoformat()) == 1
    assert number_of(path, second.isoformat()) == 2
    assert number_of(path, str(datetime.now(UTC).date())) == 2


@pytest.mark.parametrize("written", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y%m%dT%H%M%S", "%Y-%m-%d %H:%M"])
def test_a_time_copied_from_the_log_finds_its_version(path, filled, monkeypatch, written):
    """The log cuts times to seconds: a second means its end."""
    at = datetime(2026, 3, 1, 12, 30, 59, 400_000, UTC)
    plain = history.logged

    def fixed(table, number):
        found = plain(table, number)
        assert found is not None
        return replace(found, time=at - timedelta(hours=2 - number))

    monkeypatch.setattr(history, "logged", fixed)
    assert number_of(path, at.strftime(written)) == 2
    assert number_of(path, (at - timedelta(hours=1)).strftime(written)) == 1
    assert number_of(path, (at - timedelta(minutes=1)).strftime(written)) == 1


class Dated:
    """A Lance data set whose version is of another time, given as Lance does: in nanoseconds, and as local time."""

    def __init__(self, dataset: lance.LanceDataset, time: datetime) -> None:
        self.dataset, self.nanoseconds, self._ds = dataset, int(time.timestamp() * 1e6) * 1_000, self

    def current_version(self) -> Any:
        return {**self.dataset._ds.current_version(), "timestamp": self.nanoseconds}

    def get_version(self) -> Any:
        return lance_dataset._convert_version_timestamp(self.current_version())

    def read_transaction(self, version: int) -> Any:
        return self.dataset.read_transaction(version)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system sets no zone for one process")
@pytest.mark.parametrize("hour", [0, 1])
def test_times_are_right_when_summer_time_ends(path, filled, monkeypatch, hour):
    """That night in Berlin, 2:30 comes twice."""
    then, plain, table = datetime(2026, 10, 25, hour, 30, 0, 400_000, UTC), lance.dataset, Table.open(path)
    with monkeypatch.context() as patch:
        patch.setattr(lance, "dataset", lambda *args, **options: Dated(plain(*args, **options), then))
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        found = history.logged(table, 1)
    time.tzset()
    assert found is not None
    assert found.time == then


def test_a_version_that_cannot_be_read_is_passed_over_by_a_date(path, filled):
    newest = filled.delete(["p0"]).delete(["p1"])
    times = {version.number: version.time.isoformat() for version in newest.log()}
    (path / version_files.manifest_name(3)).write_bytes(b"")
    with pytest.warns(UserWarning, match="version 3 of .* cannot be read"):
        found = [number_of(path, times[number]) for number in (1, 2, 3, 4)]
    assert found == [1, 2, 2, 4]


def test_advice_where_versions_and_small_files_pile_up(path, encoder, filled, monkeypatch):
    assert upkeep.advice(filled.table) is None
    monkeypatch.setattr(upkeep, "MANY_FILES", 4)
    monkeypatch.setattr(upkeep, "MANY_VERSIONS", 6)
    memory = filled
    for number in range(3):
        memory = memory.add([Passage(f"new{number}", "new")], encoder)
    assert upkeep.advice(memory.table) == (
        f"every commit gets slower; join 4 small files with `latentrag index compact {path}`"
    )
    upkeep.compact(path)
    assert upkeep.advice(Table.open(path)) == (
        f"every commit gets slower; remove the oldest of 6 versions with `latentrag index prune {path} --keep 10`"
    )
    upkeep.prune(path, keep=1)
    assert upkeep.advice(Table.open(path)) is None


def test_a_commit_does_not_read_every_record_of_the_versions_before_it(path, filled, monkeypatch):
    def read(disk):
        raise AssertionError

    monkeypatch.setattr(storage.LocalDisk, "checksums", read)
    assert filled.delete(["p0"]).version == 3


# What differs


def test_diff(path, encoder, filled):
    changed = [Passage("p1", "other"), Passage("p2", "text 2"), Passage("p3", "text 3", title="T"), Passage("new", "n")]
    filled.upsert(changed, encoder).delete(["p0", "p9"])
    upkeep.compact(path)
    old, new = Table.open(path, 2), Table.open(path)
    found = diff(old, new)
    assert (found.before, found.after) == (2, 5)
    assert (found.added, found.changed, found.removed) == (["new"], ["p1", "p3"], ["p0", "p9"])
    back = diff(new, old)
    assert (back.added, back.changed, back.removed) == (["p0", "p9"], ["p1", "p3"], ["new"])
    same = diff(Table.open(path, 4), new)
    assert (same.added, same.changed, same.removed, same.reencoded) == ([], [], [], False)


def test_new_vectors_are_said_apart(path, filled):
    filled.reencode(FakePassageEncoder(fingerprint="f2"))
    found = diff(Table.open(path, 2), Table.open(path, 3))
    assert (found.added, found.changed, found.removed, found.reencoded) == ([], [], [], True)


def test_diff_reads_only_what_differs(monkeypatch, path, encoder, filled):
    filled.add([Passage("new", "t")], encoder)
    read: list[int] = []
    reading = noting(to_passages, lambda rows: read.append(len(rows)))
    monkeypatch.setattr(table_module, "to_passages", reading)
    assert diff(Table.open(path, 2), Table.open(path, 3)).added == ["new"]
    assert sum(read) == num_compared(Table.open(path, 2), Table.open(path, 3)) == 1


def test_titles_of_what_differs(monkeypatch, path, encoder, filled):
    filled.upsert([Passage("p1", "other", title="new T"), Passage("new", "n", title="N")], encoder).delete(["p0"])
    old, new = Table.open(path, 2), Table.open(path)
    assert titles(new, old, {"p1", "new"}) == {"p1": "new T", "new": "N"}
    assert titles(old, new, {"p0", "p1"}) == {passage.id: passage.title for passage in filled.get(["p0", "p1"])}
    monkeypatch.setattr(table_module, "to_passages", None)
    assert titles(new, old, ()) == {}
    assert num_compared(new, new) == 0


# Getting rid of versions


@pytest.fixture
def many(path, encoder, filled):
    """Versions 1 to 7: p0 to p11 in one, then each of n3 … n7 added in a file of its own."""
    memory = filled
    for number in range(3, 8):
        memory = memory.add([Passage(f"n{number}", "a text of some length " * 20)], encoder)
    return memory


def test_prune_keeps_the_newest_and_those_with_a_name(path, many, queries):
    history.tag(path, "good", 2)
    history.serve(path, 4)
    before = sum((path / name).stat().st_size for name in LocalDisk(path).files())
    found = Memory.open(path).search(queries, 5)
    done = upkeep.prune(path, keep=2)
    assert (done.removed, done.kept) == ([1, 3, 5], [2, 4])
    assert numbers(path) == [2, 4, 6, 7]
    assert before - sum((path / name).stat().st_size for name in LocalDisk(path).files()) == done.freed_bytes > 0
    assert Memory.open(path, version="good").get(["p0"])[0].text == "text 0"
    assert np.array_equal(Memory.open(path).search(queries, 5).scores, found.scores)
    assert verify(path).problems == []
    with pytest.raises(MemoryStoreError, match="has no version 3; choose one of 2, 4, 6, 7"):
        Memory.open(path, version=3)
    assert upkeep.prune(path, keep=9).removed == []


def test_prune_removes_files_that_only_old_versions_need(path, encoder, many):
    many.reencode(encoder)
    assert sum(name.startswith("data/") for name in LocalDisk(path).files()) == 7
    upkeep.prune(path, keep=1)
    assert sum(name.startswith("data/") for name in LocalDisk(path).files()) == 1
    assert len(Memory.open(path)) == 17


def test_prune_by_age(monkeypatch, path, many):
    now = datetime.now(UTC)
    log = [Version(n, now - timedelta(days=10 * (7 - n)), 0, "") for n in range(1, 8)]
    monkeypatch.setattr(history, "log", lambda table: log)
    assert upkeep.prune(path, older_than_days=35).removed == [1, 2, 3]
    monkeypatch.setattr(history, "log", lambda table: log[3:])
    assert upkeep.prune(path, older_than_days=0).removed == [4, 5, 6]
    monkeypatch.undo()
    assert numbers(path) == [7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "both or neither"),
        ({"keep": 1, "older_than_days": 1}, "both or neither"),
        ({"keep": 0}, "keep=0 versions cannot be"),
        ({"older_than_days": -1}, "older_than_days=-1 is no age"),
        ({"older_than_days": float("nan")}, "older_than_days=nan is no age"),
    ],
)
def test_prune_refuses(path, many, options, message):
    with pytest.raises(InputError, match=message):
        upkeep.prune(path, **options)
    assert numbers(path) == list(range(1, 8))


def rows(path: Path) -> list[tuple[int, str]]:
    read = lance.dataset(str(path)).scanner(columns=["id"], with_row_id=True).to_table()
    return list(zip(read["_rowid"].to_pylist(), read["id"].to_pylist(), strict=True))


def test_compact_keeps_rows_order_and_row_ids(path, many, queries):
    changed = many.delete(["p0", "p1", "p2", "p3"])
    found, before = changed.search(queries, 7), rows(path)
    done = upkeep.compact(path)
    assert (done.changed, done.version, done.files_before, done.files_after) == (True, 9, 6, 1)
    assert rows(path) == before
    again = Memory.open(path).search(queries, 7)
    assert again.passages == found.passages
    assert np.array_equal(again.scores, found.scores)
    assert Memory.open(path).log()[-1].change == "compacted 6 files to 1"
    assert changed.search(queries, 7).passages == found.passages  # a reader of the version before
    done = upkeep.compact(path)
    assert (done.changed, done.version) == (False, 9)


def test_a_file_number_used_before_does_not_confuse_later_reads(path, encoder, many):
    """Compaction numbers fragments anew; a session may have cached what an older one of that number held."""
    memory = many.delete(["n7"])  # the fragment with the highest number is gone
    assert len(list(memory.passages())) == 16
    upkeep.compact(path)
    after = Memory.open(path).add([Passage("n7", "back")], encoder).delete(["p5"])
    assert [key for _, key in rows(path)] == [z.id for z in after.passages()]
    assert len({row for row, _ in rows(path)}) == len(after) == 16
    assert {z.id for z in after.search(np.ones((1, 8), np.float32), 16).passages[0]} == {z.id for z in after.passages()}
