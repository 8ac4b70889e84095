"""The sum of experts: candidates, top K, parts and gradients against brute force in float64."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latentrag.errors import InputError, ModelError
from latentrag.memory import Memory
from latentrag.retriever import DenseRetriever, HybridRetriever
from latentrag.retriever.biases import BIASES, recency, title
from latentrag.types import Passage
from tests.memory.conftest import FakePassageEncoder
from tests.retriever.test_bm25 import bm25
from tests.toy import ToyMemory

WORDS = "paris rome seine river capital prince denmark garden x".split()
QUESTIONS = ["the river of paris", "capital prince prince", "nothing known", "x garden rome"]


def passages() -> list[Passage]:
    drawn = np.random.default_rng(1)
    return [
        Passage(
            f"p{i}", " ".join(drawn.choice(WORDS, drawn.integers(0, 9))), WORDS[i % 5], fields={"date": f"20{i:02}"}
        )
        for i in range(30)
    ]


class FakeQueryEncoder:
    """q(x) is drawn at random, times a weight that learns."""

    dimension, scale, passage_fingerprint = 8, 1.5, "f1"

    def __init__(self) -> None:
        self.module = nn.Linear(8, 8, bias=False)
        torch.manual_seed(0)
        nn.init.normal_(self.module.weight, std=0.3)

    def encode_queries(self, x: Sequence[str]) -> torch.Tensor:
        vectors: torch.Tensor = self.module(
            torch.from_numpy(np.stack([FakePassageEncoder().vector(text) for text in x]))
        )
        return vectors

    def save(self, folder: Path) -> None:
        raise AssertionError("not asked for")


class FakeReranker:
    name = "fake"

    def __init__(self) -> None:
        self.num_asked = 0

    def scores(self, x: Sequence[str], passages: Sequence[Sequence[Passage]]) -> list[np.ndarray]:
        self.num_asked += sum(map(len, passages))
        return [np.array([self.score(q, z) for z in zs], np.float32) for q, zs in zip(x, passages, strict=True)]

    def score(self, x: str, z: Passage) -> float:
        return float(FakePassageEncoder(1).vector(x + z.text)[0])

    def save(self, folder: Path) -> None:
        folder.mkdir()


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    encoder = FakePassageEncoder()
    return Memory.create(tmp_path_factory.mktemp("hybrid") / "memory.lance", encoder).add(passages(), encoder)


WEIGHTS = {"dense": 1.2, "bm25": 0.7, "reranker": 0.4, "title": 0.9, "recency": 0.05}


def oracle(
    memory: Memory, encoder: FakeQueryEncoder, x: str, k: int, num: int, *, reranks: bool = True
) -> list[tuple[str, float]]:
    """The K best among the ``num`` best of each kind, with their logits in float64, by looking at all."""
    kept = list(memory.passages())
    found = memory.search(np.zeros((1, 8), np.float32), len(kept))
    vector = {z.id: d.astype(np.float64) for z, d in zip(found.passages[0], found.vectors[0], strict=True)}

    def dense(text: str) -> np.ndarray:
        q = encoder.encode_queries([text])[0].detach().double().numpy()
        return np.array([vector[z.id] @ q for z in kept])

    words = np.array(bm25(x, kept))
    of_words = [i for i in np.argsort(-words, kind="stable") if words[i] > 0][:num]
    candidates = sorted({*np.argsort(-dense(x), kind="stable")[:num].tolist(), *of_words})
    logits = WEIGHTS["dense"] * dense(x) + WEIGHTS["bm25"] * words
    logits += reranks * WEIGHTS["reranker"] * np.array([FakeReranker().score(x, z) for z in kept])
    logits += WEIGHTS["title"] * title(x, kept) + WEIGHTS["recency"] * recency(x, kept)
    best = sorted(candidates, key=lambda i: -logits[i])[:k]
    return [(kept[i].id, logits[i]) for i in best]


@pytest.fixture
def retriever(memory):
    return HybridRetriever(FakeQueryEncoder(), memory, weights=WEIGHTS, num_candidates=4, reranker=FakeReranker())


@pytest.mark.parametrize("k", [1, 3, 7, 30])
def test_the_top_k_is_that_of_brute_force_and_parts_add_up(retriever, memory, k):
    """Those that only a larger K proposes come after the others, so that the first of many are the same."""
    found = retriever.retrieve(QUESTIONS, k)
    assert set(found.parts) == set(WEIGHTS)
    assert torch.equal(found.logits, sum(found.parts.values()))
    for b, x in enumerate(QUESTIONS):
        usual = oracle(memory, retriever.query_encoder, x, k, 4)
        more = oracle(memory, retriever.query_encoder, x, 30, max(k, 4))
        expected = [*usual, *[each for each in more if each[0] not in dict(usual)]][:k]
        assert [z.id for z in found.passages[b]] == [key for key, _ in expected]
        # float32 sums of numbers below 10
        assert found.logits[b].tolist() == pytest.approx([logit for _, logit in expected], abs=1e-5)
        alone = retriever.retrieve([x], k)
        assert torch.allclose(alone.logits[0], found.logits[b], atol=1e-6)
    assert found.version == memory.version


def test_hindsight_proposes_with_y_and_scores_with_x(retriever, memory):
    y = ["denmark", "seine", "garden garden", "prince"]
    found = retriever.retrieve_in_hindsight(QUESTIONS, y, 2, 3)
    for b, (x, answer) in enumerate(zip(QUESTIONS, y, strict=True)):
        ids = [z.id for z in found.passages[b]]
        top = [key for key, _ in oracle(memory, retriever.query_encoder, x, 2, 4)]
        of_both = oracle(memory, retriever.query_encoder, f"{x} {answer}", 30, 5, reranks=False)
        assert ids == [*top, *[key for key, _ in of_both if key not in top][:3]]
        all_of_x = dict(oracle(memory, retriever.query_encoder, x, 30, 30))
        assert found.logits[b].tolist() == pytest.approx([all_of_x[key] for key in ids], abs=1e-5)


def test_hindsight_takes_what_a_condition_leaves(retriever, memory):
    some = retriever.over(memory.where("title = 'rome' and id < 'p12'"))
    size = len(some.memory)
    assert 0 < size < 5
    found = some.retrieve_in_hindsight(QUESTIONS, ["denmark"] * 4, 5, 1)
    assert [len(row) for row in found.passages] == [size] * 4


def test_a_condition_leaves_the_best_of_those_that_satisfy_it(retriever, memory):
    some = retriever.over(memory.where("title = 'rome' or title = 'seine'"))
    for k, num in ((3, 3), (50, 12)):  # fewer are there
        found = some.retrieve(QUESTIONS, k)
        for b, x in enumerate(QUESTIONS):
            everything = oracle(memory, retriever.query_encoder, x, 30, 30)
            titles = {z.id: z.title for z in memory.passages()}
            expected = [(key, logit) for key, logit in everything if titles[key] in {"rome", "seine"}]
            logits = dict(expected)
            ids = [z.id for z in found.passages[b]]
            assert len(ids) == num
            assert found.logits[b].tolist() == pytest.approx([logits[key] for key in ids], abs=1e-5)
            if k > num:
                proposed = {z.id for z in some.features([x], 4)[0].passages[0]}
                order = [key for key, _ in expected]
                assert ids == [*filter(proposed.__contains__, order), *[key for key in order if key not in proposed]]


def test_gradients_of_the_weights_are_the_experts_values(retriever):
    found = retriever.retrieve(QUESTIONS, 3)
    found.logits[1, 2].backward()
    for name, weight in retriever.weights.items():
        value = found.parts[name][1, 2].item() / WEIGHTS[name]
        assert weight.grad.item() == pytest.approx(value, rel=1e-5, abs=1e-7)
    assert retriever.query_encoder.module.weight.grad.abs().sum() > 0
    names = dict(retriever.named_parameters())
    assert {f"prior.{name}" for name in WEIGHTS} < set(names)
    assert "weight" in names


def test_with_vectors_alone_its_logits_are_those_of_the_dense_retriever(memory):
    encoder = FakeQueryEncoder()
    dense = DenseRetriever(encoder, memory).retrieve(QUESTIONS, 30)
    hybrid = HybridRetriever(encoder, memory, weights={"bm25": 0.0}, num_candidates=30).retrieve(QUESTIONS, 30)
    assert torch.allclose(hybrid.logits, dense.logits, atol=1e-5)
    for b in range(len(QUESTIONS)):
        logits = {z.id: logit for z, logit in zip(dense.passages[b], dense.logits[b].tolist(), strict=True)}
        for z, logit in zip(hybrid.passages[b], hybrid.logits[b].tolist(), strict=True):
            assert logit == pytest.approx(logits[z.id], abs=1e-5)  # the last digit may put two of them the other way
    assert list(dense.parts) == ["dense"]


def test_usual_weights_are_the_encoder_s_scale_and_settings_make_it_again(memory):
    plain = HybridRetriever(FakeQueryEncoder(), memory)
    assert plain.settings()["weights"]["dense"] == FakeQueryEncoder.scale
    assert set(plain.weights) == {"dense", "bm25"}
    assert set(HybridRetriever(FakeQueryEncoder(), memory, reranker=FakeReranker()).weights) == {
        "dense",
        "bm25",
        "reranker",
    }
    again = HybridRetriever(FakeQueryEncoder(), memory, **plain.settings())
    assert again.settings() == plain.settings()
    assert plain.over(memory).weights is plain.weights


def test_biases():
    named = [Passage("a", "", "The Seine river"), Passage("b", "", ""), Passage("c", "", "Seine")]
    assert title("which river is the seine?", named).tolist() == [1.0, 0.0, 1.0]
    assert title("the seine", named).tolist() == [0.5, 0.0, 1.0]
    dated = [Passage("a", "", fields={"date": day}) for day in ("2001", "2001-01", "2000-12-31T10:00", "someday")]
    assert recency("", [*dated, Passage("b", "")]).tolist() == pytest.approx([1, 1, 1, 0, 0], abs=0.01)


def test_another_bias_is_a_row_of_the_table(memory):
    BIASES.add("short", lambda x, zs: np.array([-len(z.text) for z in zs], np.float64))
    try:
        found = HybridRetriever(FakeQueryEncoder(), memory, weights={"short": 2.0}).retrieve(["paris"], 30)
    finally:
        BIASES.remove("short")
    assert found.parts["short"][0].tolist() == [-2.0 * len(z.text) for z in found.passages[0]]


def test_what_cannot_be(memory, retriever):
    encoder = FakeQueryEncoder()
    for given, message in (
        ({"weights": {"luck": 1.0}}, "bias 'luck' is unknown; needed one of title, recency"),
        ({"weights": {"bm25": float("nan")}}, "the weight of bm25 is nan"),
        ({"weights": {"reranker": 1.0}}, "has a weight for a reranker, and there is none"),
        ({"num_candidates": 0}, "num_candidates=0"),
    ):
        with pytest.raises(InputError, match=message):
            HybridRetriever(encoder, memory, **given)
    with pytest.raises(InputError, match="k=31 exceeds the memory's 30 passages"):
        retriever.retrieve(["x"], 31)
    with pytest.raises(InputError, match="k=0"):
        retriever.retrieve(["x"], 0)
    of_toys = HybridRetriever(encoder, ToyMemory(passages()))
    with pytest.raises(InputError, match="a ToyMemory keeps no index of words"):
        of_toys.retrieve(["x"], 1)


def test_a_reranker_of_another_package_that_gives_nan_is_named(memory):
    reranker = FakeReranker()
    reranker.score = lambda x, z: float("nan")  # type: ignore[method-assign]
    hybrid = HybridRetriever(FakeQueryEncoder(), memory, num_candidates=4, reranker=reranker)
    with pytest.raises(ModelError, match=r"the reranker fake gives no finite number for \d of \d pairs"):
        hybrid.retrieve(["x"], 2)
