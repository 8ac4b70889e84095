"""`calibrate`: how sure answers are, learned from questions with answers."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import latentrag
from latentrag.confidence import ABSTAINED
from tests.cli.conftest import cli


def half_right(path: Path, model: Path, memory: Path, number: int = 24, **options: Any) -> Path:
    """Questions of which a model of random weights answers some as the file says: its own answers, and others."""
    rag = latentrag.load(model, memory=memory, k=2)
    rows = [{"id": str(n), "question": f"what is number {n} ?"} for n in range(number)]
    for n, row in enumerate(rows):
        row["answer"] = rag.answer(row["question"], **options).text if n % 2 else "something else"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path):
    return partial(half_right, tmp_path / "questions.jsonl")


def test_the_command(data, model, memory, tmp_path) -> None:
    decoding = ["--beams", 2, "--max-tokens", 2]
    questions = data(model, memory, num_beams=2, max_tokens=2)
    out = tmp_path / "sure"
    command = ["calibrate", questions, "-m", model, "-i", memory, "-k", 2, *decoding, "--out", out]
    done = cli(*command, "--json")
    assert done.code == 0, done.stderr
    assert done.json["questions"] == 24
    assert done.json["after"]["accuracy"] == 0.5
    rows = out.with_name("sure.calibration.jsonl").read_text()
    assert len(rows.splitlines()) == 24
    # The model's own settings are those that it was calibrated for.
    asked = cli("ask", "what is number 1 ?", "-m", out, "-i", memory, "--json")
    rag = latentrag.load(out, memory=memory)
    assert asked.json["confidence"] == pytest.approx(rag.answer("what is number 1 ?").confidence)
    assert rag.calibration is not None
    shown = cli("ask", "what is number 1 ?", "-m", out, "-i", memory, "--abstain-below", 1)
    assert shown.stdout.startswith(f"{ABSTAINED}\n")
    assert "Best guess: " in shown.stdout
    assert "It is right with a probability of " in shown.stdout
    # Again, in the model's own folder, from the rows that are there.
    again = cli("calibrate", questions, "-m", out, "-i", memory, "--rows", tmp_path / "again.jsonl")
    assert again.code == 0, again.stderr
    assert "Brier" in again.stdout
    assert latentrag.load(out, memory=memory).calibration == rag.calibration
    assert "confidence" not in cli("ask", "x y", "-m", out, "-i", memory, "-k", 1, "--json").json
    prompt = tmp_path / "prompt.json"
    prompt.write_text(json.dumps({"question": "Q: {question}\nA:"}))
    other = cli("ask", "x y", "-m", out, "-i", memory, "--template", prompt, "--abstain-below", 1).error()
    assert "abstain_below has no effect, since the model was calibrated with another prompt" in other
    curve = tmp_path / "curve.svg"
    measured = cli("eval", questions, "-m", out, "-i", memory, "--json", "--curve", curve).json
    assert "the surest by confidence" in curve.read_text()
    for wrong in (["--curve", "a.png"], ["--curve", "a.svg", "--task", "yes-no"]):
        assert "--curve" in cli("eval", questions, "-m", out, "-i", memory, *wrong).error()
    assert measured["details"]["confidence"]["by"] == "confidence"


def test_what_cannot_be_calibrated(data, model, memory, tmp_path) -> None:
    questions = data(model, memory, 12, num_beams=1, max_tokens=2)
    common = ["calibrate", questions, "-m", model, "-i", memory, "-k", 2, "--beams", 1, "--max-tokens", 2]
    few = cli(*common, "--out", tmp_path / "a")
    assert few.error().startswith("error: 6 of 12 answers are right; needed 10 right and 10 wrong ones at least")
    assert not (tmp_path / "a").exists()
    assert "leave it out" in cli(*common, "--out", tmp_path / "b", "--sample").error()
    assert "needed open-qa" in cli(*common, "--out", tmp_path / "b", "--task", "yes-no").error()
    refused = cli("ask", "x", "-m", model, "-i", memory, "--abstain-below", 0.5).error()
    assert "the model is not calibrated; run `latentrag calibrate`" in refused


@pytest.mark.parametrize(
    "options",
    [["--set-size", 2], ["--retriever", "bm25"], ["--neighbours", 1], ["--retriever", "hybrid", "--candidates", 2]],
    ids=lambda options: options[0],
)
def test_what_a_model_is_calibrated_for_becomes_its_own_in_place(data, model, memory, tmp_path, options) -> None:
    """So that it is asked without these options afterwards, and has a confidence."""
    own = tmp_path / "own"
    latentrag.save(latentrag.load(model, memory=memory), own)
    about = {"-m": own, "-i": memory, "-k": 2, "--beams": 1, "--max-tokens": 2, "--rows": tmp_path / "rows.jsonl"}
    given = [each for pair in about.items() for each in pair]
    rows = [{"id": str(n), "question": f"what is number {n} ?", "answer": "something else"} for n in range(24)]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "0 of 24 answers are right" in cli("calibrate", file, *given, *options).error()
    texts = [json.loads(line)["text"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for row, text in zip(rows[1::2], texts[1::2], strict=True):
        row["answer"] = text
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "rows.json").unlink()
    done = cli("calibrate", file, *given, *options)
    assert done.code == 0, done.stderr
    assert "confidence" in cli("ask", "what is number 1 ?", "-m", own, "-i", memory, "--json").json
    assert "confidence" not in cli("ask", "x y", "-m", own, "-i", memory, "-k", 1, "--json").json


def test_a_reranker_is_saved_in_another_folder(data, model, memory) -> None:
    questions = data(model, memory, 2, num_beams=1, max_tokens=2)
    refused = cli("calibrate", questions, "-m", model, "-i", memory, "--retriever", "hybrid", "--reranker", "r").error()
    assert "name a folder for it by --out" in refused


def test_what_cannot_be_saved_is_refused_before_the_first_question(data, model, memory, tmp_path, monkeypatch) -> None:
    questions = data(model, memory, 2, num_beams=1, max_tokens=2)
    monkeypatch.setattr("latentrag.evaluation.run.evaluate", None)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    common = ["calibrate", questions, "-m", model, "-i", memory]
    foreign = cli(*common, "--out", tmp_path / "foreign").error()
    assert "exists and is no model that latentrag saved; name a new folder" in foreign
    rounded = cli(*common, "--dtype", "int8", "--out", tmp_path / "new").error()
    assert "a generator in int8 cannot be saved; load it in another dtype" in rounded


def test_questions_alone_and_conversations_are_calibrated_apart(data, model, memory, tmp_path) -> None:
    rows = data(model, memory, 12, num_beams=1, max_tokens=2).read_text().splitlines()
    asked = json.loads(rows[0])
    said = [{"role": "user", "content": "before"}, {"role": "assistant", "content": "that"}]
    turns = [*said, {"role": "user", "content": asked["question"]}]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join([json.dumps({"messages": turns, "answer": "x"}), *rows[1:]]) + "\n")
    error = cli("calibrate", mixed, "-m", model, "-i", memory, "-k", 2, "--out", tmp_path / "a").error()
    assert "1 of 12 questions are conversations; needed all or none" in error
