"""log p(y|x) without each sentence of the top passage, against a loop in float64."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

import pytest
import torch

from latentrag.protocols import Memory
from latentrag.rag import Rag
from latentrag.sentences import sentences
from latentrag.types import Asked, Latent, LatentLists, Passage, Question, Retrieved, Score, Source, Variant
from tests import tiny
from tests.toy import ToyGenerator, ToyMemory, ToyPrepared, ToyRetriever, toy_of

A, B, C = (
    Passage(name, text, title=name.upper())
    for name, text in (("a", "One. Two 😀. Three."), ("b", "Only one"), ("c", "First of c. Last of c."))
)
LATENTS: dict[str, list[Latent]] = {"single": [(A,), (B,), (C,)], "sets": [(A, B), (C,), ()], "fewer": [(C,), (A,)]}
VARIANTS: list[Variant] = ["sequence", "token"]


class ReadsText(ToyGenerator):
    """Its distributions depend on the texts of the passages."""

    def prepare(self, x: Sequence[Asked], latents: LatentLists) -> ToyPrepared:
        return ToyPrepared(
            tuple(
                tuple(self.name(Question.of(question).text, z) for z in of_question)
                for question, of_question in zip(x, latents, strict=True)
            )
        )

    @staticmethod
    def name(x: str, z: Latent) -> str:
        return f"{x}|{'+'.join(passage.text for passage in z)}"


class Given(ToyRetriever):
    """The latent values above; questions have different numbers of them."""

    memory = ToyMemory([A, B, C])

    def __init__(self, latents: Mapping[str, list[Latent]] = LATENTS) -> None:
        self.latents = latents

    def over(self, memory: Memory) -> Self:
        return self

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        rows = [self.latents[Question.of(question).text] for question in x]
        mask = torch.tensor([[place < len(row) for place in range(3)] for row in rows])
        full = [[*row, *[()] * (3 - len(row))] for row in rows]
        logits = torch.tensor([[0.7, 0.2, -0.4]]).repeat(len(x), 1)
        return Retrieved(full, {"dense": logits}, version=1, mask=mask)


@pytest.fixture
def rag() -> Rag:
    return Rag(Given(), ReadsText(4, seed=3), k=3)


def truth(rag: Rag, x: str, y: str, variant: Variant, source: Source) -> list[float]:
    """log p(y|x) with each sentence taken out of the passage by hand."""
    generator, latents = toy_of(rag), LATENTS[x]
    logits = [0.7, 0.2, -0.4][: len(latents)]
    total = sum(map(math.exp, logits))
    prior = [math.exp(each) / total for each in logits]
    ids = [*(ord(letter) - 96 for letter in y), 0]
    found = []
    for start, end in sentences(source.passage.text):
        rest = " ".join((source.passage.text[:start] + source.passage.text[end:]).split())
        shorter = replace(source.passage, text=rest)
        rows = [tuple(shorter if each == source.passage else each for each in z) for z in latents]
        of_tokens = [
            [math.exp(generator.log_p(ReadsText.name(x, z), ids[:t])[ids[t]]) for t in range(len(ids))] for z in rows
        ]
        if variant == "sequence":
            found.append(math.log(sum(p * math.prod(each) for p, each in zip(prior, of_tokens, strict=True))))
        else:
            sums = [sum(p * each[t] for p, each in zip(prior, of_tokens, strict=True)) for t in range(len(ids))]
            found.append(sum(map(math.log, sums)))
    return found


def top(sources: Sequence[Source]) -> Source:
    return max(sources, key=lambda source: source.posterior)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("x", list(LATENTS))
def test_scores_have_the_numbers_of_a_loop(rag, x, variant):
    for y in ("ab", "c"):
        score = rag.score(x, y, variant=variant, sentences=True)
        source = top(score.sources)
        expected = truth(rag, x, y, variant, source)
        assert [each.log_prob_without for each in source.sentences] == pytest.approx(expected, abs=1e-5)
        assert [(each.start, each.end) for each in source.sentences] == sentences(source.passage.text)
        assert all(not other.sentences for other in score.sources if other is not source)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_gives_each_question_its_own(rag, variant):
    x, y = ["single", "sets", "fewer"], ["ab", "cab", "b"]
    together: list[Score] = rag.score_batch(x, y, variant=variant, sentences=True)
    for score in together:
        alone = top(rag.score(score.x, score.y, variant=variant, sentences=True).sources)
        found = top(score.sources)
        assert found.passage == alone.passage
        values = [each.log_prob_without for each in alone.sentences]
        assert [each.log_prob_without for each in found.sentences] == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_have_those_of_their_tokens(rag, variant):
    answer = rag.answer("single", variant=variant, max_tokens=8, sentences=True)
    assert answer.hypotheses[0].finished
    score = rag.score("single", answer.text, variant=variant, sentences=True)
    expected = [each.log_prob_without for each in top(score.sources).sentences]
    assert [each.log_prob_without for each in top(answer.sources).sentences] == pytest.approx(expected, abs=1e-5)
    assert expected


def test_there_are_none_unless_they_are_asked_for(rag):
    assert not any(source.sentences for source in rag.score("single", "ab").sources)
    assert not any(source.sentences for source in rag.answer("single", max_tokens=2).sources)


def test_a_real_generator_reads_the_passage_without_the_sentence(tmp_path):
    """The number is the score over passages of which one has been shortened beforehand."""
    tiny.save_tokenizer(tmp_path)
    tiny.save_llama(tmp_path)
    generator = tiny.load_causal(tmp_path)
    source = top(Rag(Given(), generator, k=3).score("single", "cab", sentences=True).sources)
    assert len(source.sentences) == len(sentences(source.passage.text))
    for each in source.sentences:
        rest = source.passage.text[: each.start] + source.passage.text[each.end :].lstrip()
        shorter = replace(source.passage, text=rest.strip())
        retriever = Given({"single": [(shorter if z == (source.passage,) else z[0],) for z in LATENTS["single"]]})
        expected = Rag(retriever, generator, k=3).score("single", "cab").log_likelihood
        assert each.log_prob_without == pytest.approx(expected, abs=1e-4)
