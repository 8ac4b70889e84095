"""Conditions as texts: what is read, what is refused, and that a tree's text is read as the same tree."""

import random

import pytest

from latentrag.conditions import (
    And,
    Compare,
    In,
    IsNull,
    Like,
    Not,
    Or,
    Value,
    both,
    condition_of,
    moment_of,
    renamed,
)
from latentrag.errors import InputError
from latentrag.types import Passage, Scalar
from tests.conditions import drawn, holds

A, B, C = (Compare(name, "=", Value.of(1)) for name in "abc")
BETWEEN = And((Compare("a", ">=", Value.of(1)), Compare("a", "<=", Value.of(2))))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a = 1", A),
        ("a == 1", A),
        ("a <> 1", Compare("a", "!=", Value.of(1))),
        ("A.b_c >= -2.5e3", Compare("A.b_c", ">=", Value.of(-2500.0))),
        ("a = TRUE", Compare("a", "=", Value.of(True))),
        ("a = 'x''y'", Compare("a", "=", Value.of("x'y"))),
        ("größe = 1", Compare("größe", "=", Value.of(1))),
        ('"a ""b"" and" = 1', Compare('a "b" and', "=", Value.of(1))),
        ("a LIKE 'x%'", Like("a", "x%")),
        ("a not like 'x%'", Not(Like("a", "x%"))),
        ("a in (1, 'x', false)", In("a", (Value.of(1), Value.of("x"), Value.of(False)))),
        ("a not in (1)", Not(In("a", (Value.of(1),)))),
        ("a is null", IsNull("a")),
        ("a is not null", Not(IsNull("a"))),
        ("a between 1 and 2 and b = 1", And((BETWEEN, B))),
        ("a not between 1 and 2", Not(BETWEEN)),
        ("a = 1 or b = 1 and c = 1", Or((A, And((B, C))))),
        ("(a = 1 or b = 1) and c = 1", And((Or((A, B)), C))),
        ("not a = 1 and b = 1", And((Not(A), B))),
        ("not (a = 1 and b = 1)", Not(And((A, B)))),
        ("(a=1)and(b=1)", And((A, B))),
        ("\n a\t=\r\n1 ", A),
    ],
)
def test_what_is_read(text, tree) -> None:
    assert condition_of(text) == tree
    assert condition_of(tree) is tree


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("a", 'ends after "a"; needed =, !='),
        ("a =", "ends after \"=\"; needed a 'text', a number, true or false"),
        ("a = b", 'has "b" after "="; needed a \'text\', a number, true or false; texts are in single quotes'),
        ('a = "b"', "texts are in single quotes"),
        ("a = null", 'has "null" after "="; needed'),
        ("1 = a", 'has "1"; needed the name of a field'),
        ("and = 1", 'has "and"; needed the name of a field'),
        ("a = 1 b = 1", "has \"b\" after \"1\"; needed 'and', 'or' or the end"),
        ("a = 1)", "needed 'and', 'or' or the end"),
        ("(a = 1", "ends after \"1\"; needed ')'"),
        ("a = 'x", "a quote that does not end"),
        ("a = 1; drop table", 'cannot be read from "; drop table" on'),
        ("a = 1 -- b", 'cannot be read from "-- b" on'),
        ("a in ()", 'has ")" after "("; needed'),
        ("a in 1", "needed =, !="),
        ("a like 1", "has 1 after like; needed a pattern"),
        ("a between 1 or 2", "needed 'and' and the upper value"),
        ("a = 1e999", "which is too large"),
        ("a is true", "needed =, !="),
        ("(" * 60 + "a = 1" + ")" * 60, "nested more than 50 deep"),
        ("not " * 60 + "a = 1", "nested more than 50 deep"),
        (" and ".join(["a = 1"] * 101), "more than 100 tests"),
        ("a = 'x'" + " " * 4000, "has 4007 characters; needed 4000 at most"),
        ("a = '\ud800'", "not valid Unicode"),
        (7, "is a int; needed a text"),
    ],
)
def test_what_is_refused(text, said) -> None:
    with pytest.raises(InputError) as caught:
        condition_of(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith("the condition ")
    assert "\n" not in str(caught.value)


def test_the_text_of_a_tree_means_the_same() -> None:
    draw = random.Random(5)
    for _ in range(300):
        tree = drawn(draw)
        again = condition_of(str(tree))
        assert str(condition_of(str(again))) == str(again)
        fields: dict[str, Scalar] = {"language": "de", "date": "2024-01-01", "year": 1984, "draft": draw.random() < 0.5}
        assert holds(tree, Passage("p1", "x", fields=fields)) == holds(again, Passage("p1", "x", fields=fields))


def test_joined_as_trees() -> None:
    """A text that closes a parenthesis that it did not open is refused before anything is joined."""
    joined = both(condition_of("a = 1"), condition_of("b = 1 or c = 1"))
    assert joined == And((A, Or((B, C))))
    assert str(joined) == "a = 1 and (b = 1 or c = 1)"
    assert both(None, A) == both(A, None) == A
    with pytest.raises(InputError):
        condition_of("b = 1) or (c = 1")


def test_other_names() -> None:
    tree = condition_of("not (a = 1 or b is null) and a like 'x'")
    assert str(renamed(tree, {"a": "z"})) == "not (z = 1 or b is null) and z like 'x'"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024", "2024-01-01T00:00:00+00:00"),
        ("2024-03", "2024-03-01T00:00:00+00:00"),
        ("2024-03-05", "2024-03-05T00:00:00+00:00"),
        ("2024-03-05T10:00:00+02:00", "2024-03-05T08:00:00+00:00"),
        ("2024-03-05 10:00", "2024-03-05T10:00:00+00:00"),
        ("2024-13", None),
        ("5 March 2024", None),
        ("0001-01-01T00:00:00+23:00", None),
        ("", None),
    ],
)
def test_when_a_date_begins(text, moment) -> None:
    found = moment_of(text)
    assert (found and found.isoformat()) == moment
