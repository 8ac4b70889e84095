"""--where in every command that retrieves, and in Python: only passages that satisfy it, and the prior is theirs."""

import json
from pathlib import Path

import pytest

import latentrag
from tests.cli.conftest import QUESTION, Ran, cli

ROWS = [
    {"id": "a", "text": "Fidelio is an opera. Beethoven wrote Fidelio.", "date": "2019-05-01", "author": "Ann"},
    {"id": "b", "text": "Emma is a novel. Austen wrote Emma.", "date": "2024-02-01T10:00", "author": "Bob"},
    {"id": "c", "text": "Rome is the capital city of Italy.", "date": "2025", "source": "manual/rome.md"},
    {"id": "d", "text": "Paris is the capital city of France.", "source": "manual/paris.md"},
]
BY_ID = ["--retrieval-only", "--by", "passage"]
NEW = "date >= '2024-01-01' and not source like 'manual/%'"


@pytest.fixture(scope="module")
def dated(tmp_path_factory, encoder) -> Path:
    folder = tmp_path_factory.mktemp("dated")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert cli("index", "add", folder / "dated.lance", folder / "rows.jsonl", "--encoder", encoder).code == 0
    return folder / "dated.lance"


@pytest.fixture
def run(model, dated, tmp_path, monkeypatch):
    """A command over that memory, in a folder with a file of questions."""
    monkeypatch.chdir(tmp_path)
    row = {"id": "q", "question": QUESTION, "answer": ["Beethoven"], "relevant": ["a"]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")

    def command(name: str, *arguments: object, stdin: str | None = None) -> Ran:
        return cli(name, *arguments, "-m", model, "-i", dated, stdin=stdin)

    return command


def ids(record) -> set[str]:
    return {source["id"] for source in record["sources"]}


def test_ask_score_classify(run) -> None:
    asked = run("ask", QUESTION, "--where", NEW, "--json").json
    assert ids(asked) == {"b"}
    assert asked["sources"][0]["prior"] == 1.0
    assert asked["sources"][0]["fields"] == {"author": "Bob", "date": "2024-02-01T10:00"}
    assert ids(run("ask", QUESTION, "-k", 9, "--where", "author is null", "--json").json) == {"c", "d"}
    pair = json.dumps({"x": QUESTION, "y": "red"})
    assert ids(run("score", "--where", NEW, "--json", stdin=pair).json) == {"b"}
    assert ids(run("classify", QUESTION, "red", "blue", "--where", "id = 'd'", "--json").json) == {"d"}
    assert ids(run("ask", QUESTION, "--retriever", "bm25", "--where", "author = 'Ann'", "--json").json) == {"a"}


def test_eval(run, tmp_path) -> None:
    arguments = ["data.jsonl", "--out", tmp_path / "run.jsonl", "--where"]
    assert run("eval", *arguments, "author = 'Ann'").code == 0
    (row,) = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert row["rank"] == 1
    assert "author = 'Ann'" in (tmp_path / "run.json").read_text()
    assert "where" in run("eval", *arguments, "author = 'Bob'").error()
    only = run("eval", "data.jsonl", *BY_ID, "--where", "author = 'Bob'", "--run-out", "found.run")
    assert only.code == 0, only.stderr
    assert [line.split()[2] for line in (tmp_path / "found.run").read_text().splitlines()] == ["b"]


def test_eval_takes_what_a_condition_leaves_where_that_is_fewer_than_k(run) -> None:
    for options in ([], BY_ID):
        left = run("eval", "data.jsonl", "-k", 3, "--where", "id in ('a', 'b')", "--json", *options)
        assert left.code == 0, left.stderr
        assert left.json["metrics"]["recall@2"]["mean"] == 1
        none = run("eval", "data.jsonl", "-k", 3, "--where", "id = 'a' and id = 'b'", *options).error()
        assert "0 passages satisfy" in none
        assert "-k=5 exceeds the memory's 4 passages" in run("eval", "data.jsonl", "-k", 5, *options).error()


def test_train(run, dated, model, tmp_path) -> None:
    arguments = ["--out", "out", "--k", 2, "--batch-size", 1, "--steps", 1, "--hindsight", 1, "--where", "id != 'd'"]
    done = run("train", "data.jsonl", *arguments)
    assert done.code == 0, done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["where"] == "id != 'd'"
    assert "id != 'd'" in (tmp_path / "out" / "model" / "README.md").read_text()
    refused = run("train", "data.jsonl", "--out", "other", "--k", 2, "--hindsight", 1, "--where", "id in ('a', 'b')")
    assert "k=2 passages and 1 more by hindsight exceed the memory's 2" in refused.error()
    again = run("train", "data.jsonl", *arguments[:-1], "id != 'c'", "--resume").error()
    assert "where=\"id != 'd'\", now asked for \"id != 'c'\"" in again


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("dat >= '2024'", "no passage has a field 'dat'; there are: id, title, source, page, author, date"),
        ("date >= ", "the condition ends after \">=\"; needed a 'text', a number, true or false"),
        ("author = 'Cid'", "0 passages satisfy author = 'Cid'; widen the condition"),
        ("date = 2024", "the field 'date' has texts, got the number 2024; write the value in single quotes"),
    ],
)
@pytest.mark.parametrize("command", ["ask", "train"])
def test_what_cannot_be(run, command, where, said) -> None:
    arguments = [QUESTION] if command == "ask" else ["data.jsonl", "--out", "out"]
    assert said in run(command, *arguments, "--where", where).error()


def test_in_python(model, dated) -> None:
    rag = latentrag.load(model, memory=dated)
    assert [source.passage.id for source in rag.answer(QUESTION, where=NEW).sources] == ["b"]
    assert [z.id for z, _ in rag.posterior(QUESTION, "red", where=NEW)] == ["b"]
    whole = rag.score(QUESTION, "red", k=4)
    three = rag.score(QUESTION, "red", k=9, where="id != 'd'")
    prior = {source.passage.id: source.prior for source in whole.sources}
    rest = 1 - prior["d"]
    for source in three.sources:
        assert source.prior == pytest.approx(prior[source.passage.id] / rest, rel=1e-5)
    some = latentrag.load(model, memory=dated, where="id != 'a'")
    assert {source.passage.id for source in some.answer(QUESTION, k=9, where="id != 'b'").sources} == {"c", "d"}
    of_some, of_all = rag.signal_settings(rag.asking(where=NEW)), rag.signal_settings(rag.asking())
    assert of_some["memory"] != of_all["memory"]
    assert rag.answer(QUESTION) == latentrag.load(model, memory=dated).answer(QUESTION)
