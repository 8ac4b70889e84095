"""--retriever: words in place of vectors, in every command that asks a memory."""

import json
import re

import pytest

import latentrag
from tests.cli.conftest import QUESTION, cli


@pytest.fixture(scope="module")
def of_words(tmp_path_factory, model, memory):
    """A model that was saved with BM25."""
    folder = tmp_path_factory.mktemp("models") / "words"
    latentrag.save(latentrag.load(model, memory=memory, retriever="bm25"), folder)
    return folder


def test_ask(ask, model, memory, of_words) -> None:
    record = ask(QUESTION, "--retriever", "bm25", "--json").json
    answer = latentrag.load(model, memory=memory, retriever="bm25").answer(QUESTION)
    assert [source["id"] for source in record["sources"]] == [source.passage.id for source in answer.sources]
    assert record["sources"][0]["id"] == "fidelio.txt"
    assert record["log_prob"] == answer.log_prob
    assert cli("ask", QUESTION, "-m", of_words, "-i", memory, "--json").json == record
    assert ask(QUESTION, "--retriever", "dense", "--json").json == ask(QUESTION, "--json").json != record
    assert cli("ask", QUESTION, "-m", of_words, "-i", memory, "--retriever", "bm25").stdout.startswith(answer.text)


def test_classify_and_score(model, memory) -> None:
    rag = latentrag.load(model, memory=memory, retriever="bm25")
    options = ["-m", model, "-i", memory, "--retriever", "bm25", "--json"]
    chosen = cli("classify", QUESTION, "Beethoven", "Austen", *options).json
    assert chosen["sources"][0]["prior"] == rag.classify(QUESTION, ["Beethoven", "Austen"]).sources[0].prior
    scored = cli("score", *options, stdin=json.dumps({"x": QUESTION, "y": "Beethoven"})).json
    assert scored["log_likelihood"] == pytest.approx(rag.log_likelihood(QUESTION, "Beethoven"), abs=1e-6)


def test_doctor(model, memory, of_words, home) -> None:
    for options in (["-m", of_words], ["-m", model, "--retriever", "bm25"]):
        done = cli("doctor", *options, "-i", memory, "--json")
        assert (done.code, done.json["problems"]) == (0, [])
        assert done.json["model"]["retriever"] == {"kind": "bm25", "scale": 1.0}
        assert done.json["model"]["encoder"] is None
    assert "BM25, scale 1" in cli("doctor", "-m", of_words, "-i", memory).stdout
    dense = cli("doctor", "-m", model, "-i", memory, "--json").json["model"]
    assert dense["retriever"] == {"kind": "dense", "scale": dense["encoder"]["scale"]}


def test_mistakes(ask, memory, of_words) -> None:
    assert ask(QUESTION, "--retriever", "sparse").code == 2
    dense = cli("ask", QUESTION, "-m", of_words, "-i", memory, "--retriever", "dense")
    assert "has no query_encoder" in dense.error()


def test_the_index_of_words_is_built_beforehand_where_wanted(memory) -> None:
    built = cli("index", "build", memory, "--index", "words", "--json")
    assert (built.json["kind"], built.json["num_passages"]) == ("words", len(latentrag.Memory.open(memory)))
    assert re.search(r"words of \d+ passages in \d", cli("index", "build", memory, "--index", "words").stdout)
    refused = cli("index", "build", memory, "--index", "words", "--max-memory", "4GB")
    assert "--max-memory has no effect on the index words" in refused.error()
