"""Readings of a conversation's last question: the mixture over them against a loop in float64, posteriors, gradients,
and that nothing changes for questions of one turn."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from latentrag import readings as readings_room
from latentrag.assemble import ModelSpec, load, save, with_memory, with_parts
from latentrag.assemble.runs import Setup, train
from latentrag.decoding import rewriting
from latentrag.decoding.rewriting import Rewriter
from latentrag.errors import InputError, ModelError
from latentrag.generator import load_generator
from latentrag.marginal import mixture
from latentrag.memory import Memory
from latentrag.options import Given
from latentrag.rag import Rag
from latentrag.readings import DEFAULTS, ReadingWeights, retrieve, retrieve_in_hindsight, ways_of
from latentrag.retriever import BM25Retriever, DenseRetriever, HybridRetriever
from latentrag.retriever.given import GivenRetriever, WordScores
from latentrag.training.options import TrainingOptions
from latentrag.types import Passage, Question, Retrieved
from tests.memory.conftest import FakePassageEncoder
from tests.retriever.test_hybrid import FakeQueryEncoder, FakeReranker, passages
from tests.toy import ToyGenerator

MESSAGES = [
    {"role": "user", "content": "the river of paris"},
    {"role": "assistant", "content": "seine"},
    {"role": "user", "content": "capital prince"},
    {"role": "assistant", "content": "denmark"},
    {"role": "user", "content": "garden rome"},
]
TALK = Question.of(MESSAGES)
WAYS = {
    "last": "garden rome",
    "before": "capital prince\ndenmark\ngarden rome",
    "all": "the river of paris\nseine\ncapital prince\ndenmark\ngarden rome",
}
NUMBERS = {"before": 0.7, "all": -0.4, "rewrite": 0.2, "evidence": 0.3}
K = 3
KINDS = ["dense", "bm25", "hybrid", "given"]


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    encoder = FakePassageEncoder()
    return Memory.create(tmp_path_factory.mktemp("readings") / "memory.lance", encoder).add(passages(), encoder)


def made(kind: str, memory: Memory) -> Any:
    if kind == "bm25":
        return BM25Retriever(memory, scale=0.8)
    if kind == "given":
        return GivenRetriever(WordScores(), num_passages=30)
    encoder = FakeQueryEncoder()
    if kind == "dense":
        return DenseRetriever(encoder, memory)
    weights = {"dense": 1.1, "bm25": 0.5, "reranker": 0.4, "title": 0.3}
    return HybridRetriever(encoder, memory, weights=weights, num_candidates=6, reranker=FakeReranker())


def talk(kind: str) -> Question:
    return Question.of(MESSAGES, tuple(passages())) if kind == "given" else TALK


def alone(retriever: Any, kind: str, text: str, k: int) -> dict[str, float]:
    """Id → logit of the K that one text finds as a question of its own."""
    found: Retrieved = retriever.retrieve([Question.of(text, talk(kind).passages)], k)
    return dict(zip([z.id for z in found.passages[0]], found.logits[0].double().tolist(), strict=True))


def oracle(retriever: Any, kind: str, numbers: dict[str, float]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """log p(z|h) of the K best, not normalised, and p(r|z,h), passage by passage."""
    every = {text: alone(retriever, kind, text, 30) for text in WAYS.values()}
    found = {text: list(alone(retriever, kind, text, 20)) for text in WAYS.values()}
    union = sorted(dict.fromkeys(z for of_one in found.values() for z in of_one))
    if kind == "given":
        union = sorted(z.id for z in passages())
    logits = {text: {z: every[text][z] for z in union} for text in WAYS.values()}
    weights = [
        math.exp((0.0 if way == "last" else numbers[way]) + numbers["evidence"] * max(logits[text].values()))
        for way, text in WAYS.items()
    ]
    p_r = [weight / sum(weights) for weight in weights]
    joint = {
        z: [
            p * math.exp(logits[text][z]) / sum(map(math.exp, logits[text].values()))
            for p, text in zip(p_r, WAYS.values(), strict=True)
        ]
        for z in union
    }
    best = sorted(union, key=lambda z: -sum(joint[z]))[:K]
    return {z: math.log(sum(joint[z])) for z in best}, {z: [p / sum(joint[z]) for p in joint[z]] for z in best}


@pytest.mark.parametrize("kind", KINDS)
def test_the_prior_is_the_mixture_over_the_readings(kind: str, memory: Memory) -> None:
    retriever = made(kind, memory)
    if kind == "hybrid":  # so that every text's own search scores all
        retriever = HybridRetriever(
            retriever.query_encoder,
            memory,
            weights=retriever.settings()["weights"],
            reranker=FakeReranker(),
            num_candidates=30,
        )
    found = retrieve(retriever, [talk(kind)], K, ReadingWeights.of(NUMBERS))
    expected, shares = oracle(retriever, kind, NUMBERS)
    assert {z.id for z in found.passages[0]} == set(expected)
    logits = found.logits[0].double()
    assert logits.tolist() == sorted(logits.tolist(), reverse=True)
    normalised = np.array([expected[z.id] for z in found.passages[0]])
    normalised -= np.logaddexp.reduce(normalised)
    assert torch.log_softmax(logits, dim=0).tolist() == pytest.approx(normalised.tolist(), abs=2e-5)
    (readings,) = found.readings
    assert readings is not None
    assert [(way.kind, way.text) for way in readings.ways] == list(WAYS.items())
    for z in expected:
        assert readings.of_passages[z] == pytest.approx(shares[z], abs=2e-5)


def test_a_reading_that_is_all_but_certain_has_its_own_prior(memory: Memory) -> None:
    retriever = made("dense", memory)
    certain = ReadingWeights.of({"before": -1e6, "all": -1e6, "rewrite": -1e6, "evidence": 0.0})
    found, plain = retrieve(retriever, [TALK], K, certain), retriever.retrieve(["garden rome"], K)
    assert found.passages == plain.passages
    assert torch.allclose(torch.log_softmax(found.logits, 1), torch.log_softmax(plain.logits, 1), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_questions_of_one_turn_have_every_bit_they_had_beside_conversations(kind: str, memory: Memory) -> None:
    retriever = made(kind, memory)
    x = [Question.of("the river", talk(kind).passages), talk(kind), Question.of("denmark", talk(kind).passages)]
    plain: Retrieved = retriever.retrieve([x[0], x[2]], K)
    weights = ReadingWeights.of(NUMBERS)
    same = retrieve(retriever, [x[0], x[2]], K, weights)
    assert same.latents == plain.latents
    assert torch.equal(same.logits, plain.logits)
    assert same.readings == ()
    mixed = retrieve(retriever, x, K, weights)
    assert [mixed.latents[0], mixed.latents[2]] == list(plain.latents)
    assert torch.equal(mixed.logits[[0, 2]], plain.logits)
    assert mixed.latents[1] == retrieve(retriever, [x[1]], K, weights).latents[0]
    assert [readings is None for readings in mixed.readings] == [True, False, True]


@pytest.mark.parametrize("kind", KINDS[:3])
def test_y_proposes_more_passages_and_scores_none(kind: str, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings_room, "NUM_CANDIDATES", 4)  # so that y proposes others
    retriever, weights = made(kind, memory), ReadingWeights.of(NUMBERS)
    found = retrieve_in_hindsight(retriever, [TALK, Question.of("x")], ["river seine", "rome"], K, 4, weights)
    assert [len({z.id for z in of_one}) for of_one in found.passages] == [K + 4] * 2
    plain = retriever.retrieve_in_hindsight(["x"], ["rome"], K, 4)
    assert found.latents[1] == plain.latents[0]
    assert torch.equal(found.logits[1], plain.logits[0])
    without_y = retrieve(retriever, [TALK], K, weights)
    own = {z.id for text in WAYS.values() for z in retriever.retrieve([text], 20).passages[0]}
    assert {z.id for z in found.passages[0][:K]} <= own
    assert {z.id for z in without_y.passages[0]} <= own
    assert found.latents[0][:K] == without_y.latents[0]
    assert torch.allclose(found.logits[0][:K], without_y.logits[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_best_of_many_are_the_best_of_few(kind: str, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation retrieves more passages than are read, to see where the right one stands."""
    monkeypatch.setattr(readings_room, "NUM_CANDIDATES", 4)
    retriever, weights = made(kind, memory), ReadingWeights.of(NUMBERS)
    few, many = (retrieve(retriever, [TALK], k, weights) for k in (K, 20))
    assert len({z.id for z in many.passages[0]}) == 20
    assert many.latents[0][:K] == few.latents[0]
    assert torch.allclose(many.logits[0][:K], few.logits[0], atol=1e-5)


def test_the_numbers_have_the_gradient_of_the_likelihood(memory: Memory) -> None:
    rag = Rag(made("dense", memory), ToyGenerator(4, seed=3), readings=NUMBERS, k=K)

    def log_p() -> torch.Tensor:
        return rag.model.evidence([TALK], ["ab"], k=K).log_likelihood("sequence")[0]

    numbers = rag.model.readings.numbers
    for number in numbers.values():
        number.requires_grad_(True)
    log_p().backward()
    for name, number in numbers.items():
        if name == "rewrite":  # no reading of this kind
            continue
        value, around = number.item(), []
        for step in (-1e-2, 1e-2):
            with torch.no_grad():
                number.fill_(value + step)
                around.append(log_p().item())
                number.fill_(value)
        assert number.grad is not None
        assert number.grad.item() == pytest.approx((around[1] - around[0]) / 2e-2, abs=2e-3)
        assert abs(number.grad.item()) > 1e-4


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_the_posterior_of_readings_is_that_of_z_and_r_together(variant: Any, memory: Memory) -> None:
    """With a set and "no passage" among the values of z, too, the shares add up to one."""
    retriever = made("dense", memory)
    rag = Rag(retriever, ToyGenerator(4, seed=3), readings=NUMBERS, k=K, variant=variant)
    score = rag.score(TALK, "ab")
    expected, shares = oracle(retriever, "dense", NUMBERS)
    assert score.conversation is not None
    assert score.conversation.trained
    total = sum(map(math.exp, expected.values()))
    for r, reading in enumerate(score.conversation.readings):
        prior = sum(math.exp(expected[z]) / total * shares[z][r] for z in expected)
        posterior = sum(source.posterior * shares[source.passage.id][r] for source in score.sources)
        assert reading.prior == pytest.approx(prior, abs=1e-4)
        assert reading.posterior == pytest.approx(posterior, abs=1e-4)
    more = Rag(retriever, rag.generator, k=K, variant=variant, null_passage=0.3, set_bonus=0.1).score(TALK, "ab")
    assert more.conversation is not None
    assert not more.conversation.trained
    assert sum(reading.posterior for reading in more.conversation.readings) == pytest.approx(1, abs=1e-5)
    assert sum(reading.prior for reading in more.conversation.readings) == pytest.approx(1, abs=1e-5)


def test_one_turn_says_nothing_of_readings(memory: Memory) -> None:
    rag = Rag(made("dense", memory), ToyGenerator(4, seed=3), k=K)
    plain, mixed = rag.answer("denmark", max_tokens=3), rag.answer_batch(["denmark", TALK], max_tokens=3)
    assert plain.conversation is None
    assert mixed[0] == plain
    assert mixed[1].conversation is not None
    assert "readings" in mixed[1].sources[0].parts
    assert "readings" not in mixed[0].sources[0].parts
    for source in mixed[1].sources:
        total = sum(source.parts.values())
        others = [sum(other.parts.values()) for other in mixed[1].sources]
        assert source.prior == pytest.approx(math.exp(total) / sum(map(math.exp, others)), abs=1e-5)


def test_the_oldest_turns_give_way_until_a_reading_fits() -> None:
    def fits(text: str) -> bool:
        return len(text) <= len("capital prince\ndenmark\ngarden rome")

    last, before, every = ways_of(TALK, fits)
    assert (last.text, before.text, every.text) == (WAYS["last"], WAYS["before"], WAYS["before"])
    assert (last.num_dropped, before.num_dropped, every.num_dropped) == (0, 0, 2)
    assert [way.kind for way in ways_of(TALK, lambda text: text == "garden rome")] == ["last"]
    assert [way.kind for way in ways_of(TALK.since(1), lambda _: True)] == ["last", "before"]


def test_a_mixture_of_one_is_that_prior_and_shifts_shift_it() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    mixed, shares = mixture(torch.zeros(1), logits)
    assert torch.equal(mixed, logits[0])
    assert torch.equal(shares, torch.ones(1, 3))
    two = torch.stack([logits[0], logits[0]])
    assert torch.allclose(mixture(torch.tensor([0.3, 0.7]).log(), two)[0], logits[0], atol=1e-6)


WRONG: Sequence[tuple[Any, str]] = [
    ([], "does not end with a user's message"),
    ([{"role": "user", "content": " "}], "does not end with a user's message"),
    ([*MESSAGES, {"role": "assistant", "content": "rome"}], "does not end with a user's message"),
    ([{"role": "system", "content": "Be brief."}], "does not end with a user's message"),
    ([{"role": "tool", "content": "x"}], "message 1 of 1 is not"),
    ([{"role": "user", "content": 5}], "message 1 of 1 is not"),
    (["hello"], "message 1 of 1 is not"),
    (5, "got a int as a question"),
]


@pytest.mark.parametrize(("messages", "said"), WRONG)
def test_what_is_no_conversation_gets_one_line(messages: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        Question.of(messages)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("numbers", [{}, {**DEFAULTS, "other": 1.0}, {**DEFAULTS, "all": math.nan}])
def test_other_numbers_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(InputError, match="needed finite numbers for before, all, rewrite, evidence"):
        ReadingWeights.of(numbers)


def test_messages_are_turns() -> None:
    told = Question.of([{"role": "system", "content": "Be brief."}, *MESSAGES])
    assert told.instruction == "Be brief."
    assert told.exchanges == (("the river of paris", "seine"), ("capital prince", "denmark"))
    assert told.text == "garden rome"
    assert told.since(1).exchanges == (("capital prince", "denmark"),)
    assert (told.since(1).num_dropped, told.since(0).num_dropped, told.since(2).num_dropped) == (2, 4, 0)
    assert told.since(0).instruction == "Be brief."
    unanswered = Question.of([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert unanswered.exchanges == (("a", ""),)
    greeted = Question.of([{"role": "assistant", "content": "hello"}, {"role": "user", "content": "b"}])
    assert greeted.exchanges == (("", "hello"),)


def test_passages_that_were_given_are_all_candidates() -> None:
    retriever = made("given", None)  # type: ignore[arg-type]
    x = [Question.of(MESSAGES, (Passage("a", "garden rome"), Passage("b", "seine")))]
    found = retrieve(retriever, [*x, Question.of("x", tuple(passages()))], 4, ReadingWeights.of())
    assert found.mask is not None
    assert found.mask.tolist() == [[True, True, False, False], [True] * 4]


# Rewrites


def test_a_rewrite_is_one_more_reading_and_those_of_a_beam_share_its_weight(memory: Memory) -> None:
    """With probabilities in proportion to the generator's."""
    proposed = [("river denmark", -1.0), ("paris", -2.5), ("garden rome", -0.1)]  # the last is a reading already
    weights = ReadingWeights.of({**DEFAULTS, "evidence": 0.0})
    numbers = replace(weights, rewritten=lambda x: [proposed for _ in x])
    (readings,) = retrieve(made("dense", memory), [TALK], K, numbers).readings
    assert readings is not None
    assert [way.kind for way in readings.ways] == ["last", "before", "all", "rewrite", "rewrite"]
    last, _, _, first, second = readings.prior
    assert first / second == pytest.approx(math.exp(1.5), rel=1e-4)
    assert (first + second) / last == pytest.approx(math.exp(DEFAULTS["rewrite"]), rel=1e-4)


@pytest.fixture
def no_examples(monkeypatch) -> None:
    """The tiny model has no room for them."""
    monkeypatch.setattr(rewriting, "EXAMPLES", "")


@pytest.mark.usefixtures("no_examples")
def test_the_generator_writes_rewrites_once(pair, filled) -> None:
    rag = load(pair, memory=filled, k=2, rewrites=2)
    talk = [{"role": "user", "content": "what is rome ?"}, {"role": "user", "content": "who wrote emma ?"}]
    answer = rag.answer(talk, max_tokens=3)
    assert answer.conversation is not None
    rewritten = [each for each in answer.conversation.readings if each.kind == "rewrite"]
    assert len(rewritten) in (0, 1, 2)
    assert sum(each.posterior for each in answer.conversation.readings) == pytest.approx(1, abs=1e-5)
    assert rag.answer(talk, max_tokens=3) == answer
    assert rag.answer("who wrote emma ?", max_tokens=3) == load(pair, memory=filled, k=2).answer(
        "who wrote emma ?", max_tokens=3
    )


@pytest.mark.usefixtures("no_examples")
def test_over_another_memory_the_generator_is_not_used_and_its_rewrites_are_kept(pair, filled, monkeypatch) -> None:
    """A server makes such models in threads of requests, while another thread computes with the generator."""
    rag: Any = load(pair, memory=filled, k=1, rewrites=2)
    talk = [{"role": "user", "content": "what is rome ?"}, {"role": "user", "content": "who wrote emma ?"}]
    answer = rag.answer(talk, max_tokens=3)
    read: list[object] = []
    rag.generator.model.register_forward_pre_hook(lambda *_: read.append(1))
    some = with_memory(rag, rag.retriever.memory.where("title is null or title != 'none'"))
    assert some.rewrites == 2
    assert not read
    monkeypatch.setattr(Rewriter, "_decoded", lambda *_: pytest.fail("rewritten again"))
    assert some.answer(talk, max_tokens=3) == answer
    assert read


@pytest.mark.usefixtures("no_examples")
def test_another_generator_writes_rewrites_of_its_own(pair, filled) -> None:
    rag, generator = load(pair, memory=filled, rewrites=2), load_generator(pair[1])
    made = with_parts(rag, rag.retriever, generator)
    assert made.rewrites == 2
    assert made.rewriter is not rag.rewriter
    assert with_parts(rag, rag.retriever, rag.generator).rewriter is rag.rewriter


@pytest.mark.usefixtures("no_examples")
def test_what_a_rewriter_proposes(pair) -> None:
    generator: Any = load_generator(pair[1])
    rewriter = Rewriter(generator, 3)
    talk, other = Question.of(MESSAGES), TALK.since(1)
    found = rewriter([talk, other])
    for question, of_one in zip((talk, other), found, strict=True):
        assert len(of_one) <= 3
        assert question.text not in dict(of_one)
        assert [log_p for _, log_p in of_one] == sorted((log_p for _, log_p in of_one), reverse=True)
    assert rewriter([other]) == found[1:]
    shown = rewriter._shown(talk)
    assert shown == "the river of paris / seine / capital prince / denmark / garden rome"


def test_rewrites_need_a_generator_that_can_be_asked_for_them(memory: Memory, pair, filled) -> None:
    with pytest.raises(InputError, match="rewrites need a generator that takes worked examples"):
        Rag(made("dense", memory), ToyGenerator(4), rewrites=2)
    with pytest.raises(InputError, match="rewrites need a generator that has room for the prompt"):
        load(pair, memory=filled, rewrites=1)
    with pytest.raises(InputError, match="rewrites=-1; needed 0 or more"):
        Rag(made("dense", memory), ToyGenerator(4), rewrites=-1)


# With the model


def test_trained_numbers_are_saved_and_default_ones_are_not(pair, filled, tmp_path) -> None:
    rag = load(pair, memory=filled, k=2)
    save(rag, tmp_path / "plain")
    assert "readings" not in json.loads((tmp_path / "plain" / "latentrag.json").read_text())
    trained = Rag(rag.retriever, rag.generator, k=2, readings=NUMBERS)
    save(trained, tmp_path / "trained")
    content = json.loads((tmp_path / "trained" / "latentrag.json").read_text())
    assert content["readings"] == pytest.approx(NUMBERS)
    again = load(tmp_path / "trained", memory=filled)
    assert again.readings == pytest.approx(NUMBERS)
    talk = [{"role": "user", "content": "what is rome ?"}, {"role": "user", "content": "who wrote emma ?"}]
    assert again.answer(talk, max_tokens=3).conversation == trained.answer(talk, max_tokens=3).conversation
    content["readings"] = {"before": 1.0}
    (tmp_path / "trained" / "latentrag.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="its section 'readings' cannot be used"):
        load(tmp_path / "trained", memory=filled)


def test_training_on_conversations_learns_the_numbers(pair, filled, tmp_path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "user", "content": "what is rome ?"},
                {"role": "assistant", "content": "a city"},
                {"role": "user", "content": "who wrote emma ?"},
            ],
            "answer": "austen",
        },
        {
            "messages": [
                {"role": "user", "content": "who wrote emma ?"},
                {"role": "assistant", "content": "austen"},
                {"role": "user", "content": "what is it ?"},
                {"role": "assistant", "content": "a novel"},
            ]
        },
    ]
    data = tmp_path / "talks.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    setup = Setup(data=(data,), memory=filled, model=ModelSpec(*pair), out=tmp_path / "run")
    options = {"k": 2, "num_steps": 3, "batch_size": 2, "freeze": "generator", "lr_retriever": 1e-3, "hindsight": 1}
    train(setup, Given.of(TrainingOptions, options))
    content = json.loads((tmp_path / "run" / "model" / "latentrag.json").read_text())
    assert content["readings"].keys() == DEFAULTS.keys()
    assert abs(content["readings"]["before"] - DEFAULTS["before"]) > 1e-3
    assert content["readings"]["rewrite"] == pytest.approx(DEFAULTS["rewrite"])
    rag = load(tmp_path / "run" / "model", memory=filled)
    answer = rag.answer(rows[0]["messages"], max_tokens=2)
    assert answer.conversation is not None
    assert answer.conversation.trained


def test_training_on_questions_of_one_turn_trains_no_numbers(pair, filled, tmp_path) -> None:
    data = tmp_path / "plain.jsonl"
    data.write_text(json.dumps({"question": "who wrote emma ?", "answer": "austen"}) + "\n")
    setup = Setup(data=(data,), memory=filled, model=ModelSpec(*pair), out=tmp_path / "run")
    train(setup, Given.of(TrainingOptions, {"k": 2, "num_steps": 1, "batch_size": 1, "freeze": "generator"}))
    assert "readings" not in json.loads((tmp_path / "run" / "model" / "latentrag.json").read_text())
