"""Where sentences begin and end."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from latentrag.sentences import sentences, without_part


def cut(text: str, **options: int) -> list[str]:
    return [text[start:end] for start, end in sentences(text, **options)]


def test_sentences_of_several_languages():
    assert cut("Mr. Ames sails. He reads!  Does he?\nYes.") == ["Mr. Ames sails.", "He reads!", "Does he?", "Yes."]
    assert cut("서울은 한국의 수도이다. 부산은 항구 도시다.") == ["서울은 한국의 수도이다.", "부산은 항구 도시다."]
    assert cut("我爱北京。你呢？我也是。") == ["我爱北京。", "你呢？", "我也是。"]
    assert cut("no full stop at all") == ["no full stop at all"]
    assert cut("") == cut(" \n\t ") == []


def test_offsets_count_characters_beyond_the_basic_plane_once():
    assert cut("😀 One 𝔸. Two 😀. Three.") == ["😀 One 𝔸.", "Two 😀.", "Three."]
    assert cut("a \ud800 b. C d.") == ["a \ud800 b.", "C d."]


def test_many_sentences_are_taken_together():
    text = " ".join(f"Sentence {number}." for number in range(10))
    assert [len(part.split(". ")) for part in cut(text, most=4)] == [3, 3, 3, 1]
    assert len(cut("A b. " * 1000)) <= 64


@given(st.text())
def test_sentences_are_in_order_and_hold_all_that_is_seen(text):
    spans = sentences(text)
    assert all(start < end for start, end in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())


def test_a_text_without_one_of_its_sentences():
    text = "One. Two. Three."
    assert [without_part(text, span) for span in sentences(text)] == ["Two. Three.", "One. Three.", "One. Two."]
    assert without_part("One.", (0, 4)) == ""
