"""Examples from files in every format, and choices that depend on nothing but seed and epoch."""

import gzip
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentrag.errors import DataError, InputError
from latentrag.training.data import BadRow, Example, order, read_examples, target
from latentrag.training.formats import FORMATS, QUESTIONS_AND_ANSWERS, Fields, JsonRow


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "a", "question": "who?", "answer": ["me", "I"]}, Example("a", "who?", ("me", "I"))),
        ({"question": "who?", "answer": "me"}, Example("1", "who?", ("me",))),
        ({"question": "who?", "answers": ["me"], "positive_ctxs": []}, Example("1", "who?", ("me",))),
        ({"id": "t_0", "question": "who?", "golden_answers": ["me", "me"]}, Example("t_0", "who?", ("me",))),
        ({"x": "who?", "y": "me", "_id": 7}, Example("7", "who?", ("me",))),
        (
            {
                "id": "k",
                "input": "who?",
                "output": [{"provenance": [{"title": "Me"}]}, {"answer": "me"}, {"answer": "I", "provenance": []}],
            },
            Example("k", "who?", ("me", "I"), ("Me",), title_sets=(("Me",),)),
        ),
        (  # any of the pages that KILT gives is right
            {
                "input": "who?",
                "output": [
                    {"answer": "me", "provenance": [{"title": "Me"}, {"title": 7}]},
                    {"answer": "I", "provenance": [{"title": "I (pronoun)"}, {"title": "Me"}]},
                ],
            },
            Example("1", "who?", ("me", "I"), ("Me", "I (pronoun)"), title_sets=(("Me",), ("I (pronoun)", "Me"))),
        ),
        (
            {"id": "s1", "category": "LAKES", "question": "Largest", "answer": ["Caspian"], "title": "Caspian Sea"},
            Example("s1", "Largest", ("Caspian",), ("Caspian Sea",)),
        ),
        ({"question": "q", "answer": "a", "title": ["A", "", "B", "A"]}, Example("1", "q", ("a",), ("A", "B"))),
        ({"id": "c", "question": "when?", "answer_regex": "Sep|Feb"}, Example("c", "when?", (), pattern="Sep|Feb")),
    ],
)
def test_every_format(row, expected, tmp_path) -> None:
    assert read_examples(written(tmp_path / "rows.jsonl", row)).rows == (expected,)


def test_a_field_is_put_before_the_question_where_that_is_asked_for(tmp_path) -> None:
    rows = [{"category": "LAKES", "question": "Largest", "answer": "a"}, {"category": " ", "input": "x", "answer": "a"}]
    path = written(tmp_path / "rows.jsonl", *rows, {"question": "q", "answer": "a"})
    assert [example.x for example in read_examples(path)] == ["Largest", "x", "q"]
    found = read_examples(path, prefix_field="category", skip_bad=True)
    assert [example.x for example in found] == ["LAKES: Largest"]
    assert found.skipped == tuple(BadRow(line, "no text in its field 'category'") for line in (2, 3))


def test_rows_without_an_id_get_one_that_no_other_row_has(tmp_path) -> None:
    ids: list[object] = ["2", None, 4, None, None, "", None, "line 4"]
    rows = [{"question": "q", "answer": "a", **({} if id_ is None else {"id": id_})} for id_ in ids]
    found = [example.id for example in read_examples(written(tmp_path / "rows.jsonl", *rows))]
    assert found == ["2", "line 2", "4", "line line 4", "5", "6", "7", "line 4"]


def forecasts(row: JsonRow) -> Fields:
    """Rows of another package: a forecast and what came."""
    return Fields(row.get("forecast"), row.get("came"))


def test_another_format(tmp_path) -> None:
    path = written(tmp_path / "rows.jsonl", {"forecast": "it rains", "came": "sun"}, {"question": "q", "answer": "a"})
    FORMATS.add("forecasts", forecasts)
    try:
        rows = read_examples(path, formats=[*QUESTIONS_AND_ANSWERS, "forecasts"]).rows
        alone = read_examples(path, formats=["forecasts"], skip_bad=True)
    finally:
        FORMATS.remove("forecasts")
    assert rows == (Example("1", "it rains", ("sun",)), Example("2", "q", ("a",)))
    assert (alone.rows, alone.skipped) == (rows[:1], (BadRow(2, "no question"),))
    with pytest.raises(DataError, match="no question"):
        read_examples(path)
    with pytest.raises(InputError, match="row format 'forecasts' is unknown; needed one of plain, dpr"):
        read_examples(path, formats=["forecasts"])


def test_arrays_gzip_and_blank_lines(tmp_path) -> None:
    rows = [{"question": f"q{i}", "answers": [f"a{i}"]} for i in range(3)]
    expected = tuple(Example(str(i + 1), f"q{i}", (f"a{i}",)) for i in range(3))
    (tmp_path / "dpr.json").write_text("\n" + json.dumps(rows, indent=1), "utf-8")
    assert read_examples(tmp_path / "dpr.json").rows == expected
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write("\ufeff" + lines)
    found = read_examples(tmp_path / "rows.jsonl.gz")
    assert found.rows == expected
    assert (len(found), found[1], list(found)) == (3, expected[1], list(expected))
    (tmp_path / "blank.jsonl").write_text("\n\n" + lines.replace("\n", "\n\n"), "utf-8")
    assert [example.id for example in read_examples(tmp_path / "blank.jsonl")] == ["3", "5", "7"]


BAD = [
    ('{"question": "q"}', "no answer"),
    ('{"question": "q", "answer": []}', "no answer"),
    ('{"question": "q", "answer": " "}', "no answer"),
    ('{"question": "q", "answers": [3]}', "an answer is a int, not text"),
    ('{"answer": "a"}', "no question"),
    ('{"question": " ", "answer": "a"}', "no question"),
    ('{"question": ["q"], "answer": "a"}', "its question is a list, not text"),
    ('{"question": "q", "answer": "\\ud800"}', "half a character (a lone surrogate)"),
    ('{"question": "q", "answer_regex": "("}', "its answer_regex is no regular expression"),
    ('{"question": "q", "answer": "a", "id": {}}', "its id is a dict, needed text or a whole number"),
    ('{"question": "q", "answer": "a", "id": "good"}', "its id 'good' is that of line 1"),
    ("[1]", "not an object"),
    ("{", "not valid JSON in UTF-8"),
]


@pytest.mark.parametrize(("line", "problem"), BAD)
def test_bad_rows(line, problem, tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"id": "good", "question": "q", "answer": "a"}}\n{line}\n', "utf-8")
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert f"rows.jsonl: 1 of 2 rows cannot be used (line 2: {problem}); correct them or pass --skip-bad" in str(
        caught.value
    )
    found = read_examples(path, skip_bad=True)
    assert ([example.id for example in found], found.skipped) == (["good"], (BadRow(2, problem),))


@pytest.mark.parametrize("value", [None, math.nan, math.inf, 0, 5, True, "", [], {}, [None], [[]], [{}], {"a": None}])
def test_any_value_in_any_field_makes_an_example_or_a_bad_row(value, tmp_path) -> None:
    asked: dict[str, Any] = {"question": "q", "answer": "a"}
    names = "question answer answers golden_answers x y title category answer_regex id _id".split()
    rows = [{**asked, name: value} for name in names]
    rows += [{"input": "q", "output": value}, {"input": value, "output": [{"answer": "a"}]}]
    for of_output in ({"answer": value}, {"answer": "a", "provenance": value}, {"provenance": [{"title": value}]}):
        rows += [{"input": "q", "output": [of_output]}, {"input": "q", "output": [of_output, {"answer": "a"}]}]
    numbered = [{"id": f"row {n}", **row} for n, row in enumerate(rows)]
    found = read_examples(written(tmp_path / "rows.jsonl", *numbered, {**asked, "id": "good"}), skip_bad=True)
    assert len(found) + len(found.skipped) == len(rows) + 1
    assert all(example.x and (example.answers or example.pattern) for example in found)


def test_the_first_three_bad_rows_are_named_and_all_are_counted(tmp_path) -> None:
    good, bad = {"question": "q", "answer": "a"}, {"question": "q"}
    path = written(tmp_path / "rows.jsonl", *[bad if i in {3, 8, 16, 19} else good for i in range(30)])
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert "4 of 30 rows cannot be used (line 4: no answer, line 9: no answer, line 17: no answer, …)" in str(
        caught.value
    )
    assert [row.line for row in read_examples(path, skip_bad=True).skipped] == [4, 9, 17, 20]


def test_files_without_examples(tmp_path) -> None:
    (tmp_path / "empty.jsonl").write_text(" \n")
    (tmp_path / "array.json").write_text("[]")
    (tmp_path / "cut.json").write_text('[{"question": "q"')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"question": "q"}' * 100)[:-9])
    for name, problem in [
        ("empty.jsonl", "is empty"),
        ("array.json", "holds no example"),
        ("cut.json", "no whole JSON array"),
        ("cut.jsonl.gz", "not a whole gzip file"),
        ("none.jsonl", "No such file"),
        (".", "Is a directory"),
    ]:
        with pytest.raises(DataError, match=problem) as caught:
            read_examples(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"holds no example.*1 of 1 rows cannot be used \(line 1: no answer\)"):
        read_examples(written(tmp_path / "bad.jsonl", {"question": "q"}), skip_bad=True)


def test_targets() -> None:
    example = Example("a", "x", ("one", "two", "three"))
    assert {target(example, epoch=e, seed=0, choice="first") for e in range(9)} == {"one"}
    drawn = [target(example, epoch=e, seed=5, choice="sample") for e in range(3000)]
    # Binomial with p = 1/3: 1,000 ± 26; five standard deviations never happen by chance.
    assert all(abs(count - 1000) < 130 for count in Counter(drawn).values())
    assert drawn == [target(example, epoch=e, seed=5, choice="sample") for e in range(3000)]
    assert drawn != [target(example, epoch=e, seed=6, choice="sample") for e in range(3000)]
    with pytest.raises(DataError, match="evaluated, not trained on"):
        target(Example("b", "x", (), pattern="y"), epoch=0, seed=0, choice="first")
    with pytest.raises(InputError, match="choice='last'"):
        target(example, epoch=0, seed=0, choice="last")  # type: ignore[arg-type]


@given(n=st.integers(0, 50), epoch=st.integers(0, 5), seed=st.integers(0, 2**40))
def test_orders_are_permutations(n, epoch, seed) -> None:
    found = order(n, epoch=epoch, seed=seed)
    assert sorted(found) == list(range(n))
    assert found == order(n, epoch=epoch, seed=seed)


def test_orders_differ_and_are_the_same_everywhere() -> None:
    orders = {tuple(order(20, epoch=e, seed=s)) for e in range(5) for s in range(5)}
    assert len(orders) == 25
    assert order(8, epoch=1, seed=2) == [4, 6, 2, 5, 7, 1, 0, 3]  # on every machine, for good
    code = "from latentrag.training.data import *; e = Example('a', 'x', ('1', '2', '3'))\n"
    code += "print(order(8, epoch=1, seed=2), [target(e, epoch=i, seed=3, choice='sample') for i in range(9)])"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    example = Example("a", "x", ("1", "2", "3"))
    here = [target(example, epoch=i, seed=3, choice="sample") for i in range(9)]
    assert elsewhere.strip() == f"{order(8, epoch=1, seed=2)} {here}"
    with pytest.raises(InputError, match="seed=-1"):
        order(3, epoch=0, seed=-1)
