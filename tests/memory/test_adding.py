"""The one writer: parts that are committed and stay, additions that are killed and go on, rows from other processes."""

import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentrag.errors import DataError, EncoderMismatchError, InputError
from latentrag.memory import LocalDisk, Memory, add, version_files
from latentrag.memory.table import Staged, Table
from latentrag.memory.verify import verify
from latentrag.types import Passage
from tests.memory.killed_add import PART, passages
from tests.sync.conftest import CountingEncoder

ROOT = Path(__file__).parents[2]
NUM_PASSAGES = 400


def run_and_end(path: Path, notes: Path, *, after_commits: int, by: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.memory.killed_add", str(path), str(notes), str(NUM_PASSAGES)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for _ in range(after_commits):
            assert process.stdout.readline() == "committed\n"
        process.send_signal(by)
        process.wait()
        assert process.returncode == -by


def test_killed_and_interrupted_an_addition_goes_on_after_its_last_commit(tmp_path, path, seed):
    """Ended at moments that nobody chose, it ends with the same passages in the same order."""
    chance = np.random.default_rng(seed)
    notes, encoder = tmp_path / "encoded", CountingEncoder()
    run_and_end(path, notes, after_commits=int(chance.integers(1, 3)), by=signal.SIGKILL)
    run_and_end(path, notes, after_commits=int(chance.integers(0, 3)), by=signal.SIGINT)
    committed = [passage.id for passage in Memory.open(path).passages()]
    assert committed == [f"p{i}" for i in range(len(committed))]
    assert len(committed) >= PART
    assert len(committed) % PART == 0

    done = add(path, passages(NUM_PASSAGES), lambda: encoder, passages_per_commit=PART)
    assert (done.added, done.replaced, done.unchanged) == (NUM_PASSAGES - len(committed), 0, len(committed))
    assert encoder.texts == [f"text {i}" for i in range(len(committed), NUM_PASSAGES)]
    again = add(tmp_path / "again.lance", passages(NUM_PASSAGES), CountingEncoder, passages_per_commit=PART).memory
    assert list(done.memory.passages()) == list(again.passages()) == passages(NUM_PASSAGES)
    ours, theirs = (np.concatenate([v for _, v in memory.table.vectors()]) for memory in (done.memory, again))
    assert np.array_equal(ours, theirs)
    # Each end may cost the part in hand, and the passages of it that were encoded.
    assert len(notes.read_text().splitlines()) <= len(committed) + 2 * PART
    assert verify(path).problems == []


def test_parts_are_versions(path, encoder):
    done = add(path, passages(11), lambda: encoder, passages_per_commit=4)
    changes = [(version.num_passages, version.change) for version in done.memory.log()]
    assert changes == [(0, "created"), (4, "added 4"), (8, "added 4"), (11, "added 3")]


def test_what_is_there_word_for_word_is_left_alone(path, encoder):
    add(path, passages(6), lambda: encoder, passages_per_commit=4)
    done = add(path, passages(6), lambda: pytest.fail("loaded"), passages_per_commit=4)
    assert (done.added, done.unchanged, done.memory.version) == (0, 6, 3)
    done = add(path, passages(8), lambda: encoder, passages_per_commit=4)
    assert (done.added, done.unchanged, done.memory.version) == (2, 6, 4)


@pytest.mark.parametrize("changed", [{"text": "other"}, {"source": "b.txt"}, {"fields": {"number": 7}}])
def test_another_passage_under_a_taken_id_is_refused_or_replaces_it(path, encoder, changed):
    old: dict[str, Any] = {"id": "p", "text": "text", "source": "a.txt", "fields": {"number": 1}}
    add(path, [Passage(**old)], lambda: encoder, passages_per_commit=4)
    with pytest.raises(DataError, match="'p' is in the memory already; use upsert"):
        add(path, [Passage(**old | changed)], lambda: encoder, passages_per_commit=4)
    done = add(path, [Passage(**old | changed)], lambda: encoder, upsert=True, passages_per_commit=4)
    assert (done.added, done.replaced, done.unchanged) == (0, 1, 0)
    assert list(done.memory.passages()) == [Passage(**old | changed)]
    assert done.memory.log()[-1].change == "added 0, replaced 1"


def test_what_was_committed_stays_if_a_later_passage_fails_and_the_error_says_so(path, encoder):
    bad = [*passages(9), Passage("p0", "twice")]
    with pytest.raises(DataError, match="'p0' comes twice") as caught:
        add(path, bad, lambda: encoder, passages_per_commit=4)
    assert caught.value.__notes__ == ["the first 8 passages were committed and stay"]
    assert list(Memory.open(path).passages()) == passages(8)
    assert verify(path).problems == []


@pytest.mark.parametrize("per_commit", [None, 4])
def test_a_new_memory_of_which_nothing_was_committed_is_gone(tmp_path, path, encoder, per_commit):
    for bad in ([], [Passage("a", "t"), Passage("a", "t")]):
        with pytest.raises(DataError):
            add(path, bad, lambda: encoder, passages_per_commit=per_commit)
    assert list(tmp_path.iterdir()) == []
    Memory.create(path, encoder)
    with pytest.raises(DataError):
        add(path, [], lambda: encoder, passages_per_commit=per_commit)
    assert Memory.open(path).version == 1  # it was there before


def test_another_encoder_may_not_add_parts(path, encoder, make_encoder):
    add(path, passages(4), lambda: encoder, passages_per_commit=4)
    with pytest.raises(EncoderMismatchError, match="use that one, or bring the memory to another encoder"):
        add(path, passages(8), lambda: make_encoder(fingerprint="f2"), passages_per_commit=4)
    assert len(Memory.open(path)) == 4


def test_ids_with_the_same_hash_are_told_apart(monkeypatch, filled):
    monkeypatch.setattr("latentrag.memory.table._hashes", lambda ids: np.full(len(ids), 7, np.int64))
    assert filled.get(["p3", "p0", "p3"]) == [Passage("p3", "text 3"), Passage("p0", "text 0"), Passage("p3", "text 3")]
    assert filled.find(["none", "p1"]) == {"p1": Passage("p1", "text 1")}
    with pytest.raises(InputError, match="1 ids are not in .*: 'none'"):
        filled.get(["none", "p1"])


def stage_elsewhere(path: str, first: int) -> Staged:
    """In another process: rows that this version's next commit may take over."""
    table = Table.open(Path(path))
    ten = [Passage(f"q{i}", f"text {i}") for i in range(first, first + 10)]
    return table.stage([table.record_batch(ten, np.full((10, 8), first, np.float16))])


def test_rows_that_several_processes_have_written_are_committed_once(path, filled):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.starmap(stage_elsewhere, [(str(path), 0), (str(path), 10)])
    staged = sum(parts, Staged())
    assert all(len(part.checksums) == 1 for part in parts)
    with filled.table.writing():
        after = filled.with_table(filled.table.commit(staged, change="added 20 by two"))
    assert [passage.id for passage in after.passages()][12:] == [f"q{i}" for i in range(20)]
    assert (after.version, len(after)) == (3, 32)
    report = verify(path)
    assert (report.problems, report.num_unrecorded) == ([], 0)
    assert LocalDisk(path).files() - version_files.needed(filled.table.storage) == set()
