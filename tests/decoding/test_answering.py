"""Answering a step at a time: what is said is never taken back, what is dropped is not decoded any further."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrag.decoding import Answered, BeamSearch, Begun, Decoded, Ended, Loop, Sources, run
from latentrag.decoding.answering import before_stop, num_settled, settled_length
from latentrag.decoding.beam import num_decided
from latentrag.errors import InputError
from latentrag.options import DecodingOptions
from latentrag.rag import Rag
from latentrag.types import Answer, Token, singles
from tests.test_rag import FakeRetriever
from tests.toy import ToyGenerator, passages, toy_of


class Observer:
    """Answers questions a step at a time, writes down what is said; drops a question after so many tokens."""

    def __init__(self, patience: dict[int, int] | None = None) -> None:
        self.patience = patience or {}
        self.told: dict[int, list[tuple[Token, ...]]] = {}
        self.sources: dict[int, Sources] = {}

    def answers(self, rag: Rag, x: list[str], **options: Any) -> list[Answer | None]:
        answers: list[Answer | None] = [None] * len(x)
        answering = rag.answering(x, rag.asking(**options))
        while answering.live:
            for event in answering.step():
                if isinstance(event, Sources):
                    assert event.question not in self.told
                    self.sources[event.question] = event
                elif isinstance(event, Begun):
                    self.told.setdefault(event.question, []).append(event.tokens)
                elif isinstance(event, Answered):
                    answers[event.question] = event.answer
            for question in answering.live:
                if len(self.told.get(question, [()])[-1]) >= self.patience.get(question, 10**9):
                    answering.drop(question)
        return answers


def make(seed: int, *, sharpness: float = 2.0, vocabulary: int = 4) -> Rag:
    return Rag(FakeRetriever(passages(3)), ToyGenerator(vocabulary, seed=seed, sharpness=sharpness), k=3)


def check_told(notes: Observer, b: int, answer: Answer | None) -> None:
    assert answer is not None
    told = notes.told.get(b, [])
    for before, after in zip([(), *told], told, strict=False):
        assert len(after) > len(before)
    for tokens in told:
        assert [token.text for token in tokens] == [token.text for token in answer.tokens[: len(tokens)]]
        for token, final in zip(tokens, answer.tokens, strict=False):
            assert token.log_prob == pytest.approx(final.log_prob, abs=1e-5)
            assert token.posterior == pytest.approx(final.posterior, abs=1e-5)
    sources = notes.sources[b]
    assert sources.version == answer.memory_version
    assert [passage for passage, _ in sources.passages] == [source.passage for source in answer.sources]
    assert [prior for _, prior in sources.passages] == pytest.approx([source.prior for source in answer.sources])


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    variant=st.sampled_from(["sequence", "token"]),
    num_beams=st.integers(1, 4),
    length_penalty=st.sampled_from([0.0, 1.0, -1.0]),
    early_stopping=st.booleans(),
    min_tokens=st.integers(0, 3),
    stop=st.sampled_from([(), ("b",), ("ab", "ca"), ("bca",)]),
    sharpness=st.sampled_from([0.5, 4.0]),
)
def test_what_is_told_is_what_the_answer_begins_with(seed, variant, sharpness, **options) -> None:
    rag, notes = make(seed, sharpness=sharpness), Observer()
    x = ["one?", "another one?"]
    answers = notes.answers(rag, x, variant=variant, max_tokens=6, **options)
    assert answers == rag.answer_batch(
        x, variant=variant, max_tokens=6, **options
    )  # dropping and looking on change nothing
    for b, answer in enumerate(answers):
        check_told(notes, b, answer)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), num_beams=st.integers(1, 3))
def test_samples_are_certain_at_once_where_there_is_one(seed, num_beams) -> None:
    rag, notes = make(seed), Observer()
    options = {"sample": True, "seed": seed, "num_beams": num_beams, "max_tokens": 6}
    (answer,) = notes.answers(rag, ["who?"], **options)
    assert answer == rag.answer("who?", **options)
    check_told(notes, 0, answer)
    if num_beams == 1 and answer.hypotheses[0].finished:
        assert [len(tokens) for tokens in notes.told.get(0, [])] == list(range(1, len(answer.tokens) + 1))


@pytest.mark.parametrize("decoding", ["exact", "thorough", "fast"])
def test_the_first_tokens_are_told_long_before_the_end(decoding) -> None:
    """Thorough and Fast Decoding tell none; a greedy search tells each token when it has taken it."""
    rag, notes = make(3), Observer()
    (answer,) = notes.answers(rag, ["who?"], decoding=decoding, num_beams=1, min_tokens=7, max_tokens=9)
    assert answer is not None
    assert len(answer.tokens) >= 7
    sizes = [len(tokens) for tokens in notes.told.get(0, [])]
    assert sizes == (list(range(1, len(sizes) + 1)) if decoding == "exact" else [])
    assert len(sizes) >= 6 or decoding != "exact"


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 1, "sample": True}], ids=["search", "sample"])
def test_what_nobody_wants_is_not_decoded_further(options) -> None:
    x = ["one?", "another one?", "a third?"]
    rag = make(5)
    whole = rag.answer_batch(x, min_tokens=7, max_tokens=9, **{**options, "sample": False})
    notes = Observer({0: 2, 2: 0})
    answers = notes.answers(rag, x, min_tokens=7, max_tokens=9, **options)
    assert [answer is None for answer in answers] == [True, False, True]
    assert (len(notes.told[0]), 2 in notes.told) == (2, False)
    if "sample" not in options:
        assert answers[1] == whole[1]
    steps = toy_of(rag).num_steps
    assert Observer({0: 2}).answers(rag, x[:1], min_tokens=7, max_tokens=9, **options) == [None]
    assert toy_of(rag).num_steps - steps == 1  # the token after the first; nothing after it was dropped


@pytest.mark.parametrize("when", range(24))
@pytest.mark.parametrize("options", [{}, {"top_tokens": 2}, {"sample": True, "top_tokens": 2, "seed": 1}])
def test_a_question_may_leave_at_any_step_of_those_that_share_its_state(options, when) -> None:
    """Nothing more is said of it, and the others are answered as they are without it leaving."""
    x, options = ["one?", "another one?", "a third?"], {"num_beams": 1, "max_tokens": 9, **options}
    rag = make(5)
    whole = rag.answer_batch(x, **options)
    for leaving in range(3):
        loop = rag.answering(x, rag.asking(**options))
        answers: dict[int, Answer] = {}
        for number in range(1000):
            if not loop.live:
                break
            gone = number > when and leaving not in answers
            for event in loop.step():
                assert not (gone and event.question == leaving)
                if isinstance(event, Answered):
                    answers[event.question] = event.answer
            if number == when:
                loop.drop(leaving)
        others = [b for b in range(3) if b != leaving]
        assert [answers.get(b) for b in others] == [whole[b] for b in others]


def test_options_that_leave_no_answer() -> None:
    with pytest.raises(InputError, match="ruled out by the options; lower min_tokens"):
        make(1, vocabulary=2).answer("who?", min_tokens=5, no_repeat_ngram_size=1)


def found(log_prob: float, *ids: int) -> Decoded:
    return Decoded(ids, log_prob, torch.zeros(1, len(ids)), finished=True)


def test_who_can_still_win_decides_what_is_certain() -> None:
    live, scores = [(1, 2, 3), (1, 2, 4), (5, 5, 5)], [-1.0, -2.0, -3.0]
    assert num_decided(live, scores, None, length_penalty=0.0) == 0
    assert num_decided(live, [-1.0, -2.0, float("-inf")], None, length_penalty=0.0) == 2
    # 5 5 5 is less probable than what is finished, and will not become more probable.
    assert num_decided(live, scores, found(-2.5, 1, 2, 0), length_penalty=0.0) == 2
    assert num_decided(live, scores, found(-1.5, 1, 0), length_penalty=0.0) == 1
    assert num_decided(live, scores, found(-0.5, 1, 0), length_penalty=0.0) == 2  # nothing can win any more
    assert num_decided(live, scores, found(-0.5, 1, 0), length_penalty=1.0) == 0  # with a bonus for length it can


@pytest.mark.parametrize(
    ("text", "stop", "length"),
    [
        ("James", (), 5),
        ("James ", (), 5),
        ("o '", (), 1),
        ("caf\ufffd", (), 3),
        ("", (), 0),
        ("one.", (), 3),
        ("one en", ("end",), 3),
        ("one en", ("x", "n end"), 5),
        ("one end two", ("end",), 3),
        ("enen", ("end",), 2),
    ],
)
def test_text_that_stays(text, stop, length) -> None:
    assert settled_length(text, stop) == length


def test_a_token_that_adds_nothing_waits_for_what_follows() -> None:
    assert num_settled(["A", ""], ()) == 1  # white space, until a word follows
    assert num_settled(["A", " ", "b"], ()) == 3
    assert num_settled(["", "A"], ()) == 2
    assert num_settled(["A", " b."], ()) == 1


@given(
    text=st.text("abc .", max_size=12), stop=st.text("ab ", min_size=1, max_size=4), more=st.text("abc .", max_size=6)
)
def test_settled_text_survives_whatever_follows(text, stop, more) -> None:
    kept = text[: settled_length(text, [stop])]
    assert before_stop(text + more, [stop]).startswith(kept)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    variant=st.sampled_from(["sequence", "token"]),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    gaps=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    dropped=st.integers(-1, 3),
)
def test_a_question_that_enters_a_running_loop_is_answered_as_alone(seed, variant, sizes, gaps, dropped) -> None:
    """Questions enter between the steps of others, and one of them may leave: the others' answers do not change."""
    generator, options = ToyGenerator(4, seed=seed), DecodingOptions(num_beams=3, max_tokens=6)
    log_p_eta = torch.log_softmax(torch.linspace(1.0, -1.0, 3), dim=0)

    def search(x: list[str]) -> BeamSearch:
        prepared = generator.prepare(x, singles([passages(3)] * len(x)))
        return BeamSearch(generator, prepared, log_p_eta.expand(len(x), -1), variant=variant, options=options)

    loop = Loop()
    asked: dict[int, str] = {}
    ended: dict[int, Sequence[Decoded]] = {}
    for size, gap in zip(sizes, gaps, strict=False):
        x = [f"question {len(asked) + i}" for i in range(size)]
        asked |= dict(zip(loop.admit(search(x)), x, strict=True))
        for _ in range(gap):
            ended |= {event.question: event.hypotheses for event in loop.step() if isinstance(event, Ended)}
    if dropped in loop.live:
        loop.drop(dropped)
        del asked[dropped]
    while loop.live:
        ended |= {event.question: event.hypotheses for event in loop.step() if isinstance(event, Ended)}
    assert sorted(ended) == sorted(asked)
    for handle, question in asked.items():
        (alone,) = run(search([question]))
        assert [h.ids for h in ended[handle]] == [h.ids for h in alone]
        assert [h.log_prob for h in ended[handle]] == pytest.approx([h.log_prob for h in alone], abs=1e-5)
