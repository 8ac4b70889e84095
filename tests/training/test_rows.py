"""Rows that cannot be trained on are named, cut or left out, whatever makes them so."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentrag.errors import DataError, InputError
from latentrag.training.data import Example
from latentrag.training.rows import reads, shortened, usable
from latentrag.types import Question, Turn

GOOD = Example("good", "who?", ("me", "I"))


def at_most(number: int) -> Any:
    """A check of the number of words, as a tokenizer's."""

    def check(texts: Sequence[str]) -> None:
        for text in texts:
            if not text.strip():
                raise InputError("empty")
            if len(text.split()) > number:
                raise InputError(f"{len(text.split())} words, {number} at most")

    return check


def one_line(texts: Sequence[str]) -> None:
    if any("\n" in text.strip() for text in texts):
        raise InputError("a line break")


def kept(*examples: Example, said: list[str] | None = None, y: Any = one_line, **how: Any) -> tuple[Example, ...]:
    settings = {"answers": "first", "truncate": False, "skip_bad": False, **how}
    say = (said if said is not None else []).append
    return usable(examples, name="d.jsonl", question=at_most(3), y=y, say=say, **settings)


LONG = Example("long", "one two three four", ("a",))
BREAK = Example("break", "who?", ("one\ntwo", "b"))
OTHER = Example("other", "who?", ("a", "one\ntwo"))


def test_all_that_cannot_be_used_are_named_at_once() -> None:
    with pytest.raises(DataError) as caught:
        kept(GOOD, LONG, BREAK)
    assert str(caught.value) == (
        "d.jsonl: 2 of 3 examples (long: 4 words, 3 at most; break: a line break) cannot be used; correct them or pass "
        "--truncate or --skip-bad"
    )


def test_they_are_left_out() -> None:
    said: list[str] = []
    assert kept(LONG, GOOD, BREAK, skip_bad=True, said=said) == (GOOD,)
    (line,) = said
    assert line.startswith("warning: d.jsonl: 2 of 3 examples (long: ")
    assert line.endswith("they are left out")
    with pytest.raises(DataError, match="2 of 2 examples"):
        kept(LONG, BREAK, skip_bad=True)


def test_they_are_cut() -> None:
    said: list[str] = []
    found = kept(LONG, GOOD, BREAK, truncate=True, said=said)
    assert [example.x for example in found] == ["one two three", "who?", "who?"]
    assert [example.answers for example in found] == [("a",), ("me", "I"), ("one", "b")]
    (line,) = said
    assert line.endswith("they are cut")


def test_what_cannot_be_cut_can_be_left_out() -> None:
    def never(texts: Sequence[str]) -> None:
        if any(text.startswith("x") for text in texts):
            raise InputError("no")

    bad = Example("bad", "who?", ("xx",))
    with pytest.raises(DataError, match="bad: no.* cannot be used; correct them or pass --skip-bad$"):
        kept(GOOD, bad, y=never, truncate=True)
    assert kept(GOOD, bad, y=never, truncate=True, skip_bad=True) == (GOOD,)


def test_what_the_system_says_counts_and_other_turns_do_not() -> None:
    class Generator:
        def fitting(self, question: Question) -> Question:
            return question

        def check_questions(self, x: Sequence[str | Question]) -> None:
            at_most(3)([" ".join(turn.text for turn in Question.of(each).turns) for each in x])

    class Encoder:
        def check_questions(self, x: Sequence[str]) -> None:
            at_most(2)(x)

    check: Any = {"name": "d", "question": reads(Encoder(), Generator()), "y": one_line, "answers": "first"}
    said: list[str] = []
    turns = (Turn("user", "one two"), Turn("assistant", "three four"))
    told = Example("told", "who?", ("me",), history=(Turn("system", "a b c d"), *turns))
    talk = Example("talk", "who?", ("me",), history=(Turn("system", "a b"), *turns))
    with pytest.raises(DataError, match=r"1 of 3 examples \(told: 5 words, 3 at most\) cannot be used; .* --skip-bad"):
        usable([GOOD, told, talk], **check, skip_bad=False, say=said.append)
    assert usable([GOOD, told, talk], **check, skip_bad=True, say=said.append) == (GOOD, talk)
    (cut,) = usable([replace(talk, x="one two")], **check, truncate=True, skip_bad=False, say=said.append)
    assert (cut.x, cut.history) == ("one", talk.history)


def test_answers_that_are_not_learned_need_not_fit() -> None:
    assert kept(OTHER) == (OTHER,)
    with pytest.raises(DataError, match="other: a line break"):
        kept(OTHER, answers="sample")


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), min_size=1, max_size=9), st.integers(1, 6))
def test_the_longest_beginning_that_fits(words, number) -> None:
    assert shortened("  " + "  ".join(words), at_most(number)).split() == words[:number]


def test_words_stay_whole_where_there_are_any() -> None:
    def short(texts: Sequence[str]) -> None:
        if any(len(text) > 7 for text in texts):
            raise InputError("too long")

    assert shortened("two words here", short) == "two"
    assert shortened("ninety nine", short) == "ninety"
    assert shortened("東京は日本の首都です", short) == "東京は日本の首"


def test_of_many_few_are_looked_at_alone() -> None:
    calls: list[int] = []

    def check(texts: Sequence[str]) -> None:
        calls.append(len(texts))
        at_most(3)(texts)

    examples = [Example(str(number), f"question {number}", ("a",)) for number in range(2_000)]
    settings: Any = {"answers": "first", "truncate": False, "skip_bad": True, "y": one_line, "say": lambda _: None}
    assert len(usable([*examples, LONG], name="d", question=check, **settings)) == 2_000
    assert len(calls) < 30
