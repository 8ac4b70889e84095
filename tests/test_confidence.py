"""How sure an answer is: its signals, the fit, abstaining, saved, and in commands."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from latentrag.asking import Asking
from latentrag.confidence import ABSTAINED, SIGNALS, Calibration, means_the_same, settings_of, signals
from latentrag.decoding import Answered, Begun
from latentrag.decoding.loop import Event
from latentrag.errors import InputError, ModelError
from latentrag.evaluation.confidence import fit, measure, risk_coverage
from latentrag.evaluation.run import evaluate
from latentrag.options import DecodingOptions
from latentrag.rag import Rag
from latentrag.records import answer_record
from latentrag.training.data import Example
from tests.test_rag import FakeRetriever
from tests.toy import ToyGenerator, ToyMemory, passages

OPTIONS: dict[str, Any] = {"num_beams": 3, "max_tokens": 4}


def a_calibration(**changed) -> Calibration:
    settings = settings_of(Asking(3, "sequence", DecodingOptions(**OPTIONS)), memory=None)
    names = ("log_p_token", "lead")
    weights, means, scales = {"log_p_token": 0.5, "lead": 1.5}, dict.fromkeys(names, -1.0), dict.fromkeys(names, 2.0)
    return replace(Calibration(weights, means, scales, 0.25, settings), **changed)


def a_rag(calibration: Calibration | None = None, **more) -> Rag:
    return Rag(FakeRetriever(passages(4)), ToyGenerator(4, seed=11), k=3, calibration=calibration, **more)


def test_a_calibration_holds_for_one_prior() -> None:
    from latentrag.confidence import prior_key

    class Part:
        def __init__(self, fingerprint: str) -> None:
            self.fingerprint = fingerprint

    plain: dict[str, object] = {"query_encoder": object()}
    assert prior_key({}, plain) is None
    weights = {"weights": {"dense": 1.0, "bm25": 0.5}, "num_candidates": 20}
    keys = [
        prior_key(weights, plain),
        prior_key({**weights, "num_candidates": 30}, plain),
        prior_key({**weights, "weights": {"dense": 1.0, "bm25": 0.6}}, plain),
        prior_key(weights, {**plain, "reranker": Part("a")}),
        prior_key(weights, {**plain, "reranker": Part("b")}),
    ]
    assert len(set(keys)) == 5
    asking = Asking(3, "sequence", DecodingOptions(**OPTIONS))
    fitted = Calibration({}, {}, {}, 0.0, settings_of(asking, memory=None, set_bonus=0.4, prior=keys[0]))
    assert fitted.difference(settings_of(asking, memory=None, set_bonus=0.4, prior=keys[0])) is None
    assert "set_bonus=0.4, not 6" in str(
        fitted.difference(settings_of(asking, memory=None, set_bonus=6, prior=keys[0]))
    )
    other = fitted.difference(settings_of(asking, memory=None, set_bonus=0.4, prior=keys[2]))
    assert other == "the model was calibrated with other weights, candidates or parts of the prior"
    rags = [a_rag(set_bonus=bonus) for bonus in (0.4, 6.0)]
    assert len({str(rag.signal_settings(asking)) for rag in rags}) == 2


def test_a_calibration_of_conversations_holds_for_its_readings() -> None:
    """Rewrites and weights of readings change the prior over passages; a question alone has one reading."""
    asking = Asking(3, "sequence", DecodingOptions(**OPTIONS))
    weights = {"before": -1.0, "all": -2.0, "rewrite": -2.5, "evidence": 0.5}

    def of(*, conversation: bool, rewrites: int, readings: dict[str, float] | None) -> dict[str, object]:
        return settings_of(asking, memory=None, conversation=conversation, rewrites=rewrites, readings=readings)

    fitted = Calibration({}, {}, {}, 0.0, of(conversation=True, rewrites=2, readings=weights))
    assert fitted.difference(of(conversation=True, rewrites=2, readings=weights)) is None
    found = fitted.difference(of(conversation=True, rewrites=0, readings=weights))
    assert found == "the model was calibrated with rewrites=2, not 0"
    for others in (None, {**weights, "all": -3.0}):
        found = fitted.difference(of(conversation=True, rewrites=2, readings=others))
        assert found == "the model was calibrated with other weights of a conversation's readings"
    earlier = Calibration({}, {}, {}, 0.0, {"conversation": True})  # it did not say
    assert earlier.difference(of(conversation=True, rewrites=2, readings=None)) is None
    alone = Calibration({}, {}, {}, 0.0, of(conversation=False, rewrites=0, readings=None))
    assert alone.difference(of(conversation=False, rewrites=2, readings=weights)) is None


def test_the_signals_of_an_answer_by_hand() -> None:
    answer = a_rag().answer("who", num_best=3, **OPTIONS)
    found = signals(answer)
    assert found.keys() == SIGNALS.keys()
    length = len(answer.log_p_theta[0])
    assert found["log_p_token"] == pytest.approx(answer.log_prob / length)
    assert found["gain"] == pytest.approx((answer.log_prob - answer.closed_book_log_prob) / length)
    assert found["log_length"] == pytest.approx(math.log(length))
    others = [
        each.log_prob for each in answer.hypotheses if each.text not in answer.text and answer.text not in each.text
    ]
    assert found["lead"] == pytest.approx(answer.log_prob - max(others, default=-math.inf), abs=1e-6) or not others
    prior, posterior = ([getattr(source, name) for source in answer.sources] for name in ("prior", "posterior"))
    assert found["prior_entropy"] == pytest.approx(-sum(p * math.log(p) for p in prior) / math.log(3))
    assert found["posterior_entropy"] == pytest.approx(-sum(p * math.log(p) for p in posterior) / math.log(3))
    alone = [math.exp(sum(tokens) / length) for tokens in answer.log_p_theta]
    assert found["agreement"] == pytest.approx(sum(p * each for p, each in zip(prior, alone, strict=True)))


def test_signals_are_finite_where_probabilities_are_not() -> None:
    answer = a_rag().answer("who", num_best=3, **OPTIONS)
    assert signals(replace(answer, closed_book_log_prob=-math.inf))["gain"] == 20
    only = signals(replace(answer, hypotheses=answer.hypotheses[:1]))
    assert only["lead"] == 20  # nothing else was found
    fast = tuple((-math.inf,) * len(tokens) for tokens in answer.log_p_theta)
    assert signals(replace(answer, log_p_theta=fast))["agreement"] == 0


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Paris", "paris.", True),
        ("the Beatles", "Beatles", True),
        ("Obama", "Barack Obama", True),
        ("1912", "15 April 1912", True),
        ("April 1912", "15 April, 1912", True),
        ("Rome", "Paris", False),
        ("New York", "York New", False),
        ("art", "Bart", False),
        ("", "Paris", False),
        ("", " ", True),
        ("!!!", "???", False),
    ],
)
def test_what_means_the_same(a, b, same) -> None:
    assert means_the_same(a, b) is same
    assert means_the_same(b, a) is same


def test_an_answer_has_a_confidence_only_where_it_was_calibrated() -> None:
    calibration = a_calibration()
    whole = a_rag().answer("who", num_best=3, **OPTIONS)
    assert whole.confidence is None
    found = a_rag(calibration).answer("who", **OPTIONS)
    known = signals(whole)
    logit = 0.25 + 0.5 * (known["log_p_token"] + 1) / 2 + 1.5 * (known["lead"] + 1) / 2
    assert found.confidence == pytest.approx(1 / (1 + math.exp(-logit)))
    # The answer, and how many hypotheses it has, are as without.
    assert replace(found, confidence=None) == a_rag().answer("who", **OPTIONS)
    for other in ({"k": 2}, {"variant": "token"}, {"decoding": "thorough"}, {"num_beams": 2}, {"sample": True}):
        assert a_rag(calibration).answer("who", **{**OPTIONS, **other}).confidence is None
    for name in ("memory", "retriever"):
        elsewhere = a_calibration(settings={**calibration.settings, name: "another"})
        assert a_rag(elsewhere).answer("who", **OPTIONS).confidence is None
    assert a_rag(calibration, null_passage=0.5).answer("who", **OPTIONS).confidence is None
    assert answer_record(found)["confidence"] == found.confidence
    assert "confidence" not in answer_record(whole)


class SomeMemory(ToyMemory):
    """A memory whose only condition is True."""

    lineage = "a"

    def where(self, condition) -> ToyMemory:
        some = SomeMemory(self.kept)
        some.lineage = f"a where {condition}"
        return some


def test_a_condition_or_passages_left_out_are_other_settings() -> None:
    calibration = a_calibration(settings={**a_calibration().settings, "memory": "a"})
    rag = a_rag(calibration)
    rag.retriever.memory = SomeMemory(passages(4))  # type: ignore[misc]
    assert rag.answer("who", **OPTIONS).confidence is not None
    with pytest.raises(InputError, match="calibrated over another memory"):
        rag.answer("who", where="title is null", abstain_below=0.5, **OPTIONS)
    assert rag.answer("who", without=["z1"], **OPTIONS).confidence is None
    # The best three of four are what three were if the other were not in the memory.
    assert rag.answer("who", k=4, without=["z1"], **OPTIONS).confidence is not None


TALKS = [
    [
        {"role": "user", "content": "whose"},
        {"role": "assistant", "content": "hers"},
        {"role": "user", "content": "who"},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "who"}],
]


@pytest.mark.parametrize("talk", TALKS)
def test_a_calibration_on_questions_alone_says_nothing_of_conversations(talk) -> None:
    rag = a_rag(a_calibration())
    found = rag.answer_batch(["who", talk, "when"], **OPTIONS)
    assert [answer.confidence is None for answer in found] == [False, True, False]
    assert [len(answer.hypotheses) for answer in found] == [1, 1, 1]
    assert found[1] == a_rag().answer(talk, **OPTIONS)
    with pytest.raises(InputError, match="calibrated on questions alone, and this is a conversation"):
        rag.answer(talk, abstain_below=0.5, **OPTIONS)


@pytest.mark.parametrize("talk", TALKS)
def test_a_calibration_on_conversations_is_for_conversations(talk) -> None:
    settings = {**a_calibration().settings, "conversation": True}
    rag = a_rag(a_calibration(settings=settings))
    assert rag.answer(talk, abstain_below=1, **OPTIONS).text == ABSTAINED
    assert rag.answer("who", **OPTIONS).confidence is None
    before = {name: value for name, value in a_calibration().settings.items() if name != "conversation"}
    older = a_rag(a_calibration(settings=before))  # saved before there were conversations
    assert older.answer("who", **OPTIONS).confidence is not None
    assert older.answer(talk, **OPTIONS).confidence is None


def test_abstaining() -> None:
    calibration = a_calibration()
    plain = a_rag(calibration).answer("who", **OPTIONS)
    assert plain.confidence is not None
    assert plain.best_guess is None
    kept = a_rag(calibration).answer("who", abstain_below=plain.confidence, **OPTIONS)
    assert kept == plain
    withheld = a_rag(calibration).answer("who", abstain_below=plain.confidence + 1e-9, **OPTIONS)
    assert withheld == replace(plain, text=ABSTAINED, best_guess=plain.text)
    record = answer_record(withheld)
    assert (record["answer"], record["best_guess"]) == (ABSTAINED, plain.text)
    # A stream tells nothing of an answer that may be withheld.
    for below, told in ((None, True), (1.0, False)):
        rag = a_rag(calibration)
        answering = rag.answering([f"who {n}" for n in range(9)], rag.asking(abstain_below=below, **OPTIONS))
        events: list[Event] = []
        while answering.live:
            events += answering.step()
        assert any(isinstance(event, Begun) for event in events) is told
        assert isinstance(events[-1], Answered)


@pytest.mark.parametrize(
    ("calibration", "options", "why"),
    [
        (None, {}, "abstain_below has no effect, since the model is not calibrated; run `latentrag calibrate`"),
        (a_calibration(), {"k": 2}, "since the model was calibrated with k=3, not 2"),
        (a_calibration(), {"abstain_below": 1.5}, "abstain_below=1.5; needed a probability, 0 to 1"),
        (a_calibration(), {"abstain_below": math.nan}, "abstain_below=nan; needed a probability, 0 to 1"),
        (a_calibration(settings={"memory": "b"}), {}, "since the model was calibrated over another memory"),
    ],
)
def test_abstaining_needs_a_calibration(calibration, options, why) -> None:
    with pytest.raises(InputError, match="abstain_below") as caught:
        a_rag(calibration).answer("who", **{"abstain_below": 0.5, **OPTIONS, **options})
    assert why in str(caught.value)


def test_the_fit_finds_what_made_the_labels() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(2_000, len(SIGNALS)))
    logits = 0.5 + 2.0 * values[:, 0] - 1.0 * values[:, 3]
    right = (random.random(len(logits)) < 1 / (1 + np.exp(-logits))).tolist()
    found = [dict(zip(SIGNALS, (3 + 2 * row).tolist(), strict=True)) for row in values]
    fitted = fit(found, right, [0.5] * len(right), {"k": 5})
    weights = list(fitted.calibration.weights.values())
    assert weights == pytest.approx([2.0, 0, 0, -1.0, 0, 0, 0], abs=0.2)
    assert fitted.calibration.settings == {"k": 5}
    assert fitted.calibration.measured["auroc"] == fitted.after.auroc
    truth = 1 / (1 + np.exp(-logits))
    said = [fitted.calibration.probability(each) for each in found]
    assert np.abs(np.array(said) - truth).mean() < 0.03
    assert fitted.after.brier_skill is not None
    assert fitted.after.brier_skill > 0.2
    assert fitted.after.ece < 2 * fitted.after.ece_if_true
    # No probability, no skill.
    assert fitted.before.auroc == 0.5
    assert fitted.before.brier_skill is not None
    assert fitted.before.brier_skill <= 0


def test_chance_is_not_fitted() -> None:
    random = np.random.default_rng(1)
    found = [dict(zip(SIGNALS, row, strict=True)) for row in random.normal(size=(400, len(SIGNALS))).tolist()]
    after = fit(found, (random.random(400) < 0.3).tolist(), [0.5] * 400, {}).after
    assert after.auroc == pytest.approx(0.5, abs=0.08)
    assert after.brier_skill == pytest.approx(0, abs=0.02)


def test_a_signal_that_never_changes_has_no_say() -> None:
    random = np.random.default_rng(2)
    found = [{**dict.fromkeys(SIGNALS, 1.0), "lead": value} for value in random.normal(size=200).tolist()]
    fitted = fit(found, [each["lead"] > 0 for each in found], [0.5] * 200, {})
    assert [name for name, weight in fitted.calibration.weights.items() if weight] == ["lead"]


def test_measures_by_hand() -> None:
    found = measure([0.9, 0.8, 0.3, 0.1], [True, False, True, False])
    assert found.brier == pytest.approx((0.01 + 0.64 + 0.49 + 0.01) / 4)
    assert found.brier_skill == pytest.approx(1 - found.brier / 0.25)
    assert found.auroc == 0.75
    assert found.ece == pytest.approx((0.1 + 0.8 + 0.7 + 0.1) / 4)
    assert found.at(0.5) == 0.5
    assert found.at(1.0) == found.accuracy == 0.5
    every = measure([0.5, 0.5], [True, True])
    assert (every.auroc, every.brier_skill) == (None, None)


def test_risk_and_coverage_with_ties() -> None:
    points = {each.coverage: each for each in risk_coverage([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [True] * 3 + [False] * 7)}
    assert points[0.1].accuracy == points[0.4].accuracy == 0.75
    assert points[0.5].accuracy == pytest.approx(3 / 5)
    assert points[1.0].accuracy == 0.3
    assert (points[0.4].threshold, points[0.5].threshold) == (1, 0)


def test_rows_of_an_evaluation_and_its_report(tmp_path) -> None:
    letters = "abc"
    examples = [Example(str(n), f"x{n}", (letters[n % 3],)) for n in range(60)]
    options = DecodingOptions(**OPTIONS)
    plain = evaluate(a_rag(), examples, options=options, recall_at=[1])
    assert "signals" not in plain.rows[0]
    assert "signals" not in plain.settings
    by: Any = plain.details["confidence"]
    assert by["by"] == "log_prob"
    found = evaluate(a_rag(), examples, tmp_path / "a.jsonl", options=options, recall_at=[1], signals=True)
    assert [(row["text"], row["log_prob"]) for row in found.rows] == [(r["text"], r["log_prob"]) for r in plain.rows]
    whole = a_rag().answer("x7", **{**OPTIONS, "num_best": 3})
    assert found.rows[7]["signals"] == pytest.approx(signals(whole))
    with pytest.raises(InputError, match="signals=True, this run has None"):
        evaluate(a_rag(), examples, tmp_path / "a.jsonl", options=options, recall_at=[1])
    sure = evaluate(a_rag(a_calibration()), examples, options=options, recall_at=[1])
    said = [row["confidence"] for row in sure.rows]
    assert said[7] == a_rag(a_calibration()).answer("x7", **OPTIONS).confidence
    right = [row["exact_match"] for row in sure.rows]
    measured: Any = sure.details["confidence"]
    assert measured["brier"] == measure(said, right).brier == sure.estimates["brier"].mean
    assert sure.estimates["exact_match_of_surer_half"].mean == measure(said, right).at(0.5)


@pytest.mark.parametrize(
    "damage",
    [
        {"bias": math.nan},
        {"scales": {"lead": 0.0, "log_p_token": 1.0}},
        {"weights": {"lead": 1.0}},
        {"weights": {"what": 1.0}, "means": {"what": 1.0}, "scales": {"what": 1.0}},
        {"bias": "1"},
        {"settings": None},
        {"newer": 1},
    ],
)
def test_a_damaged_calibration_is_refused(damage) -> None:
    record = json.loads(json.dumps(a_calibration().as_record()))
    assert Calibration.of_record(record, where="x") == a_calibration()
    with pytest.raises(ModelError, match="x has no usable section 'calibration'; run `latentrag calibrate` again"):
        Calibration.of_record({**record, **damage}, where="x")
