"""Passages that come with a question, in the layouts that datasets have."""

import json

import pytest

from latentrag.errors import DataError
from latentrag.options import RowOptions
from latentrag.training.given import NoPassagesError, given_ids, given_passages
from latentrag.training.tasks import read_task
from latentrag.types import Passage, Question

TWO = (Passage("n#0", "one", "T"), Passage("n#1", "two three", "U"))


@pytest.mark.parametrize(
    ("value", "expected", "marked"),
    [
        ([{"title": "T", "text": "one"}, {"title": "U", "text": "two three"}], TWO, ()),
        ([["T", ["one"]], ["U", ["two", "three "]]], TWO, ()),
        ({"title": ["T", "U"], "sentences": [["one"], ["two", "three"]]}, TWO, ()),
        (["one", " ", "two three"], (Passage("n#0", "one"), Passage("n#2", "two three")), ()),
        ("one", (Passage("n#0", "one"),), ()),
        (
            {"passage_text": ["one", "two"], "is_selected": [0, 1], "url": ["a", "b"]},
            (Passage("n#0", "one"), Passage("n#1", "two")),
            ("n#1",),
        ),
        ([{"id": 7, "passage_text": "one", "selected": 1}], (Passage("7", "one"),), ("7",)),
        ([{"text": "one", "gold": True}, {"text": "two"}], (Passage("n#0", "one"), Passage("n#1", "two")), ("n#0",)),
    ],
)
def test_layouts(value, expected, marked) -> None:
    assert given_passages(value, name="n") == (expected, marked)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "nothing there"),
        (3, "a int"),
        ([], "no passage that is not blank"),
        ([" "], "no passage that is not blank"),
        ([3], "a passage is a int"),
        ([{"text": 3}], "the text of a passage is a int"),
        ([{"title": "T"}], "the text of a passage is a NoneType"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], "the same id"),
    ],
)
def test_no_passages(value, problem) -> None:
    with pytest.raises(NoPassagesError, match=problem):
        given_passages(value, name="n")


def test_ids() -> None:
    assert given_ids(["a#1", 7, "a#1"]) == ("a#1", "7")
    assert given_ids("a") == ("a",)
    bad: object
    for bad in ([], [True], [None], None, {}):
        with pytest.raises(NoPassagesError):
            given_ids(bad)


def test_rows(tmp_path) -> None:
    rows = [
        {"id": "a", "question": "q", "answer": "b", "ctx": {"found": [{"text": "z", "selected": 1}, {"text": "y"}]}},
        {"id": "b", "question": "q", "answer": "b", "ctx": {"found": [{"text": "x"}]}, "passage_ids": ["b#0"]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_task(path, RowOptions(), passages_from="ctx.found")
    assert [(z.id, z.text) for z in Question.of(first.question).passages] == [("a#0", "z"), ("a#1", "y")]
    assert (first.passages, second.passages) == (("a#0",), ("b#0",))
    assert read_task(path, RowOptions())[0].question == "q"
    assert read_task(path, RowOptions(skip_bad=True), passages_from="id:passage_ids")[0].given_ids == ("b#0",)
    with pytest.raises(DataError, match=r"2 of 2 rows .*line 1: no passages in its field 'none': nothing"):
        read_task(path, RowOptions(), passages_from="none")
