"""A sharded memory against the same memory on one machine, and its actors killed, exchanged, refused."""

import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from latentrag.assemble import memory_at
from latentrag.cluster import ShardedMemory, names, stop
from latentrag.cluster.connection import Register
from latentrag.errors import EncoderMismatchError, InputError, MemoryStoreError, UnavailableError
from latentrag.memory import Memory
from latentrag.types import Passage
from tests.cluster.conftest import wait_for
from tests.memory.conftest import FakePassageEncoder
from tests.memory.indexing import append, drawn, make_table

pytestmark = pytest.mark.xdist_group("cluster")
KS = (1, 5, 50)


def queries(num: int, dimension: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((num, dimension)).astype(np.float32)


def assert_same(found, one) -> None:
    """To the last bit, and in the same order."""
    assert found.passages == one.passages
    assert np.array_equal(found.scores, one.scores)
    assert np.array_equal(found.vectors, one.vectors)
    assert found.version == one.version


def write_with_ties(path) -> Memory:
    """Version 5: several fragments, in which most vectors stand twice, with fields, and some deleted."""
    encoder = FakePassageEncoder(16)
    passages = [
        Passage(f"p{i}", f"text {i % 400}", fields={"year": 1900 + i % 97} if i < 500 else {}) for i in range(700)
    ]
    passages[7] = replace(passages[7], fields={"author": "Ann"})
    memory = Memory.create(path, encoder).add(passages, encoder)
    memory = memory.add([Passage(f"q{i}", f"text {i}") for i in range(300)], encoder)
    return memory.delete(["p3", "q40"])


def test_a_memory_of_shards_is_like_any_other(start, path):
    """One start for all of this, since one takes seconds."""
    one = write_with_ties(path)
    older = one.at(one.version - 1)
    memory = start(path, shards=2, index="flat", name="facts")
    assert_finds_what_one_machine_finds(memory, one)
    assert_keeps_conditions(memory, one)
    assert_finds_by_address(memory, one, older)
    assert_follows_another_process(memory, one, older)
    assert_refuses_in_one_line(memory, path, start)


def assert_finds_what_one_machine_finds(memory, one) -> None:
    assert (len(memory), memory.version, memory.identity, memory.lineage, memory.card) == (
        *(len(one), one.version, one.identity, one.lineage, one.card),
    )
    for q in (queries(7, 16), queries(1, 16)):
        for k in KS:
            assert_same(memory.search(q, k), one.search(q, k))
    assert list(memory.passages()) == list(one.passages())
    ids = ["q7", "p1", "p699"]
    assert memory.get(ids) == one.get(ids)


def assert_keeps_conditions(memory, one) -> None:
    q = queries(3, 16)
    for condition in ("year < 1950", "author = 'Ann'", "year is null", "id like 'p1%'"):
        some, alone = memory.where(condition), one.where(condition)
        assert len(some) == len(alone)
        assert_same(some.search(q, 5), alone.search(q, 5))
        assert list(some.passages()) == list(alone.passages())
    both = memory.where("year < 1950").where("year > 1940")
    assert_same(both.search(q, 5), one.where("year < 1950 and year > 1940").search(q, 5))
    for condition in ("yaer < 1950", "year = 'x'"):
        with pytest.raises(InputError) as ours:
            memory.where(condition)
        with pytest.raises(InputError) as theirs:
            one.where(condition)
        assert str(ours.value) == str(theirs.value)
    with pytest.raises(InputError, match="0 passages satisfy year > 3000"):
        memory.where("year > 3000").search(q, 5)


def assert_finds_by_address(memory, one, older) -> None:
    q = queries(3, 16)
    assert_same(memory_at("cluster:facts").search(q, 3), one.search(q, 3))
    assert_same(memory_at("cluster:facts", version=older.version).search(q, 3), older.search(q, 3))
    assert memory.version == one.version
    with pytest.raises(MemoryStoreError, match="no version 9"):
        memory_at("cluster:facts", version=9)
    with pytest.raises(MemoryStoreError, match=r"no memory named 'fact' \(there are: facts\)"):
        memory_at("cluster:fact")


def assert_follows_another_process(memory, one, older) -> None:
    q, pinned = queries(2, 16), memory.snapshot()
    ShardedMemory.open("facts").use(older.version)
    wait_for(lambda: assert_same(memory.search(q, 5), older.search(q, 5)))
    assert (memory.version, pinned.version) == (older.version, one.version)
    assert_same(pinned.search(q, 5), one.search(q, 5))


def assert_refuses_in_one_line(memory, path, start) -> None:
    class Queries:
        dimension, scale, passage_fingerprint = 16, 1.0, "another"

    with pytest.raises(InputError, match="1 ids are not in cluster:facts: 'p999'"):
        memory.get(["p1", "p999"])
    with pytest.raises(InputError, match="exceeds the memory's"):
        memory.search(queries(1, 16), 2_000)
    with pytest.raises(EncoderMismatchError, match="the memory was encoded by fake with f1"):
        memory.check(Queries())
    with pytest.raises(MemoryStoreError, match="a memory named facts is in the cluster already"):
        start(path, name="facts")


@pytest.mark.cluster
@pytest.mark.parametrize("shards", [1, 3])
def test_flat_in_other_numbers_of_shards(shards, start, path):
    one = write_with_ties(path)
    assert_finds_what_one_machine_finds(start(path, shards=shards, index="flat"), one)


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore:the index ivf-rabitq finds")
@pytest.mark.parametrize(("shards", "num", "dimension"), [(2, 3_000, 16), (2, 20_000, 64), (3, 20_000, 64)])
def test_an_index_of_each_shard(shards, num, dimension, start, path, tmp_path):
    """They find as many of the five best as one machine's index does."""
    vectors = drawn(num, dimension)
    one = Memory(make_table(path, vectors))
    memory = start(path, shards=shards, index="ivf-rabitq")
    made = sorted(each.name for each in (tmp_path / "indexes" / "wiki").iterdir())
    assert made == [f"{shard + 1}-of-{shards}" for shard in range(shards)]
    assert not (path / "_indexes").exists()
    q = vectors[:: num // 400].astype(np.float32)
    q += queries(len(q), dimension)
    machine = Memory.open(path, index="ivf-rabitq", index_folder=tmp_path / "alone")
    exact, found, of_one = (scores(each, q) for each in (one, memory, machine))
    recall, recall_of_one = ((each >= exact[:, 4:]).mean() for each in (found, of_one))
    assert recall_of_one > 0.9
    assert recall >= recall_of_one - 0.005


def scores(memory, q: np.ndarray) -> np.ndarray:
    """(B, 5) of the best, asked a few questions at a time."""
    return np.concatenate([memory.search(some, 5).scores for some in np.array_split(q, 20)])


@pytest.mark.parametrize("times", [6, pytest.param(20, marks=pytest.mark.cluster)])
def test_versions_are_exchanged_under_load(times, start, path):
    """Every result is one version's, whole."""
    table = make_table(path, drawn(200, 8))
    for number in range(3):
        table = append(table, drawn(60, 8, seed=number + 2), prefix=f"v{number}-")
    q = queries(2, 8)
    expected = {version: Memory.open(path, version=version).search(q, 5) for version in (2, 3, 4, 5)}
    memory = start(path, shards=2, version=2)
    seen: list[int] = []
    wrong: list[object] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                found = memory.search(q, 5)
                assert_same(found, expected[found.version])
                seen.append(found.version)
            except (MemoryStoreError, AssertionError) as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(times):
        memory.use(2 + number % 4)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(set(seen)) > 1


@pytest.mark.parametrize(("num", "killed_at"), [(60, 20), pytest.param(1_000, 300, marks=pytest.mark.cluster)])
def test_a_replica_that_is_killed(num, killed_at, start, path, capsys):
    """0 errors, 0 wrong; it comes back. Nothing is written where results are."""
    one = Memory(make_table(path, drawn(300, 8)))
    memory = start(path, shards=2, replicas=2)
    q, slowest = queries(1, 8), 0.0
    expected = one.search(q, 5)
    for number in range(num):
        if number == killed_at:
            os.kill(pid_of_replica(memory, 1), signal.SIGKILL)
        began = time.monotonic()
        assert_same(memory.search(q, 5), expected)
        slowest = max(slowest, time.monotonic() - began)
    assert slowest <= 5

    def is_whole() -> None:
        memory.search(q, 5)  # whoever is asked loads
        assert all(each.rows is not None for each in memory.status())

    wait_for(is_whole)
    assert_same(memory.search(q, 5), expected)
    assert capsys.readouterr().out == ""


def pid_of_replica(memory: ShardedMemory, replica: int) -> int:
    """Of the first shard, counted from 0."""
    import ray

    return ray.get(memory._calls.handle((0, replica)).about.remote()).pid


@pytest.mark.cluster
@pytest.mark.parametrize(("num", "killed_at"), [(60, 20), (1_000, 300)])
def test_the_only_replica_is_killed(num, killed_at, start, path):
    """Errors that name the shard, until it is back; nothing wrong."""
    one = Memory(make_table(path, drawn(300, 8)))
    memory = start(path, shards=2)
    q = queries(1, 8)
    expected, answered = one.search(q, 5), 0
    errors: list[str] = []
    end = time.monotonic() + 60
    while answered < num and time.monotonic() < end:
        if answered == killed_at and not errors:
            os.kill(pid_of_replica(memory, 0), signal.SIGKILL)
        try:
            assert_same(memory.search(q, 5), expected)
            answered += 1
        except MemoryStoreError as error:
            errors.append(str(error))
            time.sleep(0.05)
    assert answered == num
    assert errors
    assert all(each.startswith("shard 1 of 2 of cluster:wiki does not answer (") for each in errors)


def test_a_partial_memory_says_what_is_missing(start, path):
    one = write_with_ties(path)
    memory = start(path, shards=2, index="flat", name="facts", partial=True)
    q, which = queries(3, 16), ("shard 2 of 2 of cluster:facts",)
    assert_same(memory.search(q, 5), one.search(q, 5))
    assert ShardedMemory.open("facts").search(q, 5).missing == ()
    kill(memory, 1)
    wait_for(lambda: require_missing(memory, which))
    every = one.search(q, len(one))
    left = memory.snapshot().division.rows[0]
    found = memory.search(q, len(one))
    assert (found.missing, found.scores.shape) == (which, (3, left))
    for b in range(3):
        scores = {z.id: score for z, score in zip(every.passages[b], every.scores[b].tolist(), strict=True)}
        assert [scores[z.id] for z in found.passages[b]] == found.scores[b].tolist()
    some = memory.where("year < 1950")
    found = some.search(q, 5)
    assert found.missing == which
    assert all(z.fields["year"] < 1950 for of_one in found.passages for z in of_one)
    assert len(memory.where("id is not null")) == left
    for asks in (  # what only the missing shard may have is not said to be nowhere
        lambda: memory.where("yaer < 1950"),
        lambda: memory.where("year > 3000").search(q, 5),
        lambda: memory.get([z.id for z in every.passages[0][:100]]),
    ):
        with pytest.raises(UnavailableError, match=r"^shard 2 of 2 of cluster:facts does not answer \("):
            asks()
    kill(memory, 0)
    wait_for(lambda: require_none_answers(memory))


def kill(memory: ShardedMemory, shard: int) -> None:
    """The only replica, for good."""
    import ray

    ray.kill(memory._calls.handle((shard, 0)), no_restart=True)


def require_missing(memory: ShardedMemory, which: tuple[str, ...]) -> None:
    assert memory.search(queries(1, 16), 1).missing == which


def require_none_answers(memory: ShardedMemory) -> None:
    with pytest.raises(UnavailableError, match=r"^shard 1 of 2 of cluster:facts does not answer \("):
        memory.search(queries(1, 16), 1)


@pytest.mark.cluster
def test_rows_that_are_missing_are_not_served(start, path, monkeypatch):
    from latentrag.cluster import sharded

    table = make_table(path, drawn(90, 8))
    memory = start(path, shards=2)
    append(table, drawn(10, 8, seed=5), prefix="new")
    whole = sharded.divided
    monkeypatch.setattr(sharded, "divided", lambda *given: replace(whole(*given), num_rows=101))
    with pytest.raises(MemoryStoreError, match="the shards have 100 of the 101 passages of version 3"):
        memory.use(3)
    assert memory.version == 2


def test_what_cannot_start_leaves_nothing(start, path):
    with pytest.raises(MemoryStoreError, match=r"runs on .*, where there is no memory at .*; mount its folder there"):
        start(path)
    for options, message in (
        ({"shards": 0}, "shards=0"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"name": "a/b"}, "'a/b' is no name"),
        ({"index": "hnsw"}, "index 'hnsw' is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            start(path, **options)
    assert names() == []
    with pytest.raises(MemoryStoreError, match="no memory named 'wiki'"):
        ShardedMemory.open("wiki")


@pytest.mark.cluster
def test_what_a_node_refuses_leaves_nothing(start, path):
    make_table(path, drawn(2, 8))
    with pytest.raises(MemoryStoreError, match="has 2 passages at version 2, needed 3 or more"):
        start(path, shards=3)
    with pytest.raises(MemoryStoreError, match="no version 7"):
        start(path, version=7)
    assert names() == []


@pytest.mark.cluster
def test_a_node_with_other_packages(start, path, monkeypatch):
    from latentrag.cluster import live

    make_table(path, drawn(20, 8))
    monkeypatch.setattr(live, "packages", lambda: {"latentrag": "9.9"})
    with pytest.raises(MemoryStoreError, match=r"which has latentrag .*, this process has 9\.9; install the same"):
        start(path)


def test_a_start_that_was_killed(cluster, path):
    record = {"format": 1, "division": None}
    settings = {"name": "wiki", "path": str(path), "shards": 1, "replicas": 1, "index": "auto"}
    Register("wiki").claim({**record, "settings": {**settings, "index_folder": None, "timeout_s": 2.0}})
    with pytest.raises(MemoryStoreError, match="is being started, or its start was killed"):
        ShardedMemory.open("wiki")
    stop("wiki")
    assert names() == []


@pytest.mark.cluster
def test_a_memory_that_went_down_and_up_again(start, path):
    """Who had it open asks the new actors."""
    one = Memory(make_table(path, drawn(90, 8)))
    other = start(path, index="flat")
    stop("wiki")
    start(path, index="flat")
    q = queries(2, 8)
    wait_for(lambda: assert_same(other.search(q, 5), one.search(q, 5)))
