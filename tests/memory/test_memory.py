"""Versions, commits and refusals of a memory."""

import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch

from latentrag.errors import (
    DataError,
    EncoderMismatchError,
    InputError,
    MemoryStoreError,
    ModelError,
    ShapeError,
)
from latentrag.memory import EncoderCard, Memory
from latentrag.memory import table as table_module
from latentrag.memory import writer as writer_module
from latentrag.types import Passage


def ids(memory: Memory) -> list[str]:
    return [passage.id for passage in memory.passages()]


def files(path: Path) -> list[Path]:
    return sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())


def test_passages_come_back_as_they_were(path, encoder):
    passages = [
        Passage("a'b\"c", "Zürich — 東京 🙂\nnew\tline", "Ti'tle", "docs/ä.pdf", start=3, end=2**40, page=7),
        Passage("b", "", page=None),
        Passage("ß%_\\", "\x00 and \u2028", "t", "s", 0, 1, 0),
    ]
    memory = Memory.create(path, encoder).add(iter(passages), encoder)

    reopened = Memory.open(path)
    assert list(reopened.passages()) == passages
    assert reopened.get(["ß%_\\", "a'b\"c"]) == [passages[2], passages[0]]
    found = reopened.search(np.stack([encoder.vector(passages[0].text)]), 3)
    assert sorted(found.passages[0], key=lambda p: p.id) == sorted(passages, key=lambda p: p.id)
    assert len(memory) == len(reopened) == 3


def test_the_card_says_what_encoded_the_memory(path, encoder):
    Memory.create(path, encoder)
    assert Memory.open(path).card == EncoderCard("fake", "f1", dimension=8, max_tokens=256, scale=2.0)


def test_the_table_has_stable_row_ids_and_fp16_vectors(path, filled):
    dataset = lance.dataset(str(path))
    assert dataset.has_stable_row_ids
    assert dataset.schema.field("vector").type == pa.list_(pa.float16(), 8)


def test_an_older_version_still_answers_as_it_did(path, encoder, filled, queries):
    before = filled.search(queries, 3)
    newer = filled.upsert([Passage("p0", "other"), Passage("new", "newer")], encoder).delete(["p3", "p4"])

    old = Memory.open(path, version=2)
    assert (filled.version, newer.version, old.version, Memory.open(path).version) == (2, 4, 2, 4)
    assert (len(filled), len(newer), len(old)) == (12, 11, 12)
    for memory in (filled, old):
        again = memory.search(queries, 3)
        assert again.passages == before.passages
        assert np.array_equal(again.scores, before.scores)
        assert again.version == 2
        assert memory.get(["p0"])[0].text == "text 0"
    assert newer.search(queries, 3).version == 4


def test_upsert_replaces_by_id_without_doubles(encoder, filled):
    changed = filled.upsert([Passage("p5", "five", page=9), Passage("p12", "twelve")], encoder)

    assert changed.version == filled.version + 1
    assert sorted(ids(changed)) == sorted(f"p{i}" for i in range(13))
    assert changed.get(["p5"]) == [Passage("p5", "five", page=9)]
    # The vector was replaced as well.
    own = encoder.vector("five")
    found = changed.search(own[None], 13)
    place = [passage.id for passage in found.passages[0]].index("p5")
    assert np.array_equal(found.vectors[0, place], own.astype(np.float16).astype(np.float32))


def test_upsert_may_replace_everything(encoder, filled):
    changed = filled.upsert([Passage(f"p{i}", f"new {i}") for i in range(12)], encoder)
    assert [passage.text for passage in changed.passages()] == [f"new {i}" for i in range(12)]


def test_delete(filled, queries):
    changed = filled.delete(["p1", "p10", "p1"])
    assert (len(changed), changed.version) == (10, 3)
    assert ids(changed) == [f"p{i}" for i in range(12) if i not in (1, 10)]
    assert {p.id for p in changed.search(queries, 10).passages[0]} == set(ids(changed))


def test_all_passages_can_be_deleted_and_others_added(encoder, filled, queries):
    empty = filled.delete(ids(filled))
    assert len(empty) == 0
    with pytest.raises(MemoryStoreError, match=r"has no passages at version 3; .*latentrag index add"):
        empty.search(queries, 1)
    assert ids(empty.add([Passage("p1", "back")], encoder)) == ["p1"]


def test_delete_refuses_unknown_ids_and_deletes_nothing(path, filled):
    with pytest.raises(InputError, match=r"4 ids are not in .*: 'x0', 'x1', 'x2', …; leave them out"):
        filled.delete(["p1", "x0", "x1", "x2", "x3"])
    with pytest.raises(InputError, match="no ids to delete"):
        filled.delete([])
    assert Memory.open(path).version == 2
    assert len(Memory.open(path)) == 12


def test_get_refuses_unknown_ids(filled):
    with pytest.raises(InputError, match=r"1 ids are not in .*'x'"):
        filled.get(["p1", "x"])


def test_the_log_says_what_happened(path, encoder, filled):
    filled.upsert([Passage("p0", "other"), Passage("new", "newer")], encoder).delete(["p3"])
    log = Memory.open(path).log()
    assert [(v.number, v.num_passages, v.change) for v in log] == [
        (1, 0, "created"),
        (2, 12, "added 12"),
        (3, 13, "added 1, replaced 1"),
        (4, 12, "deleted 1"),
    ]
    now = datetime.now(UTC)
    assert all(now - timedelta(minutes=5) < version.time <= now for version in log)
    assert [version.number for version in filled.log()] == [1, 2]


@pytest.mark.parametrize("method", ["add", "upsert"])
def test_an_encoder_that_fails_midway_leaves_everything_as_it_was(monkeypatch, path, encoder, filled, method):
    monkeypatch.setattr(writer_module, "PASSAGES_PER_ENCODING", 4)
    monkeypatch.setattr(table_module, "ROWS_PER_FRAGMENT", 4)
    before = files(path)
    working = encoder.encode_passages

    def failing(passages, **options):
        if any(passage.id == "q9" for passage in passages):
            raise RuntimeError("the device is gone")
        return working(passages, **options)

    encoder.encode_passages = failing
    with pytest.raises(RuntimeError, match="the device is gone"):
        getattr(filled, method)((Passage(f"q{i}", "t") for i in range(12)), encoder)

    assert Memory.open(path).version == 2
    assert ids(Memory.open(path)) == ids(filled)
    assert files(path) == before


@pytest.mark.parametrize(
    ("late", "message"),
    [
        (Passage("p3", "t"), "'p3' is in the memory already; use upsert"),
        (Passage("q0", "t"), "'q0' comes twice in the input"),
        (Passage("", "t", source="a.txt"), "a passage of a.txt has no id"),
        (Passage("q9", "half a pair \ud800"), "one of 'q9' to 'q9' cannot be stored"),
        (Passage("q9", "t", page=2**31), "one of 'q9' to 'q9' cannot be stored"),
    ],
)
def test_a_bad_passage_late_in_the_stream_leaves_everything_as_it_was(
    monkeypatch, path, encoder, filled, late, message
):
    monkeypatch.setattr(writer_module, "PASSAGES_PER_ENCODING", 4)
    monkeypatch.setattr(table_module, "ROWS_PER_FRAGMENT", 4)
    before = files(path)
    stream = chain((Passage(f"q{i}", f"t{i}") for i in range(8)), [late])
    with pytest.raises(DataError, match=message):
        filled.add(stream, encoder)
    assert Memory.open(path).version == 2
    assert files(path) == before


def test_upsert_refuses_an_id_that_comes_twice(path, encoder, filled):
    with pytest.raises(DataError, match="'p1' comes twice in the input"):
        filled.upsert([Passage("p1", "one"), Passage("p1", "another")], encoder)
    assert Memory.open(path).version == 2


@pytest.mark.parametrize("method", ["add", "upsert"])
def test_no_passages_make_no_version(path, encoder, filled, method):
    with pytest.raises(DataError, match="no passages in the input; "):
        getattr(filled, method)(iter(()), encoder)
    assert Memory.open(path).version == 2


@pytest.mark.parametrize("method", ["add", "upsert"])
@pytest.mark.parametrize(("dimension", "fingerprint"), [(8, "f2"), (16, "f1")])
def test_another_encoder_may_not_write(path, filled, make_encoder, method, dimension, fingerprint):
    other = make_encoder(dimension, fingerprint)
    with pytest.raises(EncoderMismatchError, match=rf"fake \({fingerprint}, {dimension} dim.*; use that one, or"):
        getattr(filled, method)([Passage("q", "t")], other)
    assert Memory.open(path).version == 2


def test_vectors_that_fp16_cannot_hold_are_refused(path, encoder, filled):
    vectors = torch.zeros(3, 8)
    vectors[1, 4] = 70_000.0  # the largest fp16 is 65,504
    encoder.encode_passages = lambda passages, **_: vectors
    with pytest.raises(ModelError, match="gave passage 'q1' a vector that is not finite in fp16"):
        filled.add([Passage(f"q{i}", "t") for i in range(3)], encoder)
    assert Memory.open(path).version == 2


def test_vectors_of_a_wrong_shape_are_refused(encoder, filled):
    encoder.encode_passages = lambda passages, **_: torch.zeros(2, 8)
    with pytest.raises(ShapeError, match=r"shape \(2, 8\) for 3 passages, needed \(3, 8\)"):
        filled.add([Passage(f"q{i}", "t") for i in range(3)], encoder)


def test_only_the_newest_version_can_be_changed(path, encoder, filled):
    filled.delete(["p0"])
    changes: tuple[Callable[[], Memory], ...] = (
        lambda: filled.add([Passage("q", "t")], encoder),
        lambda: filled.upsert([Passage("q", "t")], encoder),
        lambda: filled.delete(["p1"]),
    )
    for change in changes:
        with pytest.raises(MemoryStoreError, match="opened at version 2 but its newest is 3; open it without"):
            change()
    assert ids(Memory.open(path)) == [f"p{i}" for i in range(1, 12)]


@pytest.mark.usefixtures("no_locks")
def test_a_commit_of_someone_else_during_the_encoding_is_noticed(path, encoder, filled):
    def stream() -> Iterator[Passage]:
        yield Passage("q0", "t")
        Memory.open(path).add([Passage("q0", "theirs")], encoder)
        yield Passage("q1", "t")

    with pytest.raises(MemoryStoreError, match="its newest is 3"):
        filled.add(stream(), encoder)
    assert [passage.text for passage in Memory.open(path).get(["q0"])] == ["theirs"]
    assert "q1" not in ids(Memory.open(path))


def test_passages_are_streamed(monkeypatch, path, encoder):
    """Never more than one encoding batch and the passage just made are alive."""
    monkeypatch.setattr(writer_module, "PASSAGES_PER_ENCODING", 50)
    monkeypatch.setattr(table_module, "ROWS_PER_FRAGMENT", 200)

    class TracedPassage(Passage):  # without __slots__, so that it can be watched
        pass

    alive: weakref.WeakValueDictionary[int, Passage] = weakref.WeakValueDictionary()
    peak = 0

    def stream() -> Iterator[Passage]:
        nonlocal peak
        for i in range(1_000):
            passage = TracedPassage(f"p{i}", f"text {i}")
            alive[i] = passage
            peak = max(peak, len(alive))
            yield passage

    memory = Memory.create(path, encoder).add(stream(), encoder)
    assert len(memory) == 1_000
    assert len(memory.log()) == 2
    assert 50 <= peak <= 101
    assert ids(memory) == [f"p{i}" for i in range(1_000)]


def test_progress_is_shown_only_if_asked(shown_progress, path, encoder):
    memory = Memory.create(path, encoder).add([Passage("a", "t")], encoder)
    memory.add(iter([Passage("b", "t"), Passage("c", "t")]), encoder, progress=True)
    assert shown_progress == [("encoding passages", 1, False, 1), ("encoding passages", None, True, 2)]


def test_create_does_not_overwrite(path, tmp_path, encoder, filled):
    with pytest.raises(MemoryStoreError, match="exists already; open it, or choose"):
        Memory.create(path, encoder)
    assert len(Memory.open(path)) == 12
    (tmp_path / "empty").mkdir()
    assert len(Memory.create(tmp_path / "empty", encoder)) == 0


def test_a_version_that_does_not_exist_is_refused_with_those_that_do(path, filled):
    with pytest.raises(MemoryStoreError, match=r"has no version 9; choose one of 1, 2$"):
        Memory.open(path, version=9)


def test_there_is_no_memory(path):
    with pytest.raises(MemoryStoreError, match=r"there is no memory at .*; .*`latentrag index add PATH FILES…`"):
        Memory.open(path)
    assert not path.exists()


@pytest.mark.parametrize("name", ["m.pkl", "m.faiss", "m.index", "m.index_meta.dpr", "plain"])
def test_files_are_never_loaded(tmp_path, name):
    stop = tmp_path / "loaded"
    payload = f"cos\nsystem\n(S'touch {stop}'\ntR.".encode()  # a pickle that would leave a trace
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(MemoryStoreError, match=r"file, a memory is a folder.*never loaded; .*index add PATH"):
        Memory.open(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / name).rename(tmp_path / "folder" / name)
    with pytest.raises(MemoryStoreError, match=r"folder without a Lance table.*never loaded; .*index add PATH"):
        Memory.open(tmp_path / "folder")
    assert not stop.exists()


def test_a_lance_table_of_someone_else_is_refused(path):
    lance.write_dataset(pa.table({"id": ["a"]}), str(path))
    with pytest.raises(MemoryStoreError, match="is a Lance table but not a memory"):
        Memory.open(path)


def test_a_damaged_memory_is_refused_in_one_line(path, filled):
    shutil.rmtree(path / "data")
    with pytest.raises(MemoryStoreError, match=r"cannot be read .*restore it") as caught:
        list(filled.passages())
    assert "\n" not in str(caught.value)
    for manifest in (path / "_versions").iterdir():
        manifest.write_bytes(b"")
    with pytest.raises(MemoryStoreError, match=r"cannot be read .*restore it") as caught:
        Memory.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "card of the memory's encoder cannot be read"),
        ("[]", "card of the memory's encoder cannot be read"),
        (json.dumps({"format_version": 1, "encoder": "e"}), "card of the memory's encoder cannot be read"),
        (json.dumps({"format_version": 2, "new": 0}), "has format 2, this latentrag reads format 1; install"),
    ],
)
def test_cards_of_other_kinds_are_refused(text, message):
    with pytest.raises(MemoryStoreError, match=message):
        EncoderCard.from_json(text)


def test_a_card_survives_json():
    card = EncoderCard("modèle", "abc", dimension=384, max_tokens=256, scale=20.0)
    assert EncoderCard.from_json(card.to_json()) == card
    assert EncoderCard.from_json(replace(card, scale=0.1).to_json()) != card


class FakeQueryEncoder:
    scale = 1.0

    def __init__(self, dimension: int, passage_fingerprint: str | None) -> None:
        self.dimension = dimension
        self.passage_fingerprint = passage_fingerprint

    def encode_queries(self, x: Sequence[str]) -> torch.Tensor:
        raise AssertionError("check needs no vectors")


def test_check_accepts_the_query_encoder_that_belongs_to_the_memory(filled):
    filled.check(FakeQueryEncoder(8, "f1"))  # warnings are errors in these tests


def test_check_warns_where_the_pairing_is_unknown(filled):
    with pytest.warns(UserWarning, match="cannot verify .* encoded by fake") as caught:
        filled.check(FakeQueryEncoder(8, None))
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("dimension", "fingerprint", "message"),
    [
        (8, "f2", "fingerprint f2, the memory was encoded by fake with f1; use the query encoder"),
        (16, "f1", "16 dimensions, the memory's vectors have 8; use the query encoder"),
        (16, None, "16 dimensions, the memory's vectors have 8; use the query encoder"),
    ],
)
def test_check_refuses_other_query_encoders(filled, dimension, fingerprint, message):
    with pytest.raises(EncoderMismatchError, match=message):
        filled.check(FakeQueryEncoder(dimension, fingerprint))


def test_importing_the_room_is_light():
    heavy = "{'lance', 'faiss', 'pyarrow', 'torch', 'rich'}"
    code = f"import sys, latentrag.memory; print(*{heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
