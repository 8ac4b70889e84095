"""Rag with fakes of ten lines for the retriever and the generator."""

import math
from typing import Any, Self

import pytest
import torch

from latentrag.errors import InputError
from latentrag.model import Evidence
from latentrag.options import DecodingOptions
from latentrag.protocols import Memory
from latentrag.rag import Rag
from latentrag.types import Decoding, Passage, Question, Retrieved, Targets, Variant, singles
from tests.toy import ToyGenerator, ToyMemory, enumerate_marginal, passages, toy_of


class FakeRetriever:
    """The same passages for everyone, scores that depend on the question."""

    def __init__(self, found: list[Passage]) -> None:
        self.found, self.memory = found, ToyMemory(found)

    def over(self, memory: Memory) -> Self:
        return type(self)(list(memory.passages()))

    def retrieve(self, x, k):
        if k > len(self.found):
            raise InputError(f"k={k} exceeds the memory's {len(self.found)} passages; lower k or add passages")
        scores = torch.stack([torch.linspace(1.0, -1.0, k) + 0.1 * len(Question.of(question).text) for question in x])
        return Retrieved(singles([self.found[:k] for _ in x]), {"dense": scores}, version=7)


@pytest.fixture
def rag() -> Rag:
    return Rag(FakeRetriever(passages(4)), ToyGenerator(4, seed=11), k=3)


def truth(rag: Rag, x: str, variant: Variant, max_tokens: int = 4) -> dict[tuple[int, ...], float]:
    retrieved = rag.retriever.retrieve([x], rag.k)
    prepared = toy_of(rag).prepare([x], retrieved.latents)
    log_p_eta = torch.log_softmax(retrieved.logits[0], dim=0)
    return enumerate_marginal(toy_of(rag), prepared.rows_of[0], log_p_eta, variant=variant, max_tokens=max_tokens)


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_answer_is_the_argmax_with_its_evidence(rag: Rag, variant: Variant) -> None:
    answer = rag.answer("who?", variant=variant, num_beams=121, num_best=121, max_tokens=4)
    expected = truth(rag, "who?", variant)
    best = max(expected, key=expected.__getitem__)
    assert answer.text == rag.generator.text(best)
    assert answer.log_prob == pytest.approx(expected[best], abs=1e-5)
    assert answer.memory_version == 7
    assert [s.passage.id for s in answer.sources] == ["z0", "z1", "z2"]
    assert sum(s.prior for s in answer.sources) == pytest.approx(1, abs=1e-6)
    assert sum(s.posterior for s in answer.sources) == pytest.approx(1, abs=1e-6)
    assert "".join(token.text for token in answer.tokens) == answer.text
    for token in answer.tokens:
        assert sum(token.posterior) == pytest.approx(1, abs=1e-6)
    # The end token, which is not shown, accounts for the rest of the probability.
    assert sum(token.log_prob for token in answer.tokens) >= answer.log_prob - 1e-6
    closed = sum(toy_of(rag).log_p("who?|", best[:i])[best[i]].item() for i in range(len(best)))
    assert answer.closed_book_log_prob == pytest.approx(closed, abs=1e-5)
    assert answer.hypotheses[0].text == answer.text
    assert sum(math.exp(h.log_prob) for h in answer.hypotheses) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_score_of_the_answer_is_its_probability(rag: Rag, variant: Variant) -> None:
    answer = rag.answer("who?", variant=variant, max_tokens=6, min_tokens=2)
    assert answer.hypotheses[0].finished
    score = rag.score("who?", answer.text, variant=variant)
    assert score.log_likelihood == pytest.approx(answer.log_prob, abs=1e-5)
    assert score.closed_book_log_likelihood == pytest.approx(answer.closed_book_log_prob, abs=1e-5)
    assert [s.posterior for s in score.sources] == pytest.approx([s.posterior for s in answer.sources], abs=1e-6)
    assert [t.posterior for t in score.tokens] == [pytest.approx(t.posterior, abs=1e-6) for t in answer.tokens]
    assert rag.log_likelihood("who?", answer.text, variant=variant) == score.log_likelihood
    assert [share for _, share in rag.posterior("who?", answer.text, variant=variant)] == [
        s.posterior for s in score.sources
    ]


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_tokens_multiply_to_the_likelihood(rag: Rag, variant: Variant) -> None:
    evidence = rag.model.evidence(["who?", "x"], ["abc", "b"], k=3)
    torch.testing.assert_close(
        evidence.log_p_of_tokens(variant).sum(dim=1), evidence.log_likelihood(variant), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_without_passage_equals_a_memory_without_it(rag: Rag, variant: Variant) -> None:
    score = rag.score("who?", "ab", variant=variant)
    scores = rag.retriever.retrieve(["who?"], 3).logits[0]
    for k in range(3):

        class Without(FakeRetriever):
            def retrieve(self, x, _k, gone=k):
                kept = [i for i in range(3) if i != gone]
                return Retrieved(singles([[self.found[i] for i in kept]]), {"dense": scores[None, kept]}, version=8)

        other = Rag(Without(passages(4)), rag.generator, k=2)
        assert score.without_passage[k] == pytest.approx(other.log_likelihood("who?", "ab", variant=variant), abs=1e-5)


@pytest.mark.parametrize("variant", ["sequence", "token"])
@pytest.mark.parametrize("options", [{}, {"stop": ("b",), "min_tokens": 5, "max_tokens": 8}], ids=["whole", "stopped"])
def test_an_answer_holds_what_its_numbers_are_made_of(rag: Rag, variant: Variant, options) -> None:
    """From log_p_eta and log_p_theta alone: the probability, posteriors, and what a passage's absence would change."""
    answer = rag.answer("who?", variant=variant, **options)
    log_p_eta, log_p_theta = torch.tensor(answer.log_p_eta)[None], torch.tensor(answer.log_p_theta)[None]
    assert log_p_theta.shape[:2] == (1, 3)
    mask = torch.ones(1, log_p_theta.shape[2], dtype=torch.bool)
    made = Evidence([], log_p_eta, log_p_theta, Targets(mask.long(), mask), 7)
    assert made.log_likelihood(variant).item() == pytest.approx(answer.log_prob, abs=1e-5)
    assert made.posterior(variant)[0].tolist() == pytest.approx([s.posterior for s in answer.sources], abs=1e-6)
    if answer.hypotheses[0].finished:
        score = rag.score("who?", answer.text, variant=variant)
        assert made.without_passage(variant)[0].tolist() == pytest.approx(score.without_passage, abs=1e-5)


@pytest.mark.parametrize("decoding", ["exact", "thorough", "fast"])
def test_an_answer_without_a_passage_is_that_of_a_memory_without_it(rag: Rag, decoding: Decoding) -> None:
    scores = rag.retriever.retrieve(["who?"], 3).logits

    class Without(FakeRetriever):
        def retrieve(self, x, _k):
            return Retrieved(singles([[self.found[0], self.found[2]]]), {"dense": scores[:, [0, 2]]}, version=7)

    other = Rag(Without(passages(4)), rag.generator, k=2)
    assert rag.answer("who?", decoding=decoding, without=["z1"]) == other.answer("who?", decoding=decoding)
    assert rag.answer("who?", decoding=decoding, without=["z1", "z1"]).sources[1].passage.id == "z2"


def test_without_leaves_out_the_same_passages_of_every_question(rag: Rag) -> None:
    together = rag.answer_batch(["who?", "what is it?"], without=["z0"])
    for question, answer in zip(["who?", "what is it?"], together, strict=True):
        assert [source.passage.id for source in answer.sources] == ["z1", "z2"]
        assert answer.log_prob == pytest.approx(rag.answer(question, without=["z0"]).log_prob, abs=1e-5)


def test_one_passage_has_no_counterfactual(rag: Rag) -> None:
    assert rag.score("who?", "ab", k=1).without_passage == ()


def test_batch_equals_one_by_one(rag: Rag) -> None:
    questions = ["who?", "what is it?", "where"]
    together = rag.answer_batch(questions, num_beams=3, max_tokens=5)
    for question, answer in zip(questions, together, strict=True):
        alone = rag.answer(question, num_beams=3, max_tokens=5)
        assert alone.text == answer.text
        assert alone.log_prob == pytest.approx(answer.log_prob, abs=1e-5)


@pytest.mark.parametrize("decoding", ["exact", "thorough", "fast"])
def test_decodings(rag: Rag, decoding: Decoding) -> None:
    answer = rag.answer("who?", decoding=decoding, num_beams=121, max_tokens=4)
    assert answer.decoding == decoding
    assert answer.text == rag.answer("who?", num_beams=121, max_tokens=4).text
    assert sum(s.posterior for s in answer.sources) == pytest.approx(1, abs=1e-6)
    for token in answer.tokens:
        assert sum(token.posterior) == pytest.approx(1, abs=1e-6)
        assert math.isfinite(token.log_prob)


def test_narrow_fast_decoding_has_finite_evidence(rag: Rag) -> None:
    answer = rag.answer("who?", decoding="fast", num_beams=1, max_tokens=8)
    assert math.isfinite(answer.log_prob)
    assert sum(s.posterior for s in answer.sources) == pytest.approx(1, abs=1e-6)
    assert all(math.isfinite(t.log_prob) and sum(t.posterior) == pytest.approx(1, abs=1e-6) for t in answer.tokens)


def test_stop_strings_cut_text_tokens_and_hypotheses(rag: Rag) -> None:
    answer = rag.answer("who?", stop=("b",), min_tokens=5, max_tokens=8)
    assert "b" not in answer.text
    assert "".join(token.text for token in answer.tokens) == answer.text
    assert all("b" not in h.text for h in answer.hypotheses)


def test_saved_generation_settings_are_used_and_calls_override_them(rag: Rag) -> None:
    toy_of(rag).decoding_defaults = {"num_beams": 2, "max_tokens": 3}
    assert rag.options().num_beams == 2
    assert rag.options(num_beams=5).num_beams == 5
    assert rag.options(num_beams=None).max_tokens == 3
    assert len(rag.answer("who?").hypotheses) <= 2
    assert len(rag.answer("who?", min_tokens=2).tokens) <= 3


@pytest.mark.parametrize("defaults", [DecodingOptions(num_beams=4, max_tokens=3), {"num_beams": 4, "max_tokens": 3}])
def test_explicit_defaults_override_saved_generation_settings(rag: Rag, defaults) -> None:
    toy_of(rag).decoding_defaults = {"num_beams": 2, "max_tokens": 5, "no_repeat_ngram_size": 2}
    chosen = Rag(rag.retriever, rag.generator, defaults=defaults)
    assert (chosen.options().num_beams, chosen.options().max_tokens) == (4, 3)
    assert chosen.options(num_beams=5).num_beams == 5
    partly = isinstance(defaults, dict)  # an object says all options, a mapping some of them
    assert chosen.options().no_repeat_ngram_size == (2 if partly else 0)


def test_minimums_that_the_call_did_not_ask_for_give_way(rag: Rag) -> None:
    toy_of(rag).decoding_defaults = {"min_tokens": 56, "max_tokens": 142, "num_beams": 4, "num_best": 3}
    assert (rag.options(max_tokens=10).min_tokens, rag.options(max_tokens=10).max_tokens) == (9, 10)
    assert (rag.options(max_tokens=1).min_tokens, rag.options(num_beams=2).num_best) == (0, 2)
    assert rag.options().min_tokens == 56
    with pytest.raises(InputError, match="leaves no room"):
        rag.options(max_tokens=10, min_tokens=10)
    with pytest.raises(InputError, match="raise num_beams"):
        rag.options(num_beams=2, num_best=3)


def test_the_generators_own_limit(rag: Rag) -> None:
    toy_of(rag).max_target_tokens = 3
    assert rag.options().max_tokens == 3
    assert rag.options(max_tokens=2).max_tokens == 2
    with pytest.raises(InputError, match="writes 3 at most"):
        rag.answer("who?", max_tokens=4)


def test_sampling(rag: Rag) -> None:
    one, two = (rag.answer("who?", sample=True, seed=3, num_beams=2, max_tokens=5) for _ in range(2))
    assert one == two
    assert len(one.hypotheses) == 2


def test_classify(rag: Rag) -> None:
    result = rag.classify("who?", ["a", "b", "c"])
    assert result.best == result.labels[0].text
    assert sum(label.probability for label in result.labels) == pytest.approx(1, abs=1e-6)
    assert sum(s.posterior for s in result.sources) == pytest.approx(1, abs=1e-6)
    token = rag.classify("who?", ["a", "b", "c"], variant="token")
    expected: list[tuple[str, Any]] = [
        (label.text, pytest.approx(label.probability, abs=1e-6)) for label in result.labels
    ]
    assert [(label.text, label.probability) for label in token.labels] == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rag: rag.answer(" "), "the question is empty"),
        (lambda rag: rag.answer_batch([]), "no question"),
        (lambda rag: rag.answer("x", variant="both"), "variant='both'"),
        (lambda rag: rag.answer("x", decoding="slow"), "decoding='slow'"),
        (lambda rag: rag.answer("x", variant="token", decoding="fast"), "RAG-Token has one decoder"),
        (lambda rag: rag.answer("x", decoding="fast", sample=True), "sample needs"),
        (lambda rag: rag.answer("x", beams=3), "unknown option beams"),
        (lambda rag: rag.answer("x", k=9), "k=9 exceeds"),
        (lambda rag: rag.answer("x", without=["z3"]), "without='z3' is not among the 3 passages retrieved"),
        (lambda rag: rag.answer("x", without=["z0", "z1", "z2"]), "without names all 3 passages"),
        (lambda rag: rag.classify("x", ["a"]), "two or more"),
        (lambda rag: rag.model.evidence(["x"], ["a", "b"], k=2), "as many of each"),
    ],
)
def test_bad_input(rag: Rag, call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(rag)
