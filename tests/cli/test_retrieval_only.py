"""`eval --retrieval-only`: no generator is opened; BEIR folders and TREC's files in and out."""

import json
import shutil
from typing import Any

import pytest

from tests.cli.conftest import DOCUMENTS, cli

QUESTIONS = {"f": "who wrote fidelio ?", "e": "who wrote emma ?", "p": "what is the capital of france ?"}
RELEVANT = {"f": "fidelio", "e": "emma", "p": "paris"}


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": name, "title": name, "text": text} for name, text in DOCUMENTS.items()]
    queries = [{"_id": name, "text": text, "metadata": {}} for name, text in [*QUESTIONS.items(), ("x", "unjudged ?")]]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"{q}\t{name}\t1\n" for q, name in RELEVANT.items())
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}p\trome\t0\n")
    return folder


@pytest.fixture
def beir_memory(beir, tmp_path, encoder):
    path = tmp_path / "beir.lance"
    assert cli("index", "add", path, beir / "corpus.jsonl", "--encoder", encoder).code == 0
    return path


@pytest.fixture
def no_generator(monkeypatch):
    """Opening one fails."""
    import latentrag.generator

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(latentrag.generator, "load_generator", refuse)


def test_a_beir_folder_as_it_is(beir, beir_memory, model, tmp_path, no_generator) -> None:
    run, qrels, out = tmp_path / "run.trec", tmp_path / "qrels.trec", tmp_path / "run.jsonl"
    common = ["eval", beir, "--retrieval-only", "--json"]
    written = ["--run-out", run, "--qrels-out", qrels, "--out", out]
    done = cli(*common, "-m", model, "-i", beir_memory, "--retriever", "bm25", *written)
    assert done.code == 0, done.stderr
    assert "1 of 4 questions were not judged" in done.stderr
    metrics = done.json["metrics"]
    assert (metrics["mrr"]["mean"], metrics["relevant_recall@1"]["mean"]) == (1, 1)
    assert metrics["ndcg@10"]["num_examples"] == 3
    assert "recall@1" not in metrics
    assert "log_likelihood_per_answer" not in metrics
    # The run that was written, by judgements that were written, without any model.
    again = cli(*common, "--run-in", run, "--qrels", qrels, "-m", tmp_path / "no model")
    assert {name: each["mean"] for name, each in again.json["metrics"].items() if "@" not in name} == {
        name: metrics[name]["mean"] for name in ("r_precision", "mrr")
    }
    assert cli(*common, "-m", model, "-i", beir_memory, "--retriever", "bm25", *written).json == done.json
    assert cli("compare", out, out, "--json").json["metrics"]["mrr"]["p"] == 1
    (beir / "qrels" / "test.tsv").write_text("f\trome\t1\n")
    changed = cli(*common, "-m", model, "-i", beir_memory, "--retriever", "bm25", *written)
    assert "begun with judgements=" in changed.stderr


def test_ids_that_trec_cannot_hold_are_refused_before_the_memory_is_searched(
    model, memory, tmp_path, monkeypatch
) -> None:
    data, run = tmp_path / "rows.jsonl", tmp_path / "run.trec"
    data.write_text(json.dumps({"id": "q 1", "question": "who wrote emma ?", "title": "emma"}) + "\n")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("latentrag.evaluation.retrieval.evaluate_retrieval", refuse)
    done = cli("eval", data, "-m", model, "-i", memory, "--retrieval-only", "--run-out", run)
    assert (done.code, "the id 'q 1' has white space" in done.stderr.splitlines()[-1]) == (2, True)


def test_conversations_are_read_by_the_weights_of_the_model(model, memory, tmp_path, no_generator) -> None:
    messages = [
        {"role": "user", "content": "who wrote fidelio fidelio fidelio ?"},
        {"role": "assistant", "content": "fidelio"},
        {"role": "user", "content": "who wrote emma ?"},
    ]
    data, out = tmp_path / "talk.jsonl", tmp_path / "run.jsonl"
    data.write_text(json.dumps({"id": "t", "messages": messages, "answer": "austen", "title": "emma"}) + "\n")
    first = {}
    for before in (-60.0, 60.0):
        folder = tmp_path / f"model {before}"
        shutil.copytree(model, folder)
        content = json.loads((folder / "latentrag.json").read_text())
        content["readings"] = {"before": before, "all": -60.0, "rewrite": -60.0, "evidence": 0.0}
        (folder / "latentrag.json").write_text(json.dumps(content))
        out.unlink(missing_ok=True)
        out.with_suffix(".json").unlink(missing_ok=True)
        done = cli("eval", data, "-m", folder, "-i", memory, "--retrieval-only", "--retriever", "bm25", "--out", out)
        assert done.code == 0, done.stderr
        first[before] = json.loads(out.read_text())["retrieved"][0][1]
    assert first == {-60.0: "emma", 60.0: "fidelio"}


def test_answers_titles_and_tasks(model, memory, tmp_path, no_generator) -> None:
    rows: list[dict[str, Any]] = [
        {"id": q, "question": text, "answer": RELEVANT[q], "title": RELEVANT[q]} for q, text in QUESTIONS.items()
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", data, "-m", model, "-i", memory, "--retrieval-only"]
    metrics = cli(*command, "-k", 3, "--json").json["metrics"]
    assert {"recall@1", "recall@3", "title_recall@3", "relevant_recall@3", "ndcg@10", "mrr"} <= set(metrics)
    done = cli(*command)
    assert (done.code, "R-precision" in done.stdout) == (0, True)
    rows = [{"id": i, "claim": text, "label": "SUPPORTS", "titles": ["emma"]} for i, text in enumerate(["a", "the"])]
    rows.append({"id": 3, "claim": "it", "label": "REFUTES", "titles": []})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    claims = cli(*command, "--json").json["metrics"]
    assert "recall@1" not in claims
    assert claims["mrr"]["num_examples"] == 2
    with_labels = cli(*command, "--task", "fact-verification-2way", "--json").json["metrics"]
    assert with_labels == claims


def test_of_questions_to_ask_the_given_answer_is_looked_for(model, memory, tmp_path, no_generator) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "run.jsonl"
    word = DOCUMENTS["emma"].split()[0]
    data.write_text(json.dumps({"question": "emma paris rome ?", "answer": word, "category": "novels"}) + "\n")
    command = ["eval", data, "-m", model, "-i", memory, "--retrieval-only", "--task", "question-generation", "--json"]
    for more in ([], ["--prefix-field", "category", "--out", out]):
        done = cli(*command, "-k", 4, *more)
        assert done.code == 0, done.stderr
        assert done.json["metrics"]["recall@4"]["mean"] == 1
    row = json.loads(out.read_text())
    assert (row["x"], row["answers"]) == (f"novels: {word}", [word])
    rows: list[dict[str, object]] = [
        {"id": 1, "question": "emma ?", "answer": "paris"},  # no category
        {"id": 1, "question": "rome ?", "answer": word, "category": "novels"},
        {"question": " ", "answer": word, "category": "novels"},  # asks nothing
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "of-one-id.jsonl"
    done = cli(*command, "-k", 4, "--prefix-field", "category", "--skip-bad", "--out", out)
    assert done.code == 0, done.stderr
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["x"], row["answers"]) == (f"novels: {word}", [word])


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--retrieval-only", "--beams", "2"], "--beams has no effect with --retrieval-only"),
        (["--retrieval-only", "--closed-book"], "--closed-book has no effect with --retrieval-only"),
        (["--retrieval-only", "--variant", "token"], "--variant has no effect with --retrieval-only"),
        (["--retrieval-only", "--decoding", "fast"], "--decoding has no effect with --retrieval-only"),
        (["--retrieval-only", "--instruction", "x"], "--instruction has no effect with --retrieval-only"),
        (["--retrieval-only", "--dtype", "int8"], "--dtype has no effect with --retrieval-only"),
        (["--by", "title"], "--by has no effect without --retrieval-only"),
        (["--run-out", "r"], "--run-out has no effect without --retrieval-only"),
        (["--retrieval-only", "--run-in", "r", "-k", "3"], "-k has no effect with --run-in"),
        (["--retrieval-only", "--run-in", "r"], "r: cannot be read (No such file"),
        (["--retrieval-only", "--by", "title"], "no row says which titles are relevant; use --by passage"),
        (["--retrieval-only", "-k", "50"], "k=50 exceeds the memory's 4 passages"),
    ],
)
def test_bad_input_is_one_line(beir, beir_memory, model, monkeypatch, tmp_path, more, problem) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("eval", beir, "-m", model, "-i", beir_memory, *more)
    assert done.code == 2
    assert problem in done.stderr.splitlines()[-1]


def test_folders_that_are_no_beir_folders(beir, tmp_path) -> None:
    (beir / "qrels" / "test.tsv").unlink()
    assert "has no qrels/test.tsv" in cli("eval", beir, "--retrieval-only").error()
    (beir / "queries.jsonl").unlink()
    assert "without queries.jsonl" in cli("eval", beir, "--retrieval-only").error()
    assert "Is a directory" in cli("eval", beir).error()
