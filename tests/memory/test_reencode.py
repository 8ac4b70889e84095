"""A memory gets new vectors from another encoder, in one version."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import lance
import numpy as np
import pytest
import torch

from latentrag.errors import EncoderMismatchError, MemoryStoreError, ModelError
from latentrag.memory import LiveMemory, Memory
from latentrag.memory import memory as memory_module
from latentrag.memory import table as table_module
from latentrag.memory import writer as writer_module
from latentrag.memory.schema import to_passages
from latentrag.memory.storage import storage_of
from latentrag.memory.upkeep import forget, prune
from latentrag.memory.verify import verify
from latentrag.memory.version_files import needed
from latentrag.types import Passage
from tests.memory.conftest import FakePassageEncoder


class OtherEncoder(FakePassageEncoder):
    """Other vectors for the same texts."""

    name = "other"
    max_tokens = 128
    scale = 3.0

    def __init__(self, dimension: int = 8, fingerprint: str = "f2") -> None:
        super().__init__(dimension, fingerprint)

    def vector(self, text: str) -> np.ndarray:
        return super().vector("other " + text)


@pytest.fixture
def other():
    return OtherEncoder()


@pytest.fixture
def small_pieces(monkeypatch):
    """Several encodings and several files for a dozen passages."""
    monkeypatch.setattr(writer_module, "PASSAGES_PER_ENCODING", 4)
    monkeypatch.setattr(table_module, "ROWS_PER_FRAGMENT", 4)


def files(path: Path) -> list[Path]:
    return sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())


def vectors_by_id(memory: Memory) -> dict[str, list[float]]:
    found = memory.search(np.ones((1, 8), np.float32), len(memory))
    return {p.id: row.tolist() for p, row in zip(found.passages[0], found.vectors[0], strict=True)}


def expected(encoder: FakePassageEncoder, memory: Memory) -> dict[str, list[float]]:
    """What fp16 keeps of each passage's vector."""
    return {p.id: encoder.vector(p.text).astype(np.float16).astype(np.float32).tolist() for p in memory.passages()}


def test_new_vectors_old_texts_one_version(path, encoder, filled, other, small_pieces):
    whole = Passage("z", "Zürich\n\x00", "title", "a.pdf", start=3, end=2**40, page=7)
    before = filled.delete(["p3", "p7"]).add([whole], encoder)

    after = before.reencode(other)

    assert (after.version, len(after)) == (before.version + 1, 11)
    for memory in (after, Memory.open(path)):
        assert list(memory.passages()) == list(before.passages())
        assert memory.get(["z"]) == [whole]
        assert vectors_by_id(memory) == expected(other, memory)
        assert (memory.card.encoder, memory.card.fingerprint) == ("other", "f2")
        assert (memory.card.max_tokens, memory.card.scale) == (128, 3.0)
    assert after.log()[-1].change == "re-encoded 11 passages with other"
    dataset = lance.dataset(str(path))
    assert dataset.has_stable_row_ids
    assert len(dataset.get_fragments()) > 1


def test_an_older_version_keeps_its_vectors_and_its_encoder(path, encoder, filled, other, queries):
    before = filled.search(queries, 3)
    filled.reencode(other)

    for old in (filled, Memory.open(path, version=2)):
        again = old.search(queries, 3)
        assert again.passages == before.passages
        assert np.array_equal(again.scores, before.scores)
        assert old.card.fingerprint == "f1"
        assert vectors_by_id(old) == expected(encoder, old)


class Query:
    scale = 1.0
    dimension = 8

    def __init__(self, passage_fingerprint: str) -> None:
        self.passage_fingerprint = passage_fingerprint

    def encode_queries(self, x: Sequence[str]) -> torch.Tensor:
        raise AssertionError("check needs no vectors")


def test_each_version_is_checked_against_its_own_encoder(path, filled, other):
    filled.reencode(other)
    Memory.open(path).check(Query("f2"))
    Memory.open(path, version=2).check(Query("f1"))
    with pytest.raises(EncoderMismatchError, match="encoded by other with f2"):
        Memory.open(path).check(Query("f1"))
    with pytest.raises(EncoderMismatchError, match="encoded by fake with f1"):
        Memory.open(path, version=2).check(Query("f2"))


def test_changes_after_a_reencoding(path, encoder, filled, other):
    after = filled.reencode(other)
    with pytest.raises(EncoderMismatchError, match=r"fake \(f1, 8 dim.*differs from other \(f2, 8 dim"):
        after.add([Passage("new", "newer")], encoder)
    changed = after.add([Passage("new", "newer")], other).delete(["p0"]).upsert([Passage("p5", "five")], other)

    assert Memory.open(path).version == changed.version == 6
    assert sorted(p.id for p in changed.passages()) == sorted(["new", *(f"p{i}" for i in range(1, 12))])
    assert vectors_by_id(Memory.open(path)) == expected(other, changed)
    assert vectors_by_id(changed.reencode(encoder)) == expected(encoder, changed)


def test_the_same_encoder_again_changes_nothing_but_the_version(encoder, filled, queries):
    before, again = filled.search(queries, 5), filled.reencode(encoder).search(queries, 5)
    assert again.passages == before.passages
    assert np.array_equal(again.vectors, before.vectors)


@pytest.mark.parametrize("dimension", [4, 16])
def test_another_dimension(path, encoder, filled, dimension, small_pieces, queries):
    other = OtherEncoder(dimension)
    before = filled.search(queries, 3)
    after = filled.reencode(other)
    for memory in (after, Memory.open(path)):
        assert memory.card.dimension == dimension
        assert list(memory.passages()) == list(filled.passages())
        found = memory.search(np.ones((1, dimension), np.float32), len(memory))
        assert {p.id: row.tolist() for p, row in zip(found.passages[0], found.vectors[0], strict=True)} == expected(
            other, memory
        )
    assert np.array_equal(Memory.open(path, version=2).search(queries, 3).scores, before.scores)
    changed = after.add([Passage("new", "newer")], other).delete(["p0"])
    assert len(Memory.open(path).get(["new"])) == 1
    assert vectors_by_id(changed.reencode(encoder)) == expected(encoder, changed)
    assert verify(path).problems == []
    with pytest.raises(EncoderMismatchError, match=f"8 dimensions, the memory's vectors have {dimension}; .*reencode"):
        after.check(Query("f1"))


def test_lineage_is_the_same_in_all_versions_and_of_no_other_memory(path, encoder, filled, other):
    again = Memory.create(path.with_name("again.lance"), encoder)
    later = filled.add([Passage("q", "text", fields={"n": 1})], encoder)
    versions = [filled.at(1), later, later.delete(["q"]), Memory.open(path).reencode(other), Memory.open(path)]
    assert len({each.version for each in versions[:-1]}) == 4
    assert {each.lineage for each in versions} == {LiveMemory(filled).lineage}
    assert again.lineage != filled.lineage
    assert later.where("n = 1").lineage == Memory.open(path).at(later.version).only("n = 1").lineage
    assert later.where("n = 1").lineage not in {later.lineage, again.only("n = 1").lineage}


def test_an_empty_memory_is_refused(path, encoder, other):
    with pytest.raises(MemoryStoreError, match="has no passages to re-encode"):
        Memory.create(path, encoder).reencode(other)
    assert Memory.open(path).version == 1


@pytest.mark.parametrize("failure", ["the device is gone", "not finite"])
def test_a_failure_midway_leaves_everything_as_it_was(path, filled, other, small_pieces, failure):
    before = files(path)
    working = other.encode_passages

    def failing(passages, **options):
        if all(passage.id != "p9" for passage in passages):
            return working(passages, **options)
        if failure == "not finite":
            return torch.full((len(passages), 8), torch.nan)
        raise RuntimeError(failure)

    other.encode_passages = failing
    with pytest.raises((RuntimeError, ModelError), match=failure):
        filled.reencode(other)
    assert files(path) == before
    assert Memory.open(path).card.fingerprint == "f1"


def test_only_the_newest_version_can_be_reencoded(path, filled, other):
    filled.delete(["p0"])
    with pytest.raises(MemoryStoreError, match="opened at version 2 but its newest is 3"):
        filled.reencode(other)


@pytest.mark.usefixtures("no_locks")
def test_a_commit_of_someone_else_during_the_encoding_is_kept(path, encoder, filled, other):
    working = other.encode_passages

    def slow(passages, **options):
        Memory.open(path).add([Passage("theirs", "t")], encoder)
        return working(passages, **options)

    other.encode_passages = slow
    with pytest.raises(MemoryStoreError, match="its newest is 3"):
        filled.reencode(other)
    assert len(Memory.open(path).get(["theirs"])) == 1


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("reencode", "add"),
        ("reencode", "delete"),
        ("reencode", "reencode"),
        ("add", "reencode"),
        ("delete", "reencode"),
    ],
)
@pytest.mark.usefixtures("no_locks")
def test_of_two_commits_at_the_same_moment_one_is_refused(monkeypatch, path, encoder, filled, other, mine, theirs):
    """The other commit falls between the last look at the newest version and ours."""
    changes = {
        "add": lambda memory: memory.add([Passage("new", "t")], encoder),
        "delete": lambda memory: memory.delete(["p0"]),
        "reencode": lambda memory: memory.reencode(other),
    }
    commit = table_module.Table._commit
    left: list[Path] = []

    def late(table, *arguments, **options):
        monkeypatch.setattr(table_module.Table, "_commit", commit)
        changes[theirs](Memory.open(path))
        left.extend(files(path))
        monkeypatch.setattr(table_module.Table, "require_newest", lambda table: None)
        return commit(table, *arguments, **options)

    monkeypatch.setattr(table_module.Table, "_commit", late)
    with pytest.raises(MemoryStoreError, match="someone else committed to .* after version 2; open it") as caught:
        changes[mine](filled)
    assert "\n" not in str(caught.value)
    newest = Memory.open(path)
    assert newest.version == 3
    assert vectors_by_id(newest) == expected(other if theirs == "reencode" else encoder, newest)
    # What was staged before is gone.
    assert not (set(files(path)) - set(left))
    if mine != "delete":
        assert len(files(path)) == len(left) - 1


KILLED = """
import sys
from pathlib import Path
from latentrag.memory import Memory, table, writer
from tests.memory.test_reencode import OtherEncoder

writer.PASSAGES_PER_ENCODING = table.ROWS_PER_FRAGMENT = 4

class Slow(OtherEncoder):
    calls = 0

    def encode_passages(self, passages, *, progress=False):
        self.calls += 1
        if self.calls == 3:  # two files are written by now
            print("ready", flush=True)
            sys.stdin.read()
        return super().encode_passages(passages)

Memory.open(Path(sys.argv[1])).reencode(Slow())
"""


def test_a_killed_reencoding_leaves_the_old_version(path, encoder, filled, other):
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root / "src"), str(root)])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL

    memory = Memory.open(path)
    assert (memory.version, memory.card.fingerprint) == (2, "f1")
    assert vectors_by_id(memory) == expected(encoder, memory)
    assert len(list((path / "data").iterdir())) == 3  # two of them are the killed writer's
    assert vectors_by_id(memory.delete(["p0"]).reencode(other)) == expected(other, Memory.open(path))
    assert verify(path).problems == []


def test_passages_are_streamed(monkeypatch, path, encoder, other):
    monkeypatch.setattr(writer_module, "PASSAGES_PER_ENCODING", 50)
    monkeypatch.setattr(table_module, "ROWS_PER_FRAGMENT", 200)
    monkeypatch.setattr(table_module, "ROWS_PER_READ", 50)
    memory = Memory.create(path, encoder).add((Passage(f"p{i}", f"text {i}") for i in range(1_000)), encoder)
    read, encoded, ahead = [0], [0], []
    encode = other.encode_passages

    def reading(rows):
        read[0] += len(rows)
        return to_passages(rows)

    def encoding(passages, **options):
        encoded[0] += len(passages)
        ahead.append(read[0] - encoded[0])
        return encode(passages, **options)

    monkeypatch.setattr(table_module, "to_passages", reading)
    other.encode_passages = encoding
    after = memory.reencode(other)
    assert encoded == [1_000]
    assert max(ahead) <= 50
    assert [p.id for p in after.passages()] == [f"p{i}" for i in range(1_000)]


def test_progress_is_shown_only_if_asked(filled, shown_progress, other):
    filled.reencode(other).reencode(other, progress=True)
    assert shown_progress == [("encoding passages", 12, False, 12), ("encoding passages", 12, True, 12)]


class TestGoingOn:
    """What an interrupted re-encoding has written, the next one with the same encoder does not write again."""

    @pytest.fixture
    def begun(self, monkeypatch, filled, other):
        """Interrupted after eight of twelve passages."""
        monkeypatch.setattr(writer_module, "PASSAGES_PER_ENCODING", 4)
        monkeypatch.setattr(memory_module, "ROWS_PER_NOTE", 4)
        encode, other.encoded = other.encode_passages, []

        def counted(passages, **options):
            if len(other.encoded) == 8:
                raise KeyboardInterrupt
            other.encoded += [passage.id for passage in passages]
            return encode(passages, **options)

        other.encode_passages = counted
        with pytest.raises(KeyboardInterrupt):
            filled.reencode(other, resumes=True)
        assert other.encoded == [f"p{i}" for i in range(8)]
        other.encoded = []
        return filled

    def test_after_an_interruption(self, path, begun, other):
        assert Memory.open(path).version == 2
        assert verify(path).problems == []
        after = Memory.open(path).reencode(other, resumes=True)
        assert other.encoded == [f"p{i}" for i in range(8, 12)]
        assert vectors_by_id(after) == vectors_by_id(Memory.open(path)) == expected(other, after)
        assert [p.id for p in after.passages()] == [p.id for p in begun.passages()]
        assert not (path / "_reencoding.jsonl").exists()
        assert verify(path).problems == []

    def test_reading_and_pruning_leave_it(self, path, begun, other):
        Memory.open(path).search(np.ones((1, 8), np.float32), 2)
        prune(path, keep=1)
        Memory.open(path).reencode(other, resumes=True)
        assert other.encoded == [f"p{i}" for i in range(8, 12)]

    def test_another_version_ends_it_and_its_files_go(self, path, encoder, begun, other):
        Memory.open(path).delete(["p11"])
        other.encoded = []
        after = Memory.open(path).add([Passage("new", "n")], encoder)  # the next writer removes them
        assert not (path / "_reencoding.jsonl").exists()
        assert {f"data/{file.name}" for file in (path / "data").iterdir()} <= needed(storage_of(path))
        other.encode_passages = OtherEncoder().encode_passages
        assert vectors_by_id(after.reencode(other, resumes=True)) == expected(other, Memory.open(path))

    def test_another_encoder_begins_anew(self, path, begun):
        third = OtherEncoder(6, "f3")
        after = Memory.open(path).reencode(third, resumes=True)
        assert len(after.search(np.ones((1, 6), np.float32), 12).passages[0]) == 12
        assert {f"data/{file.name}" for file in (path / "data").iterdir()} <= needed(storage_of(path))
        assert verify(path).problems == []

    def test_a_file_that_was_damaged_since_is_written_again(self, path, begun, other):
        lines = (path / "_reencoding.jsonl").read_text().splitlines()
        (name,) = json.loads(lines[2])["checksums"]
        (path / name).write_bytes(b"damaged")
        after = Memory.open(path).reencode(other, resumes=True)
        assert other.encoded == [f"p{i}" for i in range(4, 12)]
        assert vectors_by_id(after) == expected(other, after)

    @pytest.mark.parametrize("tail", [b"", b'{"rows": 4, "fragm'])
    def test_after_a_kill(self, path, begun, other, tail):
        """The lock's owner is dead, and the last note may be cut short."""
        with (path / "_reencoding.jsonl").open("ab") as stream:
            stream.write(tail)
        (path / "_writer.lock").write_text(json.dumps({**OWNER, "host": socket.gethostname()}))
        after = Memory.open(path).reencode(other, resumes=True)
        assert other.encoded == [f"p{i}" for i in range(8, 12)]
        assert vectors_by_id(after) == expected(other, after)

    def test_forgetting_leaves_no_text_behind(self, path, begun):
        done = forget(path, ["p3"])
        assert done.left == []
        assert not any(b"text 3" in file.read_bytes() for file in path.rglob("*") if file.is_file())


OWNER = {"pid": 2**22 + 1, "since": "2026-01-01T00:00:00+00:00"}
