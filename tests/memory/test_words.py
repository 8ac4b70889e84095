"""The index of words that a memory keeps: every version as one built at once, only new passages read, no scan."""

import random

import numpy as np
import pytest

from latentrag import postings
from latentrag.errors import MemoryStoreError
from latentrag.memory import LiveMemory, Memory
from latentrag.memory.indexes import IndexFolder, words
from latentrag.memory.upkeep import compact, forget, prune
from latentrag.memory.verify import verify
from latentrag.postings import WordIndex, segment_of
from latentrag.types import Passage

VOCABULARY = "paris rome seine river capital the of prince denmark x 서울 서울은 c++".split()


def text(seed: int) -> str:
    chosen = random.Random(seed)
    return " ".join(chosen.choices(VOCABULARY, k=chosen.randint(0, 12)))


def passages(first: int, last: int, salt: int = 0) -> list[Passage]:
    return [Passage(f"p{i}", text(1000 * salt + i), f"title{i % 3}") for i in range(first, last)]


QUESTIONS = ["the river of paris", "capital capital rome", "prince x", "서울의 강", "C++ 서울", "nothing known"]


def assert_as_built_at_once(memory: Memory) -> None:
    """All passages are found best first, and the first of them, with the scores of an index built at once."""
    kept = list(memory.passages())
    index = WordIndex([(segment_of(kept), None)])
    first, found = (memory.search_words(QUESTIONS, k) for k in (3, len(memory)))
    again = memory.word_scores(QUESTIONS, list(found.rows))
    for b, question in enumerate(QUESTIONS):
        scores = index.scores(question, np.arange(len(kept)))
        order = np.argsort(-scores.astype(np.float32), kind="stable")
        assert [z.id for z in found.passages[b]] == [kept[i].id for i in order]
        assert np.array_equal(found.scores[b], scores[order].astype(np.float32))
        assert first.passages[b] == found.passages[b][:3]
        assert np.array_equal(first.scores[b], found.scores[b][:3])
        assert np.array_equal(again[b], scores[order])


@pytest.fixture
def memory(path, encoder, monkeypatch):
    """Forty passages in three files, each with a segment of its own."""
    monkeypatch.setattr(words, "SMALLEST_STORED", 2)
    monkeypatch.setattr(words, "LARGEST_JOINED", 0)
    made = Memory.create(path, encoder)
    for first, last in ((0, 20), (20, 38), (38, 40)):
        made = made.add(passages(first, last), encoder)
    return made


@pytest.fixture
def tokenised(monkeypatch):
    """The texts that were read for words."""
    seen: list[str] = []
    real = postings.segment_of

    def counting(of, *more):
        def each():
            for passage in of:
                seen.append(passage.text)
                yield passage

        return real(each(), *more)

    monkeypatch.setattr(postings, "segment_of", counting)
    return seen


@pytest.mark.parametrize("largest_joined", [0, 1_000_000])
def test_every_version_has_the_scores_of_an_index_built_at_once(memory, encoder, path, monkeypatch, largest_joined):
    monkeypatch.setattr(words, "LARGEST_JOINED", largest_joined)
    versions = [memory, memory.delete(["p3", "p21", "p39"])]
    versions.append(versions[-1].upsert(passages(5, 9, salt=1) + passages(50, 53), encoder))
    compact(path)
    versions.append(Memory.open(path))
    for version in (*versions, *reversed(versions)):
        assert_as_built_at_once(version)
    assert_as_built_at_once(Memory.open(path, version=versions[0].version))


def test_a_segment_built_of_a_later_version_is_made_anew_for_an_earlier_one(memory, path):
    assert_as_built_at_once(memory.delete(["p3", "p21"]))
    assert_as_built_at_once(Memory.open(path, version=memory.version))
    assert len(words.sizes(IndexFolder.of(path))) == 3


def test_joined_segments_of_a_later_version_are_made_anew_for_an_earlier_one(memory, path, monkeypatch):
    monkeypatch.setattr(words, "SMALLEST_STORED", 1_000)
    monkeypatch.setattr(words, "LARGEST_JOINED", 1_000)
    memory.delete(["p3", "p39"])
    later = Memory.open(path)
    assert_as_built_at_once(later)
    assert_as_built_at_once(later.at(memory.version))


def test_only_new_passages_are_read_and_none_by_who_opens_it_later(memory, encoder, path, tokenised):
    memory.words()
    assert len(tokenised) == 40
    tokenised.clear()
    added = memory.delete(["p1"]).add(passages(60, 63), encoder)
    assert_as_built_at_once(added)
    assert sorted(tokenised) == sorted(z.text for z in passages(60, 63))
    tokenised.clear()
    assert_as_built_at_once(Memory.open(path))
    assert_as_built_at_once(Memory.open(path, version=memory.version))
    assert not tokenised


def test_a_build_that_was_interrupted_goes_on(memory, path, tokenised, monkeypatch):
    store = words._store
    stored: list[object] = []

    def killed(table, part, folder):
        if len(stored) == 2:
            raise KeyboardInterrupt
        stored.append(part)
        return store(table, part, folder)

    monkeypatch.setattr(words, "_store", killed)
    with pytest.raises(KeyboardInterrupt):
        memory.words()
    monkeypatch.undo()
    tokenised.clear()
    monkeypatch.setattr(words, "SMALLEST_STORED", 2)
    assert_as_built_at_once(Memory.open(path))
    assert len(words.sizes(IndexFolder.of(path))) == 3


def test_a_damaged_segment_is_made_again_with_a_warning(memory, path):
    memory.words()
    file = max((path / "_indexes/words").glob("*.words"), key=lambda each: each.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert [str(file) in problem.what for problem in verify(path).problems] == [True]
    with pytest.warns(UserWarning, match="is damaged; the words of its passages are indexed again"):
        assert_as_built_at_once(Memory.open(path))
    assert_as_built_at_once(Memory.open(path))
    assert not verify(path).problems


def test_a_segment_of_another_format_is_made_again_and_goes(memory, path, monkeypatch):
    memory.words()
    before = words.sizes(IndexFolder.of(path))
    monkeypatch.setattr(postings, "FORMAT", "latentrag.words.2")
    assert_as_built_at_once(Memory.open(path))
    after = words.sizes(IndexFolder.of(path))
    assert len(after) == len(before)
    assert not set(after) & set(before)


def test_where_it_cannot_be_stored_it_is_kept_in_ram_with_a_warning(memory, path, monkeypatch):
    def building(folder):
        raise MemoryStoreError("cannot be written")

    monkeypatch.setattr(IndexFolder, "building", building)
    with pytest.warns(UserWarning, match="the index of words is not kept: cannot be written"):
        assert_as_built_at_once(memory)
    assert not words.sizes(IndexFolder.of(path))


def test_words_of_passages_that_are_gone_for_good_are_gone(memory, encoder, path):
    memory.words()
    forget(path, ["p2"])
    newest = Memory.open(path)
    assert not words.sizes(IndexFolder.of(path))
    assert_as_built_at_once(newest)
    newest.reencode(encoder)
    prune(path, keep=1)
    Memory.open(path).words()
    assert len(words.sizes(IndexFolder.of(path))) == 1


def test_a_memory_that_is_exchanged_has_its_words_ready(memory, encoder):
    live = LiveMemory(memory)
    newer = memory.add(passages(60, 63), encoder)
    live.use(newer)
    assert not newer.has_words
    newer.words()
    live.use(memory)
    assert memory.has_words


@pytest.mark.parametrize("num", [1, 5, 40])
def test_candidates_are_the_best_of_both_with_both_scores(memory, queries, num):
    memory = memory.delete(["p7"]) if num < 40 else memory
    found = memory.candidates(queries, QUESTIONS[:3], num)
    everything = memory.search(queries, len(memory))
    of_words = memory.search_words(QUESTIONS[:3], len(memory))
    for b in range(3):
        dense = [z.id for z in everything.passages[b]]
        worded = [z.id for z, score in zip(of_words.passages[b], of_words.scores[b], strict=True) if score > 0]
        ids = [z.id for z in found.passages[b]]
        assert sorted(ids) == sorted({*dense[:num], *worded[:num]})
        assert np.array_equal(found.vectors[b], everything.vectors[b][[dense.index(key) for key in ids]])
        all_words = dict(zip((z.id for z in of_words.passages[b]), of_words.scores[b], strict=True))
        assert np.array_equal(found.words[b].astype(np.float32), [all_words[key] for key in ids])
    assert found.version == memory.version


def test_stored_indexes_of_vectors_give_the_vectors_of_candidates_too(memory, queries, hnsw):
    exact = memory.candidates(queries, QUESTIONS[:3], 5)
    memory.build_index(hnsw)
    stored = Memory.open(memory.path).candidates(queries, QUESTIONS[:3], 5)
    for b in range(3):
        assert stored.passages[b] == exact.passages[b]
        assert np.array_equal(stored.vectors[b], exact.vectors[b])
