"""Questions that enter and leave a running loop are answered as each alone, and none waits long for a larger one."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentrag.decoding import Answered, Failed, Loop, decodes_apart
from latentrag.decoding.loop import Turns, Work, alone
from latentrag.errors import InputError
from latentrag.generator import load_generator
from latentrag.protocols import Capabilities, Step
from latentrag.rag import Rag
from latentrag.types import Answer, Passage
from tests import tiny
from tests.test_rag import FakeRetriever
from tests.toy import ToyGenerator, passages

WAYS: list[dict[str, Any]] = [
    {"variant": "sequence"},
    {"variant": "token"},
    {"variant": "sequence", "decoding": "thorough"},
    {"variant": "sequence", "decoding": "fast"},
    {"variant": "sequence", "sample": True, "seed": 3},
]
TEXTS = [
    "paris is the capital of france",
    "the moon",
    "the red moon is a moon of mars . it was blue",
    "rome , the capital city of italy , in italy",
]
KINDS = {"seq2seq": tiny.save_bart, "t5": tiny.save_t5, "llama": tiny.save_llama, "gpt2": tiny.save_gpt2}
KINDS |= {"gemma2": tiny.save_gemma2}


class TogetherGenerator(ToyGenerator):
    """Says how many states each pass had."""

    capabilities = Capabilities(steps_together=True)

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.passes: list[int] = []

    def step_together(self, steps: Sequence[Step]) -> list[tuple[Tensor, object]]:
        self.passes.append(len(steps))
        return [self.step(step.state, step.parents, step.tokens) for step in steps]


@dataclass(frozen=True)
class Entering:
    """A question that enters after so many steps of the loop, and leaves after so many more if it is not done."""

    x: str
    how: dict[str, Any]
    at: int
    leaves_after: int | None


ENTERING = st.builds(
    Entering,
    x=st.sampled_from(["who ?", "what is the capital city of france ?", "which moon is red , and what planet ?"]),
    how=st.builds(
        lambda way, k, num_beams: {**way, "k": k, "num_beams": num_beams, "max_tokens": 5},
        st.sampled_from(WAYS),
        st.integers(1, 4),
        st.integers(1, 3),
    ),
    at=st.integers(0, 12),
    leaves_after=st.sampled_from([None, None, 0, 2, 6]),
)


def answered(rag: Rag, questions: Sequence[Entering], *, in_order: bool = True) -> dict[int, Answer]:
    """What became of the questions, by their places."""
    loop, place_of, leaves_at = Loop(in_order=in_order), {}, {}
    answers: dict[int, Answer] = {}
    waiting = sorted(range(len(questions)), key=lambda place: questions[place].at)
    count = 0
    while waiting or loop.live:
        while waiting and questions[waiting[0]].at <= count:
            place = waiting.pop(0)
            for task in rag.to_answer([questions[place].x], rag.asking(**questions[place].how)):
                for handle in loop.admit(task):
                    place_of[handle] = place
                    after = questions[place].leaves_after
                    leaves_at[handle] = None if after is None else count + after
        for event in loop.step():
            assert not isinstance(event, Failed)
            if isinstance(event, Answered):
                answers[place_of[event.question]] = event.answer
        count += 1
        for handle in loop.live:
            at = leaves_at[handle]
            if at is not None and at <= count:
                loop.drop(handle)
                assert handle not in loop.live
    return answers


def check_same(found: Answer, expected: Answer) -> None:
    """To rounding."""
    assert (found.text, found.question) == (expected.text, expected.question)
    assert found.log_prob == pytest.approx(expected.log_prob, abs=1e-5)
    assert found.closed_book_log_prob == pytest.approx(expected.closed_book_log_prob, abs=1e-5)
    for ours, theirs in zip(found.sources, expected.sources, strict=True):
        assert ours.passage == theirs.passage
        assert ours.prior == pytest.approx(theirs.prior, abs=1e-5)
        assert ours.posterior == pytest.approx(theirs.posterior, abs=1e-5)
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        assert one.text == other.text
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-5)
        assert one.posterior == pytest.approx(other.posterior, abs=1e-5)
    assert [each.log_prob for each in found.hypotheses] == pytest.approx(
        [each.log_prob for each in expected.hypotheses], abs=1e-5
    )


def check_all(rag: Rag, oracle: Rag, questions: Sequence[Entering], *, in_order: bool = True) -> None:
    """Each answer is that of the oracle, asked this one question; who stayed has one."""
    found = answered(rag, questions, in_order=in_order)
    for place, question in enumerate(questions):
        assert place in found or question.leaves_after is not None
    for place, answer in found.items():
        check_same(answer, oracle.answer(questions[place].x, **questions[place].how))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    questions=st.lists(ENTERING, min_size=1, max_size=5),
    together=st.booleans(),
    in_order=st.booleans(),
)
def test_questions_that_enter_and_leave_are_answered_as_alone(seed, questions, together, in_order) -> None:
    made = (TogetherGenerator if together else ToyGenerator)(4, seed=seed)
    retriever = FakeRetriever(passages(4))
    check_all(Rag(retriever, made), Rag(retriever, ToyGenerator(4, seed=seed)), questions, in_order=in_order)


class Alone:
    """A generator without ``step_together`` and ``read_slice``: each state is computed by itself."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self.capabilities = replace(generator.capabilities, steps_together=False)

    def __getattr__(self, name: str) -> Any:
        if name in {"step_together", "read_slice"}:
            raise AttributeError(name)
        return getattr(self._generator, name)


@pytest.fixture(scope="module", params=KINDS)
def real(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny.save_tokenizer(folder, end=request.param in {"seq2seq", "t5"}, max_tokens=64)
    KINDS[request.param](folder, seed=3)
    return load_generator(folder)


@settings(max_examples=12, deadline=None)
@given(questions=st.lists(ENTERING, min_size=2, max_size=5))
def test_states_of_different_lengths_are_computed_together(real, questions) -> None:
    retriever = FakeRetriever([Passage(f"p{i}", text) for i, text in enumerate(TEXTS)])
    check_all(Rag(retriever, real), Rag(retriever, Alone(real)), questions)


def test_models_whose_attention_is_ours_compute_states_together(real, request) -> None:
    kind = request.node.callspec.params["real"]
    assert decodes_apart(real) is (kind in {"llama", "gpt2"})


def test_steps_of_questions_are_one_pass() -> None:
    generator = TogetherGenerator(4, seed=5)
    rag = Rag(FakeRetriever(passages(4)), generator, k=2)
    how: dict[str, Any] = {"min_tokens": 4, "max_tokens": 5, "num_beams": 1}
    whole = rag.answer_batch(["one?", "two?", "three?"], **how)
    assert generator.passes == [3, 3, 3, 3]
    assert whole == Rag(rag.retriever, ToyGenerator(4, seed=5), k=2).answer_batch(["one?", "two?", "three?"], **how)


# Fairness


class Counting:
    """A task of one question that asks for so many works, the first of which read, and writes its name down at each."""

    def __init__(self, name: str, num_works: int, num_rows: int, done: list[str], *, num_reading: int = 0) -> None:
        self.name, self.num_works, self.num_rows, self.done = name, num_works, num_rows, done
        self.num_reading = num_reading
        self.live = [0]

    def drop(self, question: int) -> None:
        self.live.remove(question)

    def turns(self) -> Turns:
        for number in range(self.num_works):
            yield alone(lambda: self.done.append(self.name), reads=number < self.num_reading)
        self.live = []


@given(
    large=st.integers(5, 30),
    num_reading=st.integers(0, 30),
    small=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8), st.integers(0, 8)), max_size=6),
    in_order=st.booleans(),
)
def test_a_small_question_waits_for_two_works_of_a_large_one(large, num_reading, small, in_order) -> None:
    """One that was under way when it came, and one more; the large one is done in the end."""
    done: list[str] = []
    loop = Loop(in_order=in_order)
    loop.admit(Counting("large", large, 240, done, num_reading=num_reading))
    loop.step()
    came = {}
    for step in range(400):
        for number, (at, num_works, num_read) in enumerate(small):
            if at == step:
                came[number] = len(done)
                loop.admit(Counting(f"small {number}", num_works, 8, done, num_reading=num_read))
        loop.step()
    assert not loop.live
    assert done.count("large") == large
    for number, start in came.items():
        last = max(place for place, name in enumerate(done) if name == f"small {number}")
        assert done[start:last].count("large") <= 1


def test_questions_of_one_size_take_turns() -> None:
    done: list[str] = []
    loop = Loop()
    for name in "abc":
        loop.admit(Counting(name, 3, 20, done))
    while loop.live:
        loop.step()
    assert done == list("abcabcabc")


def test_questions_of_one_size_read_in_order_of_arrival() -> None:
    """Three that read: three works; one that decodes beside two: two works in its round; two beside one: one."""
    done: list[str] = []
    loop = Loop(in_order=True)
    for name in "abc":
        loop.admit(Counting(name, 4, 20, done, num_reading=2))
    while loop.live:
        loop.step()
    assert "".join(done) == "aababcabcbcc"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=8))
def test_of_equal_questions_whoever_comes_first_begins_first(entering) -> None:
    done: list[str] = []
    loop, came = Loop(in_order=True), []
    for step in range(200):
        for number, (at, num_reading, num_more) in enumerate(entering):
            if at == step:
                came.append(str(number))
                loop.admit(Counting(str(number), num_reading + num_more, 20, done, num_reading=num_reading))
        loop.step()
    assert not loop.live
    begun = {name: [i for i, each in enumerate(done) if each == name][entering[int(name)][1] - 1] for name in came}
    assert sorted(came, key=begun.__getitem__) == came


@pytest.mark.parametrize("num_reading", [None, 0, 3])
def test_small_questions_are_held_back_when_a_large_one_has_waited_too_long(num_reading) -> None:
    """In turns, and in order with works of the large one that read or not."""
    done: list[str] = []
    loop = Loop(in_order=num_reading is not None)
    loop.admit(Counting("large", 3, 240, done, num_reading=num_reading or 0))
    loop.admit(Counting("small", 100, 8, done))
    for _ in range(90):
        loop.step()
    assert (loop.holds_back(8), loop.holds_back(60), loop.holds_back(61)) == (True, True, False)
    while loop.live:
        loop.step()
    assert done[-2:] == ["large", "large"]
    assert not loop.holds_back(8)


def test_works_with_one_key_are_done_together_as_far_as_there_is_room() -> None:
    batches: list[list[int]] = []

    def compute(items: Sequence[Any]) -> list[int]:
        batches.append(list(items))
        return list(items)

    class Together(Counting):
        def turns(self) -> Turns:
            assert (yield Work(lambda: self.num_works, compute, "key")) == self.num_works
            self.live = []

    loop = Loop()
    for number in range(5):
        loop.admit(Together("", number, 100, []))
    while loop.live:
        loop.step()
    assert batches == [[0, 1, 2], [3, 4]]


def test_an_error_of_one_work_does_not_reach_those_that_are_done_with_it() -> None:
    def compute(items: Sequence[Any]) -> list[int]:
        if 1 in items:
            raise InputError("it cannot be")
        return list(items)

    class Together(Counting):
        def turns(self) -> Turns:
            self.done.append(str((yield Work(lambda: self.num_works, compute, "key"))))
            self.live = []

    done: list[str] = []
    loop = Loop()
    for number in range(3):
        loop.admit(Together("", number, 1, done))
    events = []
    while loop.live:
        events += loop.step()
    assert [each.question for each in events if isinstance(each, Failed)] == [1]
    assert done == ["0", "2"]


def test_an_error_of_one_question_does_not_reach_the_others() -> None:
    done: list[str] = []

    class Failing(Counting):
        def turns(self) -> Turns:
            yield alone(lambda: None)
            raise InputError("it cannot be")

    class Refused(Counting):
        def turns(self) -> Turns:
            yield alone(self.refuse)

        def refuse(self) -> None:
            raise InputError("nor this")

    loop = Loop()
    for task in (Failing("", 1, 1, done), Counting("a", 2, 1, done), Refused("", 1, 1, done)):
        loop.admit(task)
    events = []
    while loop.live:
        events += loop.step()
    assert [(each.question, str(each.error)) for each in events if isinstance(each, Failed)] == [
        (0, "it cannot be"),
        (2, "nor this"),
    ]
    assert done == ["a", "a"]


def test_reading_stops_with_the_question(tmp_path) -> None:
    """What is read of 60 passages is read in slices, and no more of it when nobody wants the answer."""
    tiny.save_tokenizer(tmp_path, end=False)
    tiny.save_llama(tmp_path)
    generator = tiny.load_causal(tmp_path)
    words = random.Random(1).choices(tiny.WORDS, k=40)
    found = [Passage(f"p{i}", " ".join([*words, str(i)])) for i in range(60)]
    rag = Rag(FakeRetriever(found), generator, k=60)
    read: list[int] = []
    run = generator._head.run

    def counted(**inputs: Any) -> Any:
        read.append(len(inputs["input_ids"]))
        return run(**inputs)

    generator._head.run = counted  # type: ignore[method-assign]
    loop = rag.answering(["who is the king ?"], rag.asking(max_tokens=2, num_beams=1))
    loop.step()
    assert read == []
    loop.step()
    in_a_slice = len(read)
    assert 1 <= in_a_slice < 12
    loop.drop(0)
    assert loop.live == []
    assert loop.step() == []
    assert len(read) == in_a_slice
    torch.testing.assert_close(
        torch.tensor(rag.answer("who is the king ?", max_tokens=2).log_prob),
        torch.tensor(
            Rag(FakeRetriever(found), Alone(generator), k=60).answer("who is the king ?", max_tokens=2).log_prob
        ),
        rtol=0,
        atol=1e-5,
    )
