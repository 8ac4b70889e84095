"""A GGUF file as generator in every command that asks, scores or evaluates."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import QUESTION, cli
from tests.generator.gguf_files import save_pair

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; make .venv/installed-llama-cpp")


K = ("-k", 3)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    return save_pair(tmp_path_factory.mktemp("pair"))[1]


@pytest.fixture(scope="module")
def source(encoder, gguf, memory) -> list[object]:
    return ["--encoder", encoder, "--generator", gguf, "-i", memory]


def test_ask_and_score_agree(source, tmp_path) -> None:
    done = cli("ask", QUESTION, *source, *K, "--max-tokens", 6, "--json")
    assert (done.code, done.stderr) == (0, "")
    answer = done.json
    assert sum(found["posterior"] for found in answer["sources"]) == pytest.approx(1)
    assert len(answer["tokens"]) > 0
    if answer["hypotheses"][0]["finished"]:
        pairs = tmp_path / "pairs.jsonl"
        pairs.write_text(json.dumps({"x": QUESTION, "y": answer["answer"]}) + "\n")
        scored = cli("score", pairs, *source, *K).json
        assert scored["log_likelihood"] == pytest.approx(answer["log_prob"], abs=0.002)
    again = cli("ask", QUESTION, *source, *K, "--max-tokens", 6, "--json", "--instruction", "Say one word.")
    assert again.json["log_prob"] != answer["log_prob"]


def test_classify_and_eval(source, tmp_path) -> None:
    done = cli("classify", QUESTION, "Beethoven", "Austen", *source, *K, "--json")
    assert sum(label["probability"] for label in done.json["labels"]) == pytest.approx(1)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": QUESTION, "answer": "Beethoven"}) + "\n")
    assert cli("eval", data, *source, *K, "--max-tokens", 4, "--json").code == 0


def test_doctor_describes_it(source) -> None:
    done = cli("doctor", *source, "--json")
    assert (done.code, done.json["problems"]) == (0, [])
    generator = done.json["model"]["generator"]
    assert (generator["class"], generator["kind"], generator["dtype"]) == ("qwen2", "llama-cpp", "all F32")
    assert generator["parameters"] > 50_000
    assert "all F32" in cli("doctor", *source).stdout


def test_it_is_not_trained(source, tmp_path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": QUESTION, "answer": "Beethoven"}) + "\n")
    refused = cli("train", data, *source, "--out", tmp_path / "run", *K)
    assert "kind llama-cpp cannot be trained" in refused.error()
    assert not (tmp_path / "run").exists()


def test_a_number_format_and_a_device_are_refused(source) -> None:
    assert "number format of its own" in cli("ask", QUESTION, *source, *K, "--dtype", "bfloat16").error()
