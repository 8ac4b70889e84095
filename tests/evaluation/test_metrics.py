import pytest

from latentrag.evaluation.metrics import (
    contains_answer,
    contains_match,
    exact_match,
    normalised,
    regex_match,
    token_f1,
)


def test_normalised() -> None:
    assert normalised(" The  Beatles' (1960s) album, a ") == "beatles 1960s album"
    assert normalised("theatre anthem") == "theatre anthem"


def test_exact_match() -> None:
    assert exact_match("the Eiffel Tower.", ["Big Ben", "Eiffel tower"])
    assert not exact_match("Eiffel", ["Eiffel Tower"])


def test_regex_match() -> None:
    assert regex_match(" september 12", "Sept?(ember)?|Feb(ruary)?")
    assert not regex_match("in September", "Sept?(ember)?")


def test_contains_answer() -> None:
    assert contains_answer("It is in Paris, France.", ["paris"])
    assert not contains_answer("Parisian life", ["Paris"])
    assert not contains_answer("anything", ["the", ""])


def test_token_f1() -> None:
    # The normalised words: {eiffel, tower, paris} against {eiffel, tower}: P = 2/3, R = 1.
    assert token_f1("the Eiffel Tower, Paris", ["Big Ben", "Eiffel tower"]) == pytest.approx(0.8)
    # Words count as often as they come: one of two against one of three.
    assert token_f1("la la", ["la di da"]) == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert token_f1("Rome", ["Paris"]) == 0
    assert (token_f1("", ["the"]), token_f1("", ["Paris"]), token_f1("x", [])) == (1, 0, 0)


def test_contains_match() -> None:
    assert contains_match("It was in SEPTEMBER, 1912", r"sept?(ember)?,\s*1912")
    assert not contains_match("It was in 1912", "sept")
