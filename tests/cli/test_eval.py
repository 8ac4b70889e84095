"""eval and compare, with a real tiny model."""

import json
import os
import re
import shutil
from typing import Any

import pytest

import latentrag
from tests.cli.conftest import QUESTION, change_weights, cli

ROWS: list[dict[str, Any]] = [
    {"id": "f", "question": QUESTION, "answer": ["Beethoven", "Ludwig"], "title": "fidelio"},
    {"id": "e", "question": "Who wrote Emma?", "answer": ["Austen"], "title": "emma"},
    {"id": "p", "question": "What is the capital of France?", "answer": ["Paris"], "title": "paris"},
    {"id": "t", "question": "Which city is it?", "answer_regex": "Rome|Tokyo"},
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def measure(data, model, memory):
    def run(*arguments: object):
        return cli("eval", data, "-m", model, "-i", memory, *arguments)

    return run


def test_rows_are_the_library_s_answers_and_scores(measure, model, memory, tmp_path) -> None:
    out = tmp_path / "run.jsonl"
    done = measure("--json", "--out", out, "--batch-size", 3)
    assert (done.code, done.stderr) == (0, "")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    rag = latentrag.load(model, memory=memory)
    for row, given in zip(rows, ROWS, strict=True):
        answer = rag.answer(row["x"])
        assert row["text"] == answer.text.strip()
        # Rows of a batch are padded, which changes the last bits of float32 sums.
        assert row["log_prob"] == pytest.approx(answer.log_prob, abs=1e-4)
        if "answer" in given:
            score = rag.score(row["x"], given["answer"][0])
            assert (row["num_tokens"], row["log_likelihood"]) == (
                score.num_tokens,
                pytest.approx(score.log_likelihood, abs=1e-4),
            )
            found = rag.retriever.retrieve([row["x"]], 4).passages[0]
            assert row["title_rank"] == [passage.title for passage in found].index(given["title"]) + 1
    record = done.json
    assert record["examples"] == 4
    # The memory holds four passages, and the generator reads three.
    assert [name for name in record["metrics"] if name.startswith("recall")] == ["recall@1", "recall@3"]
    assert record["metrics"]["exact_match"]["num_examples"] == 4
    assert (record["settings"]["k"], record["settings"]["depth"]) == (3, 4)
    assert record["settings"]["options"]["num_beams"] == 3
    assert json.loads(out.with_suffix(".json").read_text()) == record


@pytest.mark.parametrize(
    "row",
    [
        {"id": "long", "question": "Who wrote " + "the opera " * 80 + "?", "answer": "a"},
        {"id": "long", "question": QUESTION, "answer": "one two three " * 60},
        {
            "id": "long",
            "question": QUESTION,
            "answer": "a",
            "messages": [{"role": "system", "content": "the opera " * 80}],
        },
    ],
)
def test_rows_that_are_too_long_are_known_before_the_first_answer(data, model, memory, tmp_path, row) -> None:
    rows = tmp_path / "long.jsonl"
    rows.write_text(data.read_text() + json.dumps(row) + "\n")
    asked = ["eval", rows, "-m", model, "-i", memory, "--out", tmp_path / "run.jsonl", "--json"]
    refused = cli(*asked)
    assert refused.code == 2
    last = refused.stderr.splitlines()[-1]
    assert "long.jsonl: 1 of 5 examples (long: " in last
    assert last.endswith("cannot be used; correct them or pass --skip-bad")
    assert not list(tmp_path.glob("run.*"))
    done = cli(*asked, "--skip-bad")
    assert done.json["metrics"]["exact_match"]["num_examples"] == len(ROWS)
    assert "they are left out" in done.stderr


def test_the_model_may_come_first(measure, data, model, memory) -> None:
    assert cli("eval", model, data, "-i", memory, "--json").json == measure("--json").json
    assert "got the models m and " in cli("eval", "m", data, "-m", model, "-i", memory).error()
    assert "got 3 names (a b c); needed one file of questions" in cli("eval", "a", "b", "c").error()


def test_what_people_see(measure) -> None:
    done = measure("--beams", 1, "--limit", 3)
    assert (done.code, done.stderr) == (0, "")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0].split() == ["mean", "95", "%", "interval", "questions", "measure"]
    assert re.fullmatch(r" *\d+\.\d % +\[\d+\.\d, \d+\.\d\] +3 +recall at 1", next(x for x in lines if "recall" in x))
    assert re.fullmatch(r" *-\d+\.\d{3} nats +none below 20 +3 +log p per answer", lines[-1])
    assert all(len(line) <= 80 for line in lines)


def test_closed_book_and_compare(measure, tmp_path) -> None:
    book, closed = tmp_path / "book.jsonl", tmp_path / "closed.jsonl"
    assert measure("--out", book).code == 0
    assert measure("--out", closed, "--closed-book").code == 0
    done = cli("compare", book, closed)
    assert (done.code, done.stderr) == (0, "")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert len(lines) == 4
    assert all(len(line) <= 80 for line in lines)
    record = cli("compare", book, closed, "--json").json
    assert list(record["metrics"]) == ["exact_match", "f1", "log_likelihood_per_answer"]
    each = record["metrics"]["log_likelihood_per_answer"]
    assert lines[-1].split()[:3] == [f"{each['ours']:.3f}", f"{each['theirs']:.3f}", f"{each['difference']:+.3f}"]
    assert "only in" not in cli("compare", book, book).stdout
    assert measure("--out", tmp_path / "two.jsonl", "--limit", 2).code == 0
    assert "2 are only in" in cli("compare", book, tmp_path / "two.jsonl").error()


def test_control_c_says_how_to_go_on(measure, tmp_path, monkeypatch) -> None:
    from latentrag.rag import Rag

    search, calls = Rag.search, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return search(*arguments, **options)

    out = tmp_path / "run.jsonl"
    monkeypatch.setattr(Rag, "search", interrupted)
    done = measure("--out", out, "--batch-size", 1)
    assert (done.code, done.stdout) == (130, "")
    assert done.stderr.splitlines() == [
        f"{out} has the rows so far; the same command continues from there",
        "interrupted",
    ]
    assert len(out.read_text().splitlines()) == 2
    assert measure("--out", out, "--batch-size", 1).code == 0
    assert len(calls) == 5


def test_the_questions_are_not_replaced_by_a_report(model, memory, tmp_path) -> None:
    questions = tmp_path / "webq.json"
    questions.write_text(json.dumps(ROWS))
    refused = cli("eval", questions, "-m", model, "-i", memory, "--out", tmp_path / "webq.jsonl")
    assert "webq.json is not the settings file of an evaluation; name another file" in refused.error()
    assert json.loads(questions.read_text()) == ROWS
    assert not (tmp_path / "webq.jsonl").exists()


def test_a_memory_made_anew_under_the_same_path_is_not_mixed_in(model, encoder, data, files, tmp_path) -> None:
    path, command = tmp_path / "m.lance", ["eval", data, "-m", model, "--out", tmp_path / "run.jsonl", "-i"]
    assert cli("index", "add", path, files, "--encoder", encoder).code == 0
    assert cli(*command, path).code == 0
    shutil.copytree(path, tmp_path / "copy.lance")
    shutil.rmtree(path)
    assert cli("index", "add", path, files, "--encoder", encoder).code == 0
    assert "run.jsonl was begun with memory_identity=" in cli(*command, path).error()
    shutil.rmtree(path)
    (tmp_path / "copy.lance").rename(path)
    assert cli(*command, path).code == 0


def test_a_model_that_has_changed_is_not_mixed_in(measure, model, memory, data, tmp_path) -> None:
    out, copy = tmp_path / "run.jsonl", shutil.copytree(model, tmp_path / "model")
    command = ["eval", data, "-m", copy, "-i", memory, "--out", out]
    assert cli(*command).code == 0
    os.utime(copy / "latentrag.json")
    assert cli(*command).code == 0
    change_weights(copy / "generator")
    assert "begun with model_files=" in cli(*command).error()
    assert measure("--out", tmp_path / "other.jsonl").code == 0
    assert "begun with k=3, this run has 2" in measure("--out", tmp_path / "other.jsonl", "-k", 2).error()


def test_bad_input(measure, data, tmp_path, model, memory) -> None:
    data.write_text(data.read_text() + '{"question": "who?"}\n')
    assert "1 of 5 rows cannot be used (line 5: no answer); correct them or pass --skip-bad" in measure().error()
    done = measure("--skip-bad", "--json", "--limit", 1)
    assert done.code == 0
    (warning,) = done.stderr.splitlines()
    assert "1 of 5 rows cannot be used (line 5: no answer); they are left out" in warning
    assert done.json["examples"] == 1
    assert "k=50 exceeds the memory's 4 passages" in measure("--skip-bad", "-k", 50).stderr
    assert "does not end with .jsonl" in measure("--skip-bad", "--out", tmp_path / "run").stderr
    assert "No such file" in cli("eval", tmp_path / "none.jsonl", "-m", model, "-i", memory).error()
    data.write_text(json.dumps({"id": "long", "question": "who " * 100, "answer": "a"}) + "\n")
    error = measure().error()
    assert "(long: the question and its prompt are 106 tokens, the generator reads 64" in error
    assert "tokens" in error
