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
    unknown = "c: the memory has no passage venice"
    assert f"example {unknown}; name the memory of these ids or pass --skip-bad" in cli(*run).stderr
    assert f"example {unknown}; name the memory of these ids\n" in cli(*run, "--skip-bad").stderr
    rows = [{**ROWS[2], "ids": ["rome.txt", "venice"]}, {**ROWS[2], "id": "d"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for more in ([], ["--retrieval-only"]):
        done = cli(*run, "--skip-bad", *more)
        assert done.json["examples"] == 1
        told = f"1 of 2 examples ({unknown}) cannot be used as they are; they are left out"
        assert told in " ".join(done.stderr.split())


def test_what_has_no_effect(data, model, memory) -> None:
    run = ["eval", data, "-m", model, "-i", memory, "--passages-from", "passages"]
    assert "--passages-from has no effect, since closed book" in cli(*run, "--closed-book").error()
    assert "--as-of has no effect, since the passages come with the questions" in cli(*run, "--as-of", 1).error()
    assert "--passages-from has no effect with --run-in" in cli(*run, "--retrieval-only", "--run-in", "r").error()
    assert "k=9 exceeds the memory's 4 passages" in cli(*run, "-k", 9).stderr


TRAINED = ["-k", 2, "--batch-size", 3, "--steps", 8, "--lr-generator", "0.01", "--lr-retriever", "0.01"]


def test_training(data, model, memory, tmp_path) -> None:
    """Both sides learn from the passages that come with the questions; what is saved searches a memory again."""
    run = [data, "-m", model, "-i", tmp_path / "none", "--passages-from", "passages"]
    out = tmp_path / "run"
    before = cli("eval", *run, "--json", "-k", 2).json["metrics"]
    done = cli("train", *run, "--out", out, *TRAINED)
    assert done.code == 0, done.stderr
    again = [
        "eval",
        data,
        "-m",
        out / "model",
        "-i",
        tmp_path / "none",
        "--passages-from",
        "passages",
        "--json",
        "-k",
        2,
    ]
    measured = cli(*again)
    assert measured.code == 0, measured.stderr
    after = measured.json["metrics"]
    name = "log_likelihood_per_answer"
    assert after[name]["mean"] > before[name]["mean"] + 0.5
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert any(line.get("norm_retriever", 0) > 0 for line in log)
    request = json.loads((out / "run.json").read_text())
    assert (request["passages_from"], request["memory"]) == ("passages", None)
    assert latentrag.load(out / "model", memory=memory).retriever.retrieve(["who ?"], 1).passages
    other = ["train", data, "-m", model, "-i", memory, "--out", out, *TRAINED, "--resume"]
    assert "resume with what it began with" in cli(*other).stderr


def test_a_model_trained_over_a_memory_needs_its_passage_encoder_named(data, model, memory, encoder, tmp_path) -> None:
    trained = cli("train", data, "-m", model, "-i", memory, "--out", tmp_path / "run", *TRAINED)
    assert trained.code == 0, trained.stderr
    run = ["eval", data, "-m", tmp_path / "run" / "model", "--passages-from", "passages", "--retrieval-only", "--json"]
    assert "name the one that it was trained with (--passage-encoder)" in cli(*run).stderr
    named = cli(*run, "--passage-encoder", encoder)
    assert named.code == 0, named.stderr
    assert named.json["metrics"]["recall@1"]["num_examples"] == 3


def test_training_on_passages_by_their_ids(data, model, memory, tmp_path) -> None:
    data.write_text(json.dumps(ROWS[2]) + "\n" + json.dumps({**ROWS[2], "id": "d", "ids": ["venice"]}) + "\n")
    run = ["train", data, "-m", model, "-i", memory, "--passages-from", "id:ids", "--task", "question-generation"]
    run += ["--freeze", "retriever", "--steps", 2, "--out", tmp_path / "run"]
    assert "d: the memory has no passage venice; name the memory of these ids or pass --skip-bad" in cli(*run).stderr
    done = cli(*run, "--skip-bad", "--dev", data)
    assert done.code == 0, done.stderr
    assert done.stderr.count("(d: the memory has no passage venice) cannot be used") == 2


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--closed-book"], "--passages-from has no effect, since closed book reads no passages"),
        (["--hindsight", 2], "--hindsight has no effect, since the passages come with the questions"),
        (["--refresh-every", 2], "--refresh-every has no effect, since the passages come with the questions"),
    ],
)
def test_what_has_no_effect_in_training(data, model, memory, tmp_path, more, problem) -> None:
    run = ["train", data, "-m", model, "-i", memory, "--passages-from", "passages", "--out", tmp_path / "run"]
    assert problem in cli(*run, *more).error()
