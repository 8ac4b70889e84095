"""Many processes write what one would have written, row for row; what was killed goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from latentrag.addresses import home
from latentrag.assemble import load_passage_encoder
from latentrag.cluster import add, build
from latentrag.cluster import building as module
from latentrag.cluster.building import PASSAGES_PER_UNIT, Encoder, Encoding, _Pool
from latentrag.cluster.shard import Refused
from latentrag.errors import DataError, EncoderMismatchError, InputError, MemoryStoreError
from latentrag.memory import Memory, version_files
from latentrag.memory.reencoding import WrittenUnit, staged_of
from latentrag.types import Passage
from tests.cluster.conftest import ROOT, wait_for
from tests.memory import indexing

UNIT = 1_024


class PoolHere:
    """Writes units in this process, and gives them back in another order."""

    written: ClassVar[list[int]] = []
    fails_at: int | None = None

    def __init__(self, work: Encoding, num_actors: int, gpus_per_actor: float) -> None:
        self._encoder, self._done = Encoder(work), list[tuple[int, WrittenUnit]]()

    def __enter__(self) -> "PoolHere":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def submit(self, number: int, digest: str, unit: Sequence[Passage]) -> Iterator[tuple[int, WrittenUnit]]:
        if number == PoolHere.fails_at:
            yield from self.rest()
            raise KeyboardInterrupt
        note: Any = self._encoder.write(unit)
        if isinstance(note, Refused):
            raise note.exception()
        PoolHere.written.append(number)
        self._done.append((number, WrittenUnit(digest, note["rows"], staged_of(note))))

    def rest(self) -> Iterator[tuple[int, WrittenUnit]]:
        while self._done:
            yield self._done.pop()


@pytest.fixture
def here(monkeypatch):
    """Builds without Ray. Returns: the numbers of the units that were encoded."""
    monkeypatch.setattr(module, "_Pool", PoolHere)
    monkeypatch.setattr(module, "connect", lambda: None)
    monkeypatch.setattr(PoolHere, "written", [])
    monkeypatch.setattr(PoolHere, "fails_at", None)
    return PoolHere.written


def texts(num: int) -> list[Passage]:
    words = ["red", "blue", "moon", "sun", "who", "wrote", "novel", "opera"]
    shown = [" ".join(words[(i * j) % 8] for j in range(1, 2 + i % 5)) for i in range(num)]
    return [Passage(f"p{i}", text, title=words[i % 8], start=i, end=i + 5) for i, text in enumerate(shown)]


@pytest.fixture
def folder(pair):
    return pair[0]


@pytest.fixture
def made(folder, path):
    """Builds from these passages, by the name of the encoder's folder."""

    def run(passages, **options):
        how: dict[str, Any] = {"source": str(folder), "device": "cpu", "passages_per_unit": UNIT} | options
        return add(path, passages, lambda: load_passage_encoder(folder, device="cpu"), **how)

    return run


def rows_of(memory: Memory):
    """All of the table, row ids too."""
    import pyarrow as pa

    columns = [*memory.table.passage_columns, "vector"]
    return pa.Table.from_batches(list(memory.table.scan(columns, with_row_id=True))).combine_chunks()


def one_process(place, folder, passages) -> Memory:
    encoder = load_passage_encoder(folder, device="cpu")
    return Memory.create(place, encoder).add(passages, encoder)


def test_rows_are_those_of_one_process(here, made, folder, tmp_path):
    passages = texts(3_500)
    done = made(iter(passages))
    alone = one_process(tmp_path / "alone.lance", folder, passages)
    assert rows_of(done.memory).equals(rows_of(alone))
    assert (done.memory.version, done.added, done.resumed) == (alone.version, 3_500, 0)
    assert here == [0, 1, 2, 3]
    assert done.memory.table.storage.files() <= version_files.needed(done.memory.table.storage)


def test_finished_units_are_not_encoded_again(here, made, folder, tmp_path, monkeypatch):
    passages = texts(3_500)
    monkeypatch.setattr(PoolHere, "fails_at", 2)
    with pytest.raises(KeyboardInterrupt):
        made(passages)
    assert Memory.open(tmp_path / "wiki.lance").version == 1
    monkeypatch.setattr(PoolHere, "fails_at", None)
    here.clear()
    done = made(passages)
    assert here == [2, 3]
    assert done.resumed == 2 * UNIT
    assert rows_of(done.memory).equals(rows_of(one_process(tmp_path / "alone.lance", folder, passages)))


def test_a_unit_whose_passages_changed_is_encoded_again(here, made, path, monkeypatch):
    passages = texts(2_100)
    monkeypatch.setattr(PoolHere, "fails_at", 2)
    with pytest.raises(KeyboardInterrupt):
        made(passages)
    monkeypatch.setattr(PoolHere, "fails_at", None)
    here.clear()
    passages[UNIT] = Passage("new", "another text")
    done = made(passages)
    assert here == [1, 2]
    assert list(done.memory.passages()) == passages
    assert done.memory.table.storage.files() <= version_files.needed(done.memory.table.storage)


def test_a_file_of_a_finished_unit_that_is_damaged(here, made, path, monkeypatch):
    monkeypatch.setattr(PoolHere, "fails_at", 1)
    with pytest.raises(KeyboardInterrupt):
        made(texts(2_000))
    (file,) = (path / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(PoolHere, "fails_at", None)
    here.clear()
    made(texts(2_000))
    assert here == [0, 1]


def test_what_cannot_be_built(here, made, path, folder, tmp_path):
    with pytest.raises(DataError, match="no passages in the input"):
        made([])
    with pytest.raises(DataError, match="has no id"):
        made([Passage("", "text")])
    with pytest.raises(InputError, match="needed a multiple of 1024"):
        made(texts(3), passages_per_unit=1_000)
    with pytest.raises(InputError, match="actors=0"):
        made(texts(3), actors=0)
    assert not path.exists()
    with pytest.raises(DataError, match="passage 'p7' comes twice in the input"):
        made([*texts(1_100), Passage("p7", "again")])
    made(texts(5))
    with pytest.raises(DataError, match="passage 'p3' is in the memory already"):
        made([Passage("p3", "text")])
    from tests.encoder.tiny import write_sentence_encoder

    other = write_sentence_encoder(tmp_path / "other", head=[])
    with pytest.raises(EncoderMismatchError, match="which encoded the memory"):
        made([Passage("z", "text")], source=str(other))
    assert len(Memory.open(path)) == 5


def test_files_become_what_index_add_makes_of_them(here, pair, path, tmp_path):
    from tests.cli.conftest import cli

    notes = tmp_path / "notes"
    notes.mkdir()
    for name in ("a", "b"):
        (notes / f"{name}.txt").write_text(f"the moon of {name} is red. " * 60)
    alone = tmp_path / "alone.lance"
    assert cli("index", "add", alone, notes, "--encoder", pair[0]).code == 0
    built = build(path, [notes], encoder=str(pair[0]), device="cpu")
    assert rows_of(built.memory).equals(rows_of(Memory.open(alone)))
    again = tmp_path / "again.lance"
    line = ["cluster", "build", again, notes, "--encoder", pair[0]]
    assert cli(*line, "--json").json["added"] == len(built.memory)
    assert rows_of(Memory.open(again)).equals(rows_of(Memory.open(alone)))
    assert "is in the memory already" in cli(*line).error()
    assert cli("index", "verify", again).code == 0


@pytest.mark.parametrize(
    ("actors", "gpus", "message"),
    [(5, 0, "5 actors need 5 CPUs, the cluster has 4"), (2, 1, "2 actors need 2 GPUs, the cluster has 0")],
)
def test_more_actors_than_there_is_room_for(actors, gpus, message):
    with pytest.raises(InputError, match=message):
        module._require_room({"CPU": 4.0}, actors, gpus)


def test_added_to_a_memory_with_passages(here, made):
    made(texts(5))
    done = made([Passage("z", "moon")])
    assert (len(done.memory), done.memory.version, done.added) == (6, 3, 1)


@pytest.mark.xdist_group("cluster")
@pytest.mark.cluster
def test_an_actor_that_is_killed_begins_again(cluster, made, folder, tmp_path, monkeypatch):
    """After its file was written, before it was heard of."""
    passages, killed = texts(3_500), []
    submit = _Pool.submit

    def submit_and_kill(pool: Any, number: int, digest: str, unit: Sequence[Passage]) -> Any:
        yield from submit(pool, number, digest, unit)
        if number == 2:
            wait_for(lambda: _some_file(tmp_path / "wiki.lance" / "data"))
            for actor in pool._actors:
                killed.append(_pid(actor))
                os.kill(killed[-1], signal.SIGKILL)

    monkeypatch.setattr(_Pool, "submit", submit_and_kill)
    done = made(passages, actors=2)
    assert len(killed) == 2
    assert rows_of(done.memory).equals(rows_of(one_process(tmp_path / "alone.lance", folder, passages)))
    assert done.memory.table.storage.files() <= version_files.needed(done.memory.table.storage)


def _some_file(data) -> None:
    assert list(data.glob("*"))


def _pid(actor: Any) -> int:
    import ray

    return ray.get(actor.pid.remote())


@pytest.mark.xdist_group("cluster")
@pytest.mark.cluster
def test_a_driver_that_is_killed_goes_on(cluster, made, folder, path, tmp_path):
    passages = texts(9 * UNIT)
    code = f"""
from tests.cluster.test_build import texts, UNIT
from latentrag.assemble import load_passage_encoder
from latentrag.cluster import add
add({str(path)!r}, texts(9 * UNIT), lambda: load_passage_encoder({str(folder)!r}, device="cpu"),
    source={str(folder)!r}, device="cpu", passages_per_unit=UNIT)
"""
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)

    def has_written() -> None:
        if driver.poll() is not None:
            raise RuntimeError("the driver has ended")
        assert len(version_files.noted(path)) > 2

    wait_for(has_written)
    driver.kill()
    driver.wait()
    finished = len(version_files.noted(path)) - 1
    done = made(passages)
    assert done.resumed >= finished * UNIT > 0
    assert done.added == 9 * UNIT
    assert rows_of(done.memory).equals(rows_of(one_process(tmp_path / "alone.lance", folder, passages)))
    assert done.memory.table.storage.files() <= version_files.needed(done.memory.table.storage)
    assert np.isfinite(rows_of(done.memory)["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)).all()


@pytest.mark.xdist_group("cluster")
@pytest.mark.parametrize(
    ("num", "size"), [(2_500, UNIT), pytest.param(72_000, PASSAGES_PER_UNIT, marks=pytest.mark.cluster)]
)
def test_actors_build_what_one_process_would(num, size, cluster, made, folder, tmp_path):
    """Every column, in one new version that is whole."""
    from tests.cli.conftest import cli

    passages = texts(num)
    done = made(passages, actors=2, passages_per_unit=size)
    assert rows_of(done.memory).equals(rows_of(one_process(tmp_path / "alone.lance", folder, passages)))
    assert (done.memory.version, len(done.memory)) == (2, num)
    assert done.memory.table.storage.files() <= version_files.needed(done.memory.table.storage)
    assert cli("index", "verify", done.memory.path).code == 0
    with pytest.raises(MemoryStoreError, match="was opened at version"):
        Memory.open(done.memory.path, version=1).add([Passage("z", "t")], load_passage_encoder(folder, device="cpu"))


@pytest.mark.xdist_group("cluster")
@pytest.mark.cluster
def test_actors_compute_the_numbers_of_one_process(cluster, path, tmp_path):
    """With a real encoder of 22 million weights, on real passages: rounding would show."""
    folder, demo = home().models / "demo" / "query_encoder", home().memories / "demo.lance"
    if not folder.exists() or not demo.exists():
        pytest.skip("needs the demo's encoder and memory; run latentrag demo")
    passages = list(islice(Memory.open(demo).passages(), 2_500))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in an actor of one CPU
    try:
        alone = one_process(tmp_path / "alone.lance", folder, passages)
    finally:
        torch.set_num_threads(threads)
    how: dict[str, Any] = {"source": str(folder), "device": "cpu", "actors": 2, "passages_per_unit": UNIT}
    done = add(path, passages, lambda: load_passage_encoder(folder, device="cpu"), **how)
    ours, theirs = (indexing.rows_of(memory.table).vectors for memory in (done.memory, alone))
    assert ours.shape == (2_500, 384)
    assert (ours != theirs).sum() == 0
    assert rows_of(done.memory).equals(rows_of(alone))
