"""ask and classify: the JSON's names and numbers, options, and what people see."""

import json
import math

import pytest

import latentrag
from latentrag.cli.render import percent
from latentrag.errors import InputError
from tests.cli.conftest import QUESTION, cli


def test_json_is_the_library_s_answer(ask, model, memory) -> None:
    done = ask(QUESTION, "--json")
    assert (done.code, done.stderr) == (0, "")
    answer = latentrag.load(model, memory=memory).answer(QUESTION)
    record = done.json
    assert list(record) == [
        "question",
        "answer",
        "log_prob",
        "closed_book_log_prob",
        "variant",
        "decoding",
        "memory_version",
        "sources",
        "tokens",
        "hypotheses",
        "log_p_eta",
        "log_p_theta",
    ]
    assert record["question"] == QUESTION
    assert record["answer"] == answer.text
    assert record["log_prob"] == answer.log_prob
    assert record["closed_book_log_prob"] == answer.closed_book_log_prob
    assert (record["variant"], record["decoding"], record["memory_version"]) == ("sequence", "exact", 2)
    assert len(record["sources"]) == 3
    for source, given in zip(record["sources"], answer.sources, strict=True):
        assert source == {
            "id": given.passage.id,
            "title": given.passage.title,
            "text": given.passage.text,
            "prior": given.prior,
            "posterior": given.posterior,
            "source": given.passage.source,
            "start": 0,
            "end": len(given.passage.text),
            "page": None,
            "sentences": [],
            "parts": given.parts,
        }
    for token, each in zip(record["tokens"], answer.tokens, strict=True):
        assert token == {"text": each.text, "log_prob": each.log_prob, "posterior": list(each.posterior)}
    assert [(h["text"], h["log_prob"], h["finished"]) for h in record["hypotheses"]] == [
        (h.text, h.log_prob, h.finished) for h in answer.hypotheses
    ]
    assert record["log_p_eta"] == list(answer.log_p_eta)
    assert record["log_p_theta"] == [list(of_passage) for of_passage in answer.log_p_theta]
    assert len(record["hypotheses"]) == 1


OPTIONS = {
    "-k": ("k", 2),
    "--variant": ("variant", "token"),
    "--decoding": ("decoding", "fast"),
    "--beams": ("num_beams", 2),
    "--best": ("num_best", 1),
    "--max-tokens": ("max_tokens", 9),
    "--min-tokens": ("min_tokens", 2),
    "--no-repeat-ngram": ("no_repeat_ngram_size", 3),
    "--length-penalty": ("length_penalty", 0.5),
    "--temperature": ("temperature", 0.7),
    "--top-k": ("top_k", 20),
    "--top-p": ("top_p", 0.9),
    "--seed": ("seed", 0),
}


def test_every_option_reaches_the_library(ask, monkeypatch) -> None:
    """Where none is given the library is told nothing, so that the model's own settings apply."""
    given: list[dict[str, object]] = []

    def answer(self: object, x: str, **options: object) -> None:
        given.append(options)
        raise InputError("seen")

    monkeypatch.setattr("latentrag.rag.Rag.answer", answer)
    flags = [str(part) for flag, (_, value) in OPTIONS.items() for part in (flag, value)]
    flags += ["--sample", "--stop", "a", "--stop", "b", "--without", "z", "--sentences", "--abstain-below", "0.5"]
    assert ask(QUESTION, *flags).error() == "error: seen"
    of_flags = {"sample": True, "stop": ("a", "b"), "without": ("z",), "sentences": True, "abstain_below": 0.5}
    assert given.pop() == {**dict(OPTIONS.values()), **of_flags}
    ask(QUESTION)
    assert given.pop() == {
        "k": None,
        "variant": None,
        "decoding": "exact",
        "without": (),
        "sentences": False,
        "abstain_below": None,
    }


def test_sentences_of_the_passage_that_contributed_most(ask, model, memory) -> None:
    """In JSON and for people, and by `score` too; what a passage says reaches the terminal as text."""
    answer = latentrag.load(model, memory=memory).answer(QUESTION, sentences=True)
    (source,) = [each for each in answer.sources if each.sentences]
    assert source.posterior == max(each.posterior for each in answer.sources)
    (record,) = [each for each in ask(QUESTION, "--sentences", "--json").json["sources"] if each["sentences"]]
    assert record["sentences"] == [
        {
            "text": source.passage.text[each.start : each.end],
            "start": each.start,
            "end": each.end,
            "log_prob_without": pytest.approx(each.log_prob_without, abs=1e-5),
        }
        for each in source.sentences
    ]
    shown = ask(QUESTION, "--sentences").stdout
    for each in source.sentences:
        assert f"{each.log_prob_without - answer.log_prob:+.2f}" in shown
    assert "Without a sentence" not in ask(QUESTION).stdout


def test_eight_bits(ask) -> None:
    exact, rounded = (ask(QUESTION, "--dtype", dtype, "--json").json for dtype in ("float32", "int8"))
    assert 0 < abs(exact["log_prob"] - rounded["log_prob"]) < 1
    assert [source["prior"] for source in exact["sources"]] == [source["prior"] for source in rounded["sources"]]


def test_options_change_the_answer(ask) -> None:
    record = ask(QUESTION, "-k", 2, "--variant", "token", "--beams", 2, "--best", 2, "--max-tokens", 2, "--json").json
    assert record["variant"] == "token"
    assert (len(record["sources"]), len(record["hypotheses"])) == (2, 2)
    assert len(record["tokens"]) <= 2


@pytest.mark.parametrize("decoding", ["thorough", "fast"])
def test_the_paper_s_decodings(ask, decoding) -> None:
    assert ask(QUESTION, "--decoding", decoding, "--json").json["decoding"] == decoding
    seen = ask(QUESTION, "--decoding", decoding).stdout
    assert f"{decoding} decoding" in " ".join(seen.split())
    assert ("Probability at least" in seen) == (decoding == "fast")


def test_samples_repeat_with_their_seed(ask) -> None:
    options = ["--sample", "--temperature", "2", "--top-k", "20", "--top-p", "0.9", "--seed", "5", "--json"]
    assert ask(QUESTION, *options).stdout == ask(QUESTION, *options).stdout
    assert ask(QUESTION, *options).stdout != ask(QUESTION, *options[:-2], "6", "--json").stdout


def test_parts_of_a_model_answer_as_the_model_does(ask, encoder, generator, memory) -> None:
    parts = ["--encoder", encoder, "--generator", generator, "-i", memory, "-k", 3, "--beams", 3, "--max-tokens", 5]
    assert cli("ask", QUESTION, *parts, "--json").stdout == ask(QUESTION, "--json").stdout


def test_a_prompt_of_ones_own(ask, model, memory, tmp_path) -> None:
    (tmp_path / "prompt.json").write_text('{"question": "{question} answer :"}')
    done = ask(QUESTION, "--json", "--template", tmp_path / "prompt.json")
    answer = latentrag.load(model, memory=memory, template=tmp_path / "prompt.json").answer(QUESTION)
    assert done.json["log_prob"] == answer.log_prob != ask(QUESTION, "--json").json["log_prob"]
    refused = ask(QUESTION, "--instruction", "In French.")
    assert refused.code == 2
    assert refused.stderr.count("\n") == 1


def test_an_earlier_version_is_asked_as_it_was(tmp_path, encoder, files, model) -> None:
    path = tmp_path / "m.lance"
    cli("index", "add", path, files, "--encoder", encoder)
    cli("index", "delete", path, "fidelio.txt")
    ids = {}
    for version in (2, 3):
        record = cli("ask", QUESTION, "-m", model, "-i", path, "--as-of", version, "-k", 3, "--json").json
        assert record["memory_version"] == version
        ids[version] = {source["id"] for source in record["sources"]}
    assert "fidelio.txt" not in ids[3]


@pytest.mark.parametrize("variant", ["sequence", "token"])
def test_what_people_see(ask, variant) -> None:
    done = ask(QUESTION, "--variant", variant, "--best", 3)
    record = ask(QUESTION, "--variant", variant, "--best", 3, "--json").json
    assert len(record["hypotheses"]) == 3
    assert (done.code, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout  # no colour where there is no terminal
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert done.stdout.startswith(record["answer"])
    words = " ".join(done.stdout.split())
    assert ("RAG-Sequence" if variant == "sequence" else "RAG-Token") in words
    gain = record["log_prob"] - record["closed_book_log_prob"]
    assert f"({gain:+.1f} nats)" in words
    for source in record["sources"]:
        assert source["title"] in words
        assert percent(source["prior"]) in words
        assert percent(source["posterior"]) in words
    assert "[1]" in words or "[2]" in words or "[3]" in words
    for hypothesis in record["hypotheses"][1:]:
        assert hypothesis["text"] in words


def test_classify(model, memory) -> None:
    labels = ["Beethoven", "Austen", "France"]
    done = cli("classify", QUESTION, *labels, "-m", model, "-i", memory, "--json")
    record = done.json
    assert (done.code, done.stderr) == (0, "")
    assert list(record) == ["question", "label", "labels", "variant", "memory_version", "sources"]
    assert {label["text"] for label in record["labels"]} == set(labels)
    assert record["label"] == record["labels"][0]["text"]
    assert sum(label["probability"] for label in record["labels"]) == pytest.approx(1, abs=1e-6)
    odds = record["labels"][0]["log_likelihood"] - record["labels"][1]["log_likelihood"]
    ratio = record["labels"][0]["probability"] / record["labels"][1]["probability"]
    assert ratio == pytest.approx(math.exp(odds), rel=1e-4)
    seen = cli("classify", QUESTION, *labels, "-m", model, "-i", memory)
    assert seen.code == 0
    for label in record["labels"]:
        assert percent(label["probability"]) in seen.stdout
    assert seen.stdout.startswith(record["label"])


def test_json_is_one_line_that_any_parser_reads(ask) -> None:
    lines = ask(QUESTION, "--json").stdout.splitlines()
    assert len(lines) == 1

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(lines[0], parse_constant=refuse)
