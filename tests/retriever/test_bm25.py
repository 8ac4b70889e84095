"""BM25 as p_η(z|x): scores against a plain float64 BM25, order and ties, and the index that is built once."""

import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrag.errors import InputError, MemoryStoreError
from latentrag.protocols import TrainableRetriever
from latentrag.retriever import BM25Retriever
from latentrag.types import Passage, SearchResult

STOP_WORDS = set(
    """a an and are as at be but by for if in into is it no not of on or such that the their then there these they
    this to was will with""".split()
)
PASSAGES = [
    Passage("paris", "The capital of France is Paris. Paris lies on the Seine.", "Paris"),
    Passage("rome", "Rome is the capital of Italy.", "Rome"),
    Passage("seine", "A river in France.", "Seine"),
    Passage("empty", "", ""),
    Passage("hamlet", "A play about a prince of Denmark, who was not to be.", "Hamlet"),
]


class FakeMemory:
    version = 3

    def __init__(self, passages: Sequence[Passage] = PASSAGES) -> None:
        self.kept = {passage.id: passage for passage in passages}
        self.num_readings = 0

    def __len__(self) -> int:
        return len(self.kept)

    def passages(self) -> Iterator[Passage]:
        self.num_readings += 1
        yield from self.kept.values()

    def get(self, ids: Sequence[str]) -> list[Passage]:
        return [self.kept[key] for key in ids]

    def search(self, q: object, k: int) -> SearchResult:
        raise AssertionError("BM25 searches no vectors")

    def check(self, query_encoder: object) -> None:
        raise AssertionError("BM25 has no encoder")

    def snapshot(self) -> "FakeMemory":
        return self


def words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w\w+", text.lower()) if word not in STOP_WORDS]


def letters(text: str) -> list[str]:
    """Those that stand alone."""
    return [word for word in re.findall(r"(?<!\w)\w(?!\w)", text.lower()) if word not in STOP_WORDS]


def bm25(question: str, passages: Sequence[Passage]) -> list[float]:
    """The scores of words, and those of letters among themselves."""
    of_kinds = (bm25_of(question, passages, words), bm25_of(question, passages, letters))
    return [sum(scores) for scores in zip(*of_kinds, strict=True)]


def bm25_of(question: str, passages: Sequence[Passage], terms: Callable[[str], list[str]]) -> list[float]:
    """Lucene's BM25 with k1 = 1.5 and b = 0.75, the default of bm25s, word by word in float64."""
    bags = [Counter(terms(f"{passage.title} {passage.text}")) for passage in passages]
    mean_length = sum(bag.total() for bag in bags) / len(bags)
    scores = []
    for bag in bags:
        score = 0.0
        for word in terms(question):
            n = sum(word in other for other in bags)
            idf = math.log(1 + (len(bags) - n + 0.5) / (n + 0.5))
            if bag[word]:
                score += idf * bag[word] / (bag[word] + 1.5 * (1 - 0.75 + 0.75 * bag.total() / mean_length))
        scores.append(score)
    return scores


def found(retriever: BM25Retriever, x: str, k: int) -> tuple[list[str], list[float]]:
    retrieved = retriever.retrieve([x], k)
    return [passage.id for passage in retrieved.passages[0]], retrieved.logits[0].tolist()


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("x", ["What is the capital of FRANCE?", "paris, Paris: Seine!", "the prince is not Hamlet"])
def test_scores_are_those_of_a_plain_bm25(x, scale):
    ids, scores = found(BM25Retriever(FakeMemory(), scale=scale), x, len(PASSAGES))
    expected = {z.id: scale * score for z, score in zip(PASSAGES, bm25(x, PASSAGES), strict=True)}
    # Float64 sums rounded once to float32: half a last bit, 6e-8 of the value.
    assert scores == pytest.approx([expected[key] for key in ids], rel=1e-7, abs=0)
    assert ids == sorted(expected, key=lambda key: -expected[key])  # stable: ties in the table's order
    assert scores[0] > 0


TEXTS = st.lists(st.sampled_from("paris rome Rome seine. the is a x prince".split()), max_size=6).map(" ".join)


@settings(max_examples=40)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), x=TEXTS.filter(str.strip), k=st.integers(1, 6))
def test_any_memory_gives_the_scores_of_a_plain_bm25_in_order(texts, x, k):
    passages = [Passage(f"p{i}", text) for i, text in enumerate(texts)]
    k = min(k, len(passages))
    expected = bm25(x, passages)
    ids, scores = found(BM25Retriever(FakeMemory(passages)), x, k)
    assert scores == pytest.approx([expected[int(key[1:])] for key in ids], rel=1e-6, abs=1e-9)
    assert scores == pytest.approx(sorted(expected, reverse=True)[:k], rel=1e-6, abs=1e-9)
    for one, other in zip(range(k - 1), range(1, k), strict=True):
        assert scores[one] > scores[other] or int(ids[one][1:]) < int(ids[other][1:])


def test_what_is_returned():
    retrieved = BM25Retriever(FakeMemory()).retrieve(["capital of Italy", "river"], 2)
    assert retrieved.version == 3
    assert retrieved.logits.shape == (2, 2)
    assert retrieved.logits.dtype == torch.float32
    assert not retrieved.logits.requires_grad
    assert [[z.id for z in of_question] for of_question in retrieved.passages] == [
        ["rome", "paris"],
        ["seine", "paris"],
    ]
    assert retrieved.passages[0][0] == PASSAGES[1]


def test_equal_passages_come_in_the_table_s_order():
    same = [Passage(f"p{i}", "one green river") for i in range(40)]
    same[17] = Passage("best", "river river")
    ids, scores = found(BM25Retriever(FakeMemory(same)), "which river", 30)
    assert ids == ["best", *(f"p{i}" for i in range(30) if i != 17)]
    assert len(set(scores[1:])) == 1


def test_a_question_without_a_known_word_gets_the_first_passages_with_equal_scores():
    retriever = BM25Retriever(FakeMemory())
    for x in ["quantum chromodynamics", "the", "a", "?"]:
        assert found(retriever, x, 3) == (["paris", "rome", "seine"], [0.0, 0.0, 0.0])
    wordless = BM25Retriever(FakeMemory([Passage("p0", "the"), Passage("p1", "")]))
    assert found(wordless, "paris", 2) == (["p0", "p1"], [0.0, 0.0])


def test_a_question_finds_the_same_alone_and_in_any_batch():
    x = ["capital of France", "a river", "nothing known here", "Hamlet, prince of Denmark", "capital of France"]
    together = BM25Retriever(FakeMemory()).retrieve(x, 4)
    for b, question in enumerate(x):
        alone = BM25Retriever(FakeMemory()).retrieve([question], 4)
        assert alone.passages[0] == together.passages[b]
        assert torch.equal(alone.logits[0], together.logits[b])


def test_hindsight_proposes_with_y_and_scores_with_x():
    retriever = BM25Retriever(FakeMemory())
    x, y = ["capital of Italy", "the river"], ["Hamlet", "Paris"]
    of_x = retriever.retrieve(x, len(PASSAGES))
    retrieved = retriever.retrieve_in_hindsight(x, y, 1, 2)
    ids = [[z.id for z in of_question] for of_question in retrieved.passages]
    assert ids == [["rome", "hamlet", "paris"], ["seine", "paris", "rome"]]
    for b in range(2):
        scores = {z.id: score for z, score in zip(of_x.passages[b], of_x.logits[b].tolist(), strict=True)}
        assert retrieved.logits[b].tolist() == [scores[key] for key in ids[b]]
    assert retriever.retrieve_in_hindsight(x, y, 2, 0).passages == retriever.retrieve(x, 2).passages


def test_nothing_is_trained():
    retriever: TrainableRetriever = BM25Retriever(FakeMemory())
    assert list(retriever.named_parameters()) == []


class SlowMemory(FakeMemory):
    """Takes long enough to read for other threads to come in between."""

    def passages(self) -> Iterator[Passage]:
        time.sleep(0.2)
        return super().passages()


def test_the_index_is_built_on_the_first_retrieval_and_once_for_all_threads():
    memory = SlowMemory()
    retriever = BM25Retriever(memory)
    assert memory.num_readings == 0
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(found(retriever, "river", 2))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [found(retriever, "river", 2)] * 8
    assert memory.num_readings == 1


def test_what_cannot_be_retrieved():
    retriever = BM25Retriever(FakeMemory())
    for k, message in [(0, "k=0 passages"), (6, "k=6 exceeds the memory's 5 passages")]:
        with pytest.raises(InputError, match=message):
            retriever.retrieve(["river"], k)
    with pytest.raises(InputError, match="question 2 of 2 is empty"):
        retriever.retrieve(["river", " "], 1)
    with pytest.raises(InputError, match="lone surrogates"):
        retriever.retrieve(["river \ud800"], 1)
    with pytest.raises(InputError, match="got no question"):
        retriever.retrieve([], 1)
    with pytest.raises(InputError, match="needed a list"):
        retriever.retrieve("river", 1)
    with pytest.raises(InputError, match="k=3 passages and 3 more by hindsight exceed the memory.s 5"):
        retriever.retrieve_in_hindsight(["river"], ["Seine"], 3, 3)
    with pytest.raises(InputError, match="num_hindsight=-1"):
        retriever.retrieve_in_hindsight(["river"], ["Seine"], 3, -1)
    with pytest.raises(MemoryStoreError, match="no passages"):
        BM25Retriever(FakeMemory([])).retrieve(["river"], 1)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="above 0"):
            BM25Retriever(FakeMemory(), scale=scale)
