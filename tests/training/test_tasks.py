"""Tasks: rows of every dataset that they are for, labels, and files that do not fit."""

import json

import pytest

from latentrag.errors import DataError, InputError
from latentrag.options import RowOptions
from latentrag.training.data import Example
from latentrag.training.labels import Label, label_of, with_wordings
from latentrag.training.tasks import TASKS, read_task
from latentrag.types import Turn


@pytest.fixture
def read(tmp_path):
    def run(rows, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        said: list[str] = []
        return read_task(path, RowOptions(**options), say=said.append), said

    return run


CLAIMS = [
    {"id": 1, "claim": "It rains.", "label": "SUPPORTS", "titles": ["Rain", "Sun"], "evidence": [["Rain"], ["Sun"]]},
    {"id": "b", "claim": "It snows.", "label": "refutes", "titles": ["Snow"], "evidence": ["a sentence"]},
    {"id": "c", "claim": "It hails.", "label": "NOT_ENOUGH_INFO", "evidence_docs": ["7"]},
]


def test_claims(read) -> None:
    (found, said) = read(CLAIMS, task="fact-verification-3way")
    all_three = ("true", "false", "unknown")
    assert found.rows == (
        Example("1", "It rains.", ("true",), ("Rain", "Sun"), choices=all_three, title_sets=(("Rain",), ("Sun",))),
        Example("b", "It snows.", ("false",), ("Snow",), choices=all_three),
        Example("c", "It hails.", ("unknown",), choices=all_three, passages=("7",)),
    )
    assert said == []


FEVER = [
    [[92206, 104971, "Nikolaj_Coster-Waldau", 7], [92206, 104971, "Fox_Broadcasting_Company", 0]],
    [[92207, None, "Soul_Food_-LRB-film-RRB-", 3], [92207, None, "Soul_Food_-LRB-film-RRB-", 4]],
]


@pytest.mark.parametrize(
    ("evidence", "sets"),
    [
        (FEVER, (("Nikolaj Coster-Waldau", "Fox Broadcasting Company"), ("Soul Food (film)",))),
        ([[1, 2, "Star_Wars-COLON-_X_-LSB-1-RSB-", 7]], (("Star Wars: X [1]",),)),
        ([["Rain", "Sun"], ["Sun"]], (("Rain", "Sun"), ("Sun",))),
        ([["Rain", 0], ["Sun", 3]], (("Rain",), ("Sun",))),
        ([["X", "Y", "Z"]], (("X", "Y", "Z"),)),
        ([[[269414, None, None, None]]], ()),
        ([["Lima", "capital of", "Peru"]], ()),
        ([["Lima", "capital of", "Peru"], ["Peru", "continent", "America"]], ()),
        ([[["a", "b"]]], ()),
        ([[{"page": "a"}]], ()),
        ([[]], ()),
        ([], ()),
        (["a sentence"], ()),
        ("a sentence", ()),
    ],
)
def test_titles_in_evidence(read, evidence, sets) -> None:
    titles = ("X", "Y", "Z")
    (example,), _ = read([{"question": "q", "answer": "a", "titles": titles, "evidence": evidence}])
    assert example.title_sets == sets
    assert example.titles == (tuple(dict.fromkeys(each for of_set in sets for each in of_set)) or titles)


def test_two_way_leaves_the_third_label_out_and_says_so(read) -> None:
    found, (line,) = read(CLAIMS, task="fact-verification-2way")
    assert [example.answers for example in found] == [("true",), ("false",)]
    assert "1 rows with the label NOT_ENOUGH_INFO are no part of the task fact-verification-2way" in line


def test_kilt_s_fever(read) -> None:
    rows = [
        {"id": "k", "input": "It rains.", "output": [{"answer": label, "provenance": [{"wikipedia_id": "1"}]}]}
        for label in ("SUPPORTS", "REFUTES")
    ]
    found, _ = read([rows[0], {**rows[1], "id": "l"}], task="fact-verification-2way")
    assert [(each.answers, each.passage_sets) for each in found] == [(("true",), (("1",),)), (("false",), (("1",),))]


def test_other_words_for_labels(read) -> None:
    found, _ = read(CLAIMS, task="fact-verification-2way", labels=("supports=yes, it is", "REFUTES=no"))
    assert found[0].choices == ("yes, it is", "no")


@pytest.mark.parametrize("value", [["yes", "no"], [True, False], ["Yes", "NO"], [["yes"], ["no"]]])
def test_yes_and_no(read, value) -> None:
    found, _ = read([{"question": f"q{i}", "answer": each} for i, each in enumerate(value)], task="yes-no")
    assert [(each.answers, each.choices) for each in found] == [(("yes",), ("yes", "no")), (("no",), ("yes", "no"))]


def test_a_classification_of_one_s_own(read) -> None:
    rows = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
    found, _ = read(rows, task="classification", labels=("1=pleased", "0=cross"))
    assert [each.answers[0] for each in found] == ["pleased", "cross"]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["one", "two"], "answer": 1},
        {"question": "q", "choices": ["one", "two"], "answer": "two"},
        {"question": "q", "options": {"A": "one", "B": "two"}, "answer": "one thing", "answer_idx": "B"},
        {"question": "q", "choices": {"text": ["one", "two"], "label": ["1", "2"]}, "answerKey": "2"},
        {
            "question": {"stem": "q", "choices": [{"label": "A", "text": "one"}, {"label": "B", "text": "two"}]},
            "answerKey": "B",
        },
        {"question": "q", "options": ["one", "two"], "answer": "B"},
        {"ctx": "q", "endings": ["one", "two"], "label": "1"},
    ],
)
def test_choices(read, row) -> None:
    found, _ = read([row], task="choice")
    assert found.rows == (Example("1", "q", ("two",), choices=("one", "two")),)


TWO = ["one", "two"]


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        ({"text": TWO, "label": ["1", "2"]}, 2),
        ({"text": TWO, "label": [1, 2]}, "2"),
        ({"text": TWO, "label": [1, 2]}, 2),
        ({"text": TWO, "label": ["1", "2"]}, "B"),
        ({"1": "one", "2": "two"}, 2),
        ({"A": "one", "B": "two"}, "b"),
        ([{"label": 1, "text": "one"}, {"label": 2, "text": "two"}], "2"),
        ([{"text": "one"}, {"text": "two"}], 1),
        (TWO, 1),
        (TWO, "1"),
        (TWO, "B"),
        (TWO, ["two"]),
    ],
)
def test_an_answer_names_a_key_or_without_keys_a_place(read, choices, answer) -> None:
    """In whatever field it is."""
    (named,), _ = read([{"question": "q", "choices": choices, "answer": answer}], task="choice")
    (keyed,), _ = read([{"question": "q", "choices": choices, "answerKey": answer}], task="choice")
    rows = [{"question": "q", "choices": choices, "answer": "one", "mine": {"gold": answer}}]
    (other,), _ = read(rows, task="choice", answers_from="mine.gold")
    assert named.answers == keyed.answers == other.answers == ("two",)


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        ({"text": TWO, "label": ["1", "2"]}, 0),
        ({"text": TWO, "label": [1, 2]}, "3"),
        ({"A": "one", "B": "two"}, 1),
        ({"F": "one", "G": "two"}, "A"),
        (TWO, 2),
        (TWO, -1),
        (TWO, True),
    ],
)
def test_an_answer_that_names_no_choice(read, choices, answer) -> None:
    row = {"question": "q", "choices": choices, "answer": answer}
    with pytest.raises(DataError, match="no answer"):
        read([row], task="choice")
    with pytest.raises(DataError, match="is not among its choices|an answer is a bool, not text"):
        read([row], task="choice", answers_from="answer")


def test_choices_that_are_numbers(read) -> None:
    """An answer key is a key; an answer is a text first."""
    choices = {"text": ["2", "1"], "label": ["1", "2"]}
    (keyed,), _ = read([{"question": "q", "choices": choices, "answerKey": "1"}], task="choice")
    (named,), _ = read([{"question": "q", "choices": choices, "answer": "1"}], task="choice")
    row = {"question": "q", "choices": choices, "given": {"answerKey": 1}}
    (other,), _ = read([row], task="choice", answers_from="given.answerKey")
    assert (keyed.answers, named.answers, other.answers) == (("2",), ("1",), ("2",))


def test_choices_in_a_conversation_keep_the_turns_before(read) -> None:
    turns = [{"role": "user", "content": "before"}, {"role": "assistant", "content": "that"}]
    asked = {"role": "user", "content": "q"}
    history = (Turn("user", "before"), Turn("assistant", "that"))
    for row in ({"question": "q", "messages": turns}, {"messages": [*turns, asked]}):
        found, _ = read([{**row, "choices": ["yes", "no"], "answer": "B"}], task="choice")
        assert found.rows == (Example("1", "q", ("no",), choices=("yes", "no"), history=history),)
    said = {"role": "assistant", "content": "B"}
    found, _ = read([{"messages": [*turns, asked, said], "choices": {"A": "yes", "B": "no"}}], task="choice")
    assert found.rows == (Example("1", "q", ("no",), choices=("yes", "no"), history=history),)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": ["a", "b"], "passage_ids": ["p#1"]},
        {"question": "q", "answer": ["", " ", "a"]},
        {"input": "q", "output": [{"answer": "a"}]},
    ],
)
def test_questions_to_ask(read, row) -> None:
    found, _ = read([{"category": "C", **row}], task="question-generation", prefix_field="category")
    assert (found[0].x, found[0].answers) == ("C: a", ("q",))


def test_answers_from_a_field_within_another(read) -> None:
    rows = [{"question": "q", "answer": {"2016": ["a", "b"], "2020": ["c"]}}]
    assert read(rows, answers_from="answer.2020")[0][0].answers == ("c",)
    with pytest.raises(DataError, match="no answer"):
        read(rows, answers_from="answer.2026")
    with pytest.raises(DataError, match="its answer 'c' is not among its choices"):
        read([{**rows[0], "choices": ["a", "b"]}], task="choice", answers_from="answer.2020")
    with pytest.raises(InputError, match="--answers-from has no effect, since the task question-generation asks"):
        read(rows, task="question-generation", answers_from="answer.2020")


@pytest.mark.parametrize(
    ("task", "rows", "problem"),
    [
        ("open-qa", CLAIMS, "does not fit the task open-qa: 3 of 3 rows cannot be used (line 1: no question"),
        ("choice", CLAIMS, "does not fit the task choice: 3 of 3 rows"),
        (
            "yes-no",
            CLAIMS,
            "the task yes-no: 3 of 3 rows cannot be used (line 1: its label 'SUPPORTS' is not among yes, no",
        ),
        (
            "fact-verification-3way",
            CLAIMS[:2],
            "no row with the label NOT ENOUGH INFO (found SUPPORTS 1, REFUTES 1)",
        ),
        (
            "fact-verification-3way",
            [*CLAIMS, {"claim": "c", "label": "MAYBE"}],
            "(line 4: its label 'MAYBE' is not among SUPPORTS, ",
        ),
        ("choice", [{"question": "q", "choices": ["a"], "answer": "a"}], "1 choices, needed two or more"),
        ("choice", [{"question": "q", "choices": ["a", "b"], "answer": "c"}] * 2, "line 1: no answer"),
        ("choice", [{"question": "q", "choices": {"text": ["a", "b"], "label": [1, 2, 3]}, "answer": 3}], "no answer"),
    ],
)
def test_files_that_do_not_fit(read, task, rows, problem) -> None:
    with pytest.raises(DataError) as caught:
        read(rows, task=task)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "labels", "problem"),
    [
        ("open-qa", ("a=b",), "--label has no effect, since the task open-qa has no labels"),
        ("parroting", (), "task 'parroting' is unknown; needed one of open-qa, "),
        ("classification", (), "has no labels of its own; give two or more with --label"),
        ("classification", ("a=b",), "give two or more"),
        ("classification", ("a=b", "c=b"), "two labels of the task classification have the same wording"),
        (
            "fact-verification-2way",
            ("MAYBE=b",),
            "names no label of the task fact-verification-2way",
        ),
        ("fact-verification-2way", ("SUPPORTS",), "needed NAME=WORDING"),
        ("fact-verification-2way", ("SUPPORTS=a", "support=b"), "--label support is given twice"),
    ],
)
def test_labels_that_cannot_be(read, task, labels, problem) -> None:
    with pytest.raises(InputError) as caught:
        read(CLAIMS, task=task, labels=labels)
    assert problem in str(caught.value)


def test_names_of_labels() -> None:
    labels = TASKS["fact-verification-3way"].labels
    for name in ("NOT ENOUGH INFO", "not_enough_info", "NotEnoughInfo", "nei"):
        assert label_of(name, labels) == labels[2]
    assert label_of("maybe", labels) is None
    assert with_wordings((), ("a=b = c", "d=e"), task="t")[0] == Label("a", "b = c")
    assert [each.name for each in with_wordings((), (">=1=high", "<1=low"), task="t")] == [">=1", "<1"]
    assert with_wordings((), ("so>=b", "d=e"), task="t")[0] == Label("so>", "b")


@pytest.mark.parametrize(
    "names",
    [
        ("C", "C++", "C#"),
        ("1", "-1"),
        ("1-5", "15", "6-10"),
        ("+", "-", "+/-", "_"),
        ("<1", ">=1", "1"),
        ("हाँ", "हो"),
        ("क", "कि", "की"),
        ("🙂", "🙁", "❤️"),
        ("good", "good!", "good?"),
        ("A", "A-", "A+"),
        ("x²", "x2"),
    ],
)
def test_signs_and_marks_in_names_of_labels_count(read, names) -> None:
    rows = [{"text": f"t{i}", "label": name} for i, name in enumerate(names)]
    found, _ = read(rows, task="classification", labels=[f"{name}=word {i}" for i, name in enumerate(names)])
    assert [each.answers for each in found] == [(f"word {i}",) for i in range(len(names))]
    labels = [Label(name, name) for name in names[1:]]
    assert label_of(names[0], labels) is None


def test_names_of_labels_that_count_as_the_same() -> None:
    for name, other in (
        ("Not-Enough_info ", "not enough info"),
        ("STRASSE", "Straße"),
        ("cafe\u0301", "CAF\u00c9"),
        ("जी_हाँ", "जी हाँ"),
        ("class-1", "Class 1"),
    ):
        assert label_of(name, [Label(other, "w")]), name
        with pytest.raises(InputError) as caught:
            with_wordings((), (f"{name}=a", f"{other}=b"), task="t")
        problem = f"the task t has the labels {name.strip()!r} and {other!r}, which count as the same name; needed"
        assert str(caught.value).startswith(problem)
    labels = (Label("yes", "yes", ("true",)), Label("TRUE", "it is"))
    with pytest.raises(InputError, match="the labels 'true' and 'TRUE', which count as the same name"):
        with_wordings(labels, (), task="t")


def test_every_task_names_what_there_is() -> None:
    from latentrag.evaluation.metrics import DECODERS, METRICS
    from latentrag.training.formats import FORMATS

    for name in TASKS:
        task = TASKS[name]
        assert set(task.metrics) <= set(METRICS)
        assert set(task.formats) <= set(FORMATS)
        assert task.decoder in {*DECODERS, None}
        assert all(METRICS[metric] for metric in task.metrics)
