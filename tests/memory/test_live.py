"""A memory that is exchanged while it is searched: every answer comes from one version."""

import gc
import itertools
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from latentrag.assemble import open_memory
from latentrag.errors import EncoderMismatchError, MemoryStoreError
from latentrag.memory import LiveMemory, Memory
from latentrag.memory.indexes import supply
from latentrag.memory.indexes.building import opened
from latentrag.postings import WordIndex
from latentrag.rag import Rag
from latentrag.retriever import BM25Retriever, DenseRetriever
from latentrag.types import Passage
from tests.noting import noting
from tests.toy import ToyGenerator

VERSIONS = range(2, 7)


class FakeQueryEncoder:
    dimension = 8
    scale = 1.0
    passage_fingerprint = "f1"
    module = nn.Module()

    def encode_queries(self, x):
        return torch.ones(len(x), 8)

    def save(self, folder):
        raise AssertionError("not asked for")


@pytest.fixture
def live(path, encoder) -> LiveMemory:
    """Versions 2 to 6 hold the same ids; the texts say which version they are of."""
    memory = Memory.create(path, encoder)
    for number in VERSIONS:
        memory = memory.upsert(
            [Passage(f"p{i}", f"words of version {number}", title=f"t{i}") for i in range(6)], encoder
        )
    return LiveMemory(Memory.open(path, version=2))


def check(passages: list[Passage], version: int) -> None:
    assert {z.text for z in passages} == {f"words of version {version}"}


def test_it_is_the_memory_that_it_holds(path, live, queries):
    memory = Memory.open(path, version=2)
    assert (live.version, len(live), live.name) == (2, 6, str(path))
    assert live.search(queries, 3).passages == memory.search(queries, 3).passages
    assert list(live.passages()) == list(memory.passages())
    assert live.get(["p3"]) == memory.get(["p3"])


def test_what_asks_a_memory_takes_a_live_one(live):
    assert open_memory(live) is live
    assert open_memory(live, version=4).version == 4


def test_use_and_back(path, live, queries):
    before = live.use(5)
    assert (before.version, live.version, live.search(queries, 6).version) == (2, 5, 5)
    live.use("newest")
    assert live.version == 6
    live.use(before)
    assert live.version == 2
    check(live.search(queries, 6).passages[0], 2)


def test_another_version_is_searched_as_the_first_was(monkeypatch, path, live, queries):
    loads: list[object] = []
    monkeypatch.setattr(supply, "opened", noting(opened, loads.append))
    chosen = LiveMemory(Memory.open(path, version=2, index="ivf-rabitq"))
    chosen.search(queries, 3)
    chosen.use(2)
    assert chosen.snapshot().index.kind == "ivf-rabitq"
    assert len(loads) == 1  # shared
    third = open_memory(chosen, version=3)
    assert isinstance(third, Memory)
    assert third._indexes.choice == "ivf-rabitq"


def test_a_memory_that_was_built_anew_in_the_place_of_the_old_one(path, encoder, live, queries):
    """Rows have the same ids there, and mean something else."""
    live.search(queries, 3)
    shutil.rmtree(path)
    memory = Memory.create(path, encoder)
    for number in VERSIONS:
        memory = memory.upsert([Passage(f"p{i}", f"other words of {number}") for i in range(6)], encoder)
    live.use(3)
    found = live.search(queries, 6)
    assert np.array_equal(found.vectors, Memory.open(path, version=3).search(queries, 6).vectors)


def test_another_memory_altogether(tmp_path, live, encoder, queries):
    other = Memory.create(tmp_path / "other.lance", encoder).add([Passage("other", "t")], encoder)
    live.use(other)
    assert (live.name, len(live)) == (str(tmp_path / "other.lance"), 1)
    assert live.search(queries, 1).passages[0][0].id == "other"


def test_an_encoder_that_is_gone_binds_no_more(tmp_path, live, make_encoder):
    retriever = DenseRetriever(FakeQueryEncoder(), live)
    strange = make_encoder(8, "f2")
    other = Memory.create(tmp_path / "other.lance", strange).add([Passage("o", "t")], strange)
    with pytest.raises(EncoderMismatchError):
        live.use(other)
    del retriever
    gc.collect()
    live.use(other)
    assert len(live) == 1


def test_what_does_not_fit_is_not_used(tmp_path, live, make_encoder):
    retriever = DenseRetriever(FakeQueryEncoder(), live)
    strange = make_encoder(8, "f2")
    other = Memory.create(tmp_path / "other.lance", strange).add([Passage("o", "t")], strange)
    with pytest.raises(EncoderMismatchError, match="fingerprint f1, the memory was encoded by fake with f2"):
        live.use(other)
    with pytest.raises(MemoryStoreError, match="has no version 9"):
        live.use(9)
    assert retriever.retrieve(["x"], 3).version == live.version == 2


def test_the_index_is_built_before_the_exchange(monkeypatch, live):
    def fails(memory: Memory, *, words: bool) -> None:
        assert live.version == 2
        raise MemoryError

    monkeypatch.setattr(Memory, "warm_up", fails)
    with pytest.raises(MemoryError):
        live.use(3)
    assert live.version == 2


def test_a_retrieval_with_several_searches_is_of_one_version(live):
    """The memory is exchanged between the two searches."""

    class Exchanging(FakeQueryEncoder):
        def encode_queries(self, x):
            if len(live._encoders) and " " in x[0]:
                live.use(4)
            return super().encode_queries(x)

    found = DenseRetriever(Exchanging(), live).retrieve_in_hindsight(["x"], ["y"], 2, 3)
    assert (live.version, found.version) == (4, 2)
    check(found.passages[0], 2)


def test_a_retrieval_by_words_is_of_one_version(monkeypatch, live):
    """The memory is exchanged between the scores and the passages."""
    retriever = BM25Retriever(live)
    filled = WordIndex.filled

    def exchanging(index, *given, **more):
        live.use(5)
        return filled(index, *given, **more)

    monkeypatch.setattr(WordIndex, "filled", exchanging)
    found = retriever.retrieve(["words"], 3)
    assert (live.version, found.version) == (5, 2)
    check(found.passages[0], 2)
    monkeypatch.undo()
    again = retriever.retrieve(["words"], 3)
    assert again.version == 5
    check(again.passages[0], 5)


@pytest.mark.parametrize("kind", ["dense", "bm25"])
def test_no_answer_fails_or_mixes_versions_while_the_memory_is_exchanged(tmp_path, path, live, encoder, kind):
    """200 answers in 8 threads, 20 exchanges or more, also for a memory with the same ids and version number."""
    retriever = BM25Retriever(live) if kind == "bm25" else DenseRetriever(FakeQueryEncoder(), live)
    rag = Rag(retriever, ToyGenerator(vocabulary=3), k=3)
    passages = [Passage(f"p{i}", "words of another memory", title=f"t{i}") for i in range(6)]
    other = Memory.create(tmp_path / "other.lance", encoder).add(passages, encoder)
    stop = threading.Event()

    def answer(number: int) -> str:
        found = rag.answer(f"which words, question {number}", num_beams=1, max_tokens=1)
        (text,) = {source.passage.text for source in found.sources}
        assert text == f"words of version {found.memory_version}" or (text, found.memory_version) == (
            "words of another memory",
            other.version,
        )
        return text

    def exchange() -> int:
        places = [*((path, version) for version in VERSIONS), (other.path, other.version)]
        for count, (place, version) in enumerate(itertools.cycle(places)):
            if stop.is_set() and count >= 20:
                return count
            live.use(Memory.open(place, version=version))
        raise AssertionError

    with ThreadPoolExecutor(9) as pool:
        exchanges = pool.submit(exchange)
        try:
            seen = list(pool.map(answer, range(200)))
        finally:
            stop.set()
        assert exchanges.result() >= 20
    assert len(seen) == 200
    assert len(set(seen)) > 1
