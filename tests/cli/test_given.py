"""`eval --passages-from`: each question has a memory of its own."""

import json
from typing import Any

import pytest

import latentrag
from tests.cli.conftest import DOCUMENTS, cli

PASSAGES = [{"title": name, "text": text} for name, text in DOCUMENTS.items()]
ROWS: list[dict[str, Any]] = [
    {"id": "a", "question": "who wrote fidelio ?", "answer": ["beethoven"], "passages": PASSAGES},
    {"id": "b", "question": "who wrote emma ?", "answer": ["austen"], "passages": PASSAGES[3:]},
    {"id": "c", "question": "what is rome ?", "answer": ["the capital"], "passages": PASSAGES[:3], "ids": ["rome.txt"]},
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_as_over_a_memory_of_the_same_passages(data, model, encoder, tmp_path) -> None:
    out, none = tmp_path / "run.jsonl", tmp_path / "no memory"
    done = cli("eval", data, "-m", model, "-i", none, "--passages-from", "passages", "--out", out, "--json")
    assert done.code == 0, done.stderr
    rows = {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}
    for row in ROWS:
        corpus = tmp_path / f"{row['id']}.jsonl"
        corpus.write_text("".join(json.dumps(each) + "\n" for each in row["passages"]))
        path = tmp_path / f"{row['id']}.lance"
        assert cli("index", "add", path, corpus, "--encoder", encoder).code == 0
        rag = latentrag.load(model, memory=path, k=min(3, len(row["passages"])))
        score = rag.score(row["question"], row["answer"][0])
        # A memory rounds vectors to 16 bits.
        assert rows[row["id"]]["log_likelihood"] == pytest.approx(score.log_likelihood, abs=0.02)
        answer = rag.answer(row["question"])
        assert rows[row["id"]]["log_prob"] == pytest.approx(answer.log_prob, abs=0.02)
        assert rows[row["id"]]["rank"] == next(
            (
                i + 1
                for i, z in enumerate(rag.retriever.retrieve([row["question"]], len(row["passages"])).passages[0])
                if row["answer"][0] in z.text.lower()
            ),
            None,
        )
    changed = [{**ROWS[0], "passages": PASSAGES[::-1]}, *ROWS[1:]]
    data.write_text("".join(json.dumps(row) + "\n" for row in changed))
    again = cli("eval", data, "-m", model, "-i", none, "--passages-from", "passages", "--out", out)
    assert "another example with the id a: given=" in again.stderr


@pytest.mark.parametrize("retriever", ["dense", "bm25"])
def test_retrieval_and_other_tasks(data, model, memory, tmp_path, retriever) -> None:
    common = ["-m", model, "-i", memory, "--passages-from", "passages", "--retriever", retriever, "--json"]
    alone = cli("eval", data, "--retrieval-only", *common)
    assert alone.json["metrics"]["recall@1"]["num_examples"] == 3
    asked = cli("eval", data, "--task", "question-generation", *common)
    assert asked.json["metrics"]["q_bleu_1"]["num_examples"] == 3


def test_passages_by_their_ids(data, model, memory, tmp_path) -> None:
    run = ["eval", data, "-m", model, "-i", memory, "--passages-from", "id:ids", "--json", "-k", 1]
    done = cli(*run, "--skip-bad", "--out", tmp_path / "run.jsonl")
    assert done.code == 0, done.stderr
    row = json.loads((tmp_path / "run.jsonl").read_text())
    assert [id_ for id_, _ in row["given"]] == ["rome.txt"]
    data.write_text(json.dumps({**ROWS[2], "ids": ["venice"]}) + "\n")
    assert "example c: the memory has no passage venice; name the memory" in cli(*run).stderr


def test_what_has_no_effect(data, model, memory) -> None:
    run = ["eval", data, "-m", model, "-i", memory, "--passages-from", "passages"]
    assert "--passages-from has no effect, since closed book" in cli(*run, "--closed-book").error()
    assert "--as-of has no effect, since the passages come with the questions" in cli(*run, "--as-of", 1).error()
    assert "--passages-from has no effect with --run-in" in cli(*run, "--retrieval-only", "--run-in", "r").error()
    assert "k=9 exceeds the memory's 4 passages" in cli(*run, "-k", 9).stderr
