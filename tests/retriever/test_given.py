"""A memory of its own for each question: against a memory that holds just those passages."""

import math
from typing import Any

import pytest
import torch

from latentrag.errors import EncoderMismatchError, InputError
from latentrag.marginal import log_prior
from latentrag.rag import Rag
from latentrag.retriever import BM25Retriever
from latentrag.retriever.given import DenseScores, GivenRetriever, WordScores
from latentrag.types import Passage, Question
from tests.toy import ToyGenerator, ToyMemory

PASSAGES = [
    Passage("a", "the red moon", "T"),
    Passage("b", "a blue sun and a red sun", "U"),
    Passage("c", "nothing of it", "red"),
    Passage("d", "the red moon", "T"),
]
QUESTIONS = [
    Question.of("who is red ?", tuple(PASSAGES[:3])),
    Question.of("blue sun", (PASSAGES[1],)),
    Question.of("the moon", tuple(PASSAGES[::-1])),
]


class Counting:
    """Both encoders: how often a text has each of three letters."""

    passage_fingerprint = fingerprint = "letters"
    scale = 0.5

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def encode_queries(self, x):
        return torch.tensor([[float(text.count(letter)) for letter in "eus"] for text in x])

    def encode_passages(self, passages, *, progress=False):
        self.encoded.append(len(passages))
        return self.encode_queries([passage.text for passage in passages])


def test_words_are_scored_as_over_a_memory_of_these_passages() -> None:
    found = GivenRetriever(WordScores(scale=0.7), num_passages=4).retrieve(QUESTIONS, 3)
    assert found.mask is not None
    for b, question in enumerate(QUESTIONS):
        k = min(3, len(question.passages))
        alone = BM25Retriever(ToyMemory(list(question.passages)), scale=0.7).retrieve([question.text], k)
        assert found.passages[b] == alone.passages[0]
        assert found.logits[b, :k].tolist() == pytest.approx(alone.logits[0].tolist())
        assert found.mask[b].tolist() == [place < k for place in range(3)]
        prior = log_prior(found.logits)[b].exp()
        assert prior.sum() == pytest.approx(1)
        assert prior[k:].sum() == 0


def test_vectors_are_made_once_for_each_passage() -> None:
    encoder: Any = Counting()
    found = GivenRetriever(DenseScores(encoder, encoder), num_passages=4).retrieve(QUESTIONS, 10)
    assert encoder.encoded == [4]
    assert found.logits.shape == (3, 4)
    # "who is red ?" has e, u, s 1 0 1; of its passages "the red moon" 2 0 0, "a blue sun and a red sun" 2 3 2.
    assert [z.id for z in found.passages[0]] == ["b", "a", "c"]
    assert found.logits[0, :3].tolist() == [2.0, 1.0, 0.0]
    assert [z.id for z in found.passages[2]] == ["d", "b", "a", "c"]  # equal ones in their order
    assert found.mask is not None
    assert (found.version, found.mask.sum(dim=1).tolist()) == (0, [3, 1, 4])


@pytest.mark.parametrize("null", [None, 0.3])
def test_questions_with_fewer_passages_are_what_they_are_alone(null) -> None:
    rag = Rag(
        GivenRetriever(WordScores(), num_passages=4), ToyGenerator(4, seed=3), k=4, null_passage=null, variant="token"
    )
    options: dict[str, Any] = {"num_beams": 2, "max_tokens": 3}
    together = rag.answer_batch(QUESTIONS, **options), rag.score_batch(QUESTIONS, ["ab"] * 3)
    for b, question in enumerate(QUESTIONS):
        answer, score = rag.answer(question, **options), rag.score(question, "ab")
        num_values = len(question.passages) + (null is not None)
        assert (len(answer.log_p_eta), len(answer.log_p_theta)) == (num_values, num_values)
        assert len(score.without_passage) == (len(question.passages) if num_values > 1 else 0)
        assert together[0][b].log_p_eta == pytest.approx(answer.log_p_eta)
        assert [list(row) for row in together[0][b].log_p_theta] == [pytest.approx(r) for r in answer.log_p_theta]
        assert together[1][b].without_passage == pytest.approx(score.without_passage)
        assert together[1][b].log_likelihood == pytest.approx(score.log_likelihood)


def test_found_passages_of_several_questions_are_those_of_each_alone() -> None:
    rag = Rag(GivenRetriever(WordScores(), num_passages=4), ToyGenerator(4, seed=3), k=4)
    twice = Question.of(QUESTIONS[1].text, (QUESTIONS[1].passages[0],) * 2)
    for question, found in zip(QUESTIONS, rag.retrieve_batch(QUESTIONS), strict=True):
        alone = rag.retrieve(question)
        assert [each[0].id for each in found.passages] == [each[0].id for each in alone.passages]
        assert [each[1:] for each in found.passages] == [pytest.approx(each[1:]) for each in alone.passages]
        assert math.fsum(each[2] for each in found.passages) == pytest.approx(1)
    assert [each[2] for each in rag.retrieve(twice).passages] == pytest.approx([0.5, 0.5])


def test_what_cannot_be() -> None:
    retriever = GivenRetriever(WordScores(), num_passages=4)
    with pytest.raises(InputError, match="a question comes without passages"):
        retriever.retrieve([*QUESTIONS, "who ?"], 2)
    with pytest.raises(InputError, match="k=0"):
        retriever.retrieve(QUESTIONS, 0)
    with pytest.raises(InputError, match="k=-1"):
        retriever.retrieve_together([["a", "b"]], -1, x=QUESTIONS[:1])
    with pytest.raises(InputError, match="no memory can take their place"):
        retriever.over(ToyMemory(PASSAGES))
    with pytest.raises(InputError, match="comes with passages of its own, which this retriever does not read"):
        BM25Retriever(ToyMemory(PASSAGES)).retrieve(QUESTIONS, 1)
    other: Any = Counting()
    other.passage_fingerprint = "others"
    with pytest.raises(EncoderMismatchError, match="goes with the passage encoder others, got letters"):
        DenseScores(other, other)
    assert len(retriever.memory) == 4
    with pytest.raises(InputError, match="there is no memory to search"):
        retriever.memory.get(["a"])
