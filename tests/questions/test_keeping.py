"""Pairs as they are written, and which questions are nearly the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentrag.questions.keeping import NEAR, Kept, Pair, fault_of, is_answered, parsed, trigrams


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("Question: Who sails? Answer: Ames", Pair("Who sails?", "Ames")),
        ("Who sails? Answer: Ames.", Pair("Who sails?", "Ames")),
        ("Question: Who\nsails?\n\nAnswer:  the  cook \nBecause it is so.", Pair("Who sails?", "the cook")),
        ("Here is one:\nQuestion: Who sails? Answer: Ames", Pair("Who sails?", "Ames")),
        ("Where is it? Answer: St. Louis", Pair("Where is it?", "St. Louis")),
        ("누가 배를 모나요? Answer: 선장", Pair("누가 배를 모나요?", "선장")),
        ("Who sails?", None),
        ("Answer: Ames", None),
        ("Who sails? Answer:", None),
        ("Who sails? Answer: the", None),
        ("Who sails? Answer: Question: Who?", None),
        ("", None),
    ],
)
def test_what_is_a_pair(text, pair):
    assert parsed(text) == pair


def test_faults():
    passage = "The cook of the Petrel is Ames. 선장은 서울에 산다."
    assert fault_of(Pair("Who cooks?", "ames"), passage) is None
    assert fault_of(Pair("Who cooks?", "Am"), passage) == "answer_not_in_passage"
    assert fault_of(Pair("Is Ames the cook?", "Ames"), passage) == "answer_in_question"
    assert fault_of(Pair("선장은 어디에 사나요?", "서울"), passage) is None  # a particle clings to it


def test_answers_are_compared_after_normalisation():
    assert is_answered(Pair("?", "The cook"), "cook.")
    assert not is_answered(Pair("?", "the cook"), "a cook's mate")
    assert not is_answered(Pair("?", "the cook"), "")


def test_questions_that_are_nearly_the_same():
    kept = Kept()
    kept.add("In which year was the harbour of Narvik built?")
    assert kept.is_near("In what year was the harbour of Narvik built?")
    assert kept.is_near("in which YEAR was the harbour of narvik built")
    assert kept.is_near("In which year was Narvik's harbour built?")
    assert not kept.is_near("In which year was the harbour of Bergen built?")
    assert not kept.is_near("Who built the harbour of Narvik?")
    assert not kept.is_near("누가 나르비크 항구를 지었나요?")
    kept.add("누가 나르비크 항구를 지었나요?")
    assert kept.is_near("누가 나르비크 항구를 지었나?")
    assert not Kept().is_near("a")


@given(st.lists(st.text("abc ?", max_size=12), max_size=12), st.text("abc ?", max_size=12))
def test_each_is_compared_with_all_others(questions, asked):
    kept = Kept()
    for question in questions:
        kept.add(question)
    ours, others = trigrams(asked), map(trigrams, questions)
    assert kept.is_near(asked) == any(len(ours & other) >= NEAR * len(ours | other) for other in others)
    assert len(kept) == len(questions)
