"""An extractive reader, made from an encoder's folder, in every command."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import QUESTION, cli
from tests.generator.test_spans import write_encoder

K = ("-k", 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("reader") / "bert", positions=128)


@pytest.fixture(scope="module")
def source(encoder, made, memory) -> list[object]:
    return ["--encoder", encoder, "--generator", made, "--generator-kind", "spans", "-i", memory]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = [{"question": QUESTION, "answer": "Beethoven"}, {"question": "Who wrote Emma?", "answer": "Austen"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_ask_and_score_agree(source, tmp_path) -> None:
    done = cli("ask", QUESTION, *source, *K, "--json", "--best", 3)
    assert (done.code, done.stderr) == (0, "")
    answer = done.json
    assert sum(found["posterior"] for found in answer["sources"]) == pytest.approx(1)
    assert [token["text"] for token in answer["tokens"]] == [answer["answer"]]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"x": QUESTION, "y": answer["answer"]}) + "\n")
    scored = cli("score", pairs, *source, *K, "--json").json
    assert scored["log_likelihood"] == pytest.approx(answer["log_prob"], abs=1e-5)
    other = cli("ask", QUESTION, *source, *K, "--json", "--generator-setting", "normalise=passage").json
    assert other["log_p_eta"] != answer["log_p_eta"]
    assert answer["answer"] in cli("ask", QUESTION, *source, *K).stdout
    assert cli("ask", QUESTION, *source, *K, "--sample", "--seed", 1, "--json").json["answer"]


def test_classify_eval_and_doctor(source, data) -> None:
    labels = cli("classify", QUESTION, "Beethoven", "Austen", *source, *K, "--json").json["labels"]
    assert sum(label["probability"] for label in labels) == pytest.approx(1)
    assert cli("eval", data, *source, *K, "--json").code == 0
    generator = cli("doctor", *source, "--json").json["model"]["generator"]
    assert (generator["class"], generator["kind"], generator["template"]) == ("BertForQuestionAnswering", "spans", None)
    assert "BertForQuestionAnswering (spans)" in cli("doctor", *source).stdout


def test_it_is_trained_saved_and_asked(source, data, memory, tmp_path) -> None:
    rates = ("--lr-generator", 0.01, "--epochs", 20, "--batch-size", 2, "--dev", data, "--eval-every", 5)
    done = cli("train", data, *source, *K, *rates, "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.stderr
    found = done.json
    assert found["best_nll_per_token"] < found["untrained_nll_per_token"] - 0.5
    model = tmp_path / "run" / "model"
    assert json.loads((model / "latentrag.json").read_text())["parts"]["generator"] == "generator"
    answer = cli("ask", QUESTION, "-m", model, "-i", memory, "--json").json
    assert cli("export", model, tmp_path / "plain").code == 0
    assert cli("ask", QUESTION, "-m", tmp_path / "plain", "-i", memory, "--json").json == answer


@pytest.mark.parametrize("more", [("--freeze", "generator"), ("--freeze", "retriever"), ("--objective", "loop")])
def test_each_side_can_be_trained_alone(source, data, tmp_path, more) -> None:
    options = (*K, "--epochs", 3, "--batch-size", 1, "--out", tmp_path / "run", "--json")
    assert cli("train", data, *source, *options, *more).code == 0


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--label-smoothing", 0.1), "a generator of the kind spans has no vocabulary"),
        (("--objective", "emdr2"), "needs a generator that reads all passages together"),
        (("--lora", 4), "a reader of spans is trained whole; leave --lora out"),
        (("--instruction", "Say one word."), "a reader of spans has no prompt"),
        (("--keep-preamble",), "the model's prompt has no worked examples"),
        (("--generator-setting", "normalise=all"), "normalise='all' is unknown"),
        (("--generator-setting", "normalise"), "is no setting; write NAME=VALUE"),
        (("--generator-kind", "spam"), "generator kind 'spam' is unknown"),
    ],
)
def test_what_it_cannot_do_is_refused(source, data, tmp_path, more, line) -> None:
    assert line in cli("train", data, *source, *K, "--out", tmp_path / "run", *more).error()


def test_closed_book_has_no_answer(source, data) -> None:
    assert "ruled out by the options; lower min_tokens" in cli("eval", data, *source, "--closed-book").error()
