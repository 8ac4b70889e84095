"""--retriever hybrid and --reranker: the prior of experts in commands, in Python and in a model's folder."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import latentrag
from latentrag.retriever import HybridRetriever
from tests.cli.conftest import QUESTION, cli
from tests.retriever.test_reranker import write_reranker


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rerankers") / "tiny"
    write_reranker(folder)
    return folder


def test_ask_score_and_classify_show_the_parts_of_every_prior(ask, model, memory, reranker) -> None:
    options = ["--retriever", "hybrid", "--reranker", str(reranker)]
    record = ask(QUESTION, *options, "--json").json
    rag = latentrag.load(model, memory=memory, retriever="hybrid", reranker=reranker)
    answer = rag.answer(QUESTION)
    assert [source["parts"] for source in record["sources"]] == [dict(source.parts) for source in answer.sources]
    assert set(record["sources"][0]["parts"]) == {"dense", "bm25", "reranker"}
    logits = torch.tensor([sum(source["parts"].values()) for source in record["sources"]])
    assert [source["prior"] for source in record["sources"]] == pytest.approx(logits.softmax(0).tolist(), abs=1e-6)
    assert record["log_prob"] == answer.log_prob
    shown = ask(QUESTION, *options).stdout
    assert "logit " in shown
    assert " = dense " in shown.replace(" = − ", " = ")
    assert "bm25" in shown
    assert set(ask(QUESTION, "--json").json["sources"][0]["parts"]) == {"dense"}
    assert "logit " not in ask(QUESTION).stdout
    scored = cli("score", "-m", model, "-i", memory, *options, "--json", stdin=json.dumps({"x": QUESTION, "y": "Emma"}))
    assert scored.json["sources"][0]["parts"] == pytest.approx(record["sources"][0]["parts"], abs=1e-5)
    chosen = cli("classify", QUESTION, "Emma", "Rome", "-m", model, "-i", memory, *options, "--json").json
    assert chosen["sources"][0]["parts"] == pytest.approx(record["sources"][0]["parts"], abs=1e-5)


def test_a_saved_model_has_its_weights_and_its_reranker(model, memory, reranker, tmp_path) -> None:
    rag = latentrag.load(model, memory=memory, retriever="hybrid", reranker=reranker)
    assert isinstance(rag.retriever, HybridRetriever)
    rag.retriever.weights["bm25"].data.fill_(0.75)
    latentrag.save(rag, tmp_path / "saved")
    record = cli("ask", QUESTION, "-m", tmp_path / "saved", "-i", memory, "--json").json
    assert record["log_prob"] == rag.answer(QUESTION).log_prob
    section = json.loads((tmp_path / "saved/latentrag.json").read_text())["prior"]
    assert section["retriever"] == "hybrid"
    assert section["settings"]["weights"]["bm25"] == 0.75
    done = cli("doctor", "-m", tmp_path / "saved", "-i", memory)
    assert "0.75 · bm25" in done.stdout
    shutil.rmtree(tmp_path / "saved/reranker")
    gone = cli("ask", QUESTION, "-m", tmp_path / "saved", "-i", memory)
    assert "the prior was fitted with a reranker, and the model's folder holds none" in gone.error()
    named = cli("ask", QUESTION, "-m", tmp_path / "saved", "-i", memory, "--reranker", reranker, "--json")
    assert named.json["log_prob"] == record["log_prob"]


def test_eval_measures_it_with_and_without_answers(model, memory, tmp_path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text(json.dumps({"id": "1", "question": QUESTION, "answer": ["Beethoven"]}))
    options = ["-m", model, "-i", memory, "--retriever", "hybrid", "--json"]
    assert cli("eval", data, *options).json["metrics"]["recall@3"]["mean"] == 1
    assert cli("eval", data, *options, "--retrieval-only").json["metrics"]["recall@1"]["mean"] == 1


def test_a_run_is_not_continued_with_another_reranker_of_the_same_name(model, memory, reranker, tmp_path) -> None:
    data, other = tmp_path / "questions.jsonl", tmp_path / "others" / reranker.name
    data.write_text("".join(json.dumps({"question": f"Who wrote {i}?", "answer": "Emma"}) + "\n" for i in range(20)))
    shutil.copytree(reranker, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, other / "model.safetensors")
    common = [data, "-m", model, "-i", memory]
    hybrid = ["--retriever", "hybrid"]
    train = ["--steps", 1, "--batch-size", 2, "-k", 2, "--freeze", "generator", "--out", tmp_path / "trained"]
    for command, options in (
        ("eval", [*hybrid, "--max-tokens", 2, "--limit", 1, "--out", tmp_path / "eval.jsonl"]),
        ("eval", [*hybrid, "--retrieval-only", "--limit", 1, "--out", tmp_path / "retrieval.jsonl"]),
        ("fit-prior", ["--out", tmp_path / "fitted"]),
        ("train", [*hybrid, *train]),
    ):
        assert cli(command, *common, *options, "--reranker", reranker).code == 0
        again = ["--resume"] if command == "train" else []
        assert "reranker_files=" in cli(command, *common, *options, *again, "--reranker", other).error()


def test_mistakes(ask, model, memory, reranker, tmp_path) -> None:
    for given in ([], ["--retriever", "dense"], ["--retriever", "bm25"]):
        error = ask(QUESTION, *given, "--reranker", str(reranker)).error()
        assert "--reranker has no effect on" in error
        assert "retrieve with hybrid" in error
    assert (
        "is neither a folder nor a hub id"
        in ask(QUESTION, "--retriever", "hybrid", "--reranker", str(tmp_path / "nowhere")).error()
    )
    data = tmp_path / "questions.jsonl"
    data.write_text(json.dumps({"question": QUESTION, "answer": ["Beethoven"]}))
    closed = cli("eval", data, "-m", model, "-i", memory, "--closed-book", "--retriever", "hybrid").error()
    assert "--retriever has no effect, since closed book reads no passages" in closed
    closed = cli("eval", data, "-m", model, "-i", memory, "--closed-book", "--reranker", reranker).error()
    assert "--reranker has no effect, since closed book reads no passages" in closed


def test_fit_prior(model, memory, reranker, tmp_path, monkeypatch) -> None:
    data, out = tmp_path / "train.jsonl", tmp_path / "fitted"
    rows = [
        {"question": f"Who wrote {name} number {i}?", "answer": [name]} for i in range(12) for name in ("Emma", "Rome")
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    options = ["-m", model, "-i", memory, "--reranker", reranker, "--bias", "title", "--out", out, "--number", 22]
    done = cli("fit-prior", data, *options, "--json").json
    assert done["num_questions"] == 22
    assert set(done["weights"]) == {"dense", "bm25", "reranker", "title"}
    record = cli("ask", QUESTION, "-m", out, "-i", memory, "--json").json
    assert set(record["sources"][0]["parts"]) == set(done["weights"])
    monkeypatch.setattr("latentrag.evaluation.prior._row", None)  # nothing is scored again
    shown = cli("fit-prior", data, *options)
    assert "22 questions; scored in " in shown.stderr
    assert "held out, log p(y|x) of a question against vectors alone" in shown.stderr
    assert json.loads((out / "latentrag.json").read_text())["prior"]["settings"]["weights"] == pytest.approx(
        done["weights"]
    )
    assert "bias 'luck' is unknown" in cli("fit-prior", data, *options, "--bias", "luck").error()
    assert "--rewrites has no effect" in cli("fit-prior", data, *options, "--rewrites", 2).error()


def test_fit_prior_refuses_questions_that_have_patterns_only(model, memory, tmp_path) -> None:
    data = tmp_path / "patterns.jsonl"
    data.write_text("\n".join(json.dumps({"question": f"Who wrote {i}?", "answer_regex": "Emm."}) for i in range(22)))
    done = cli("fit-prior", data, "-m", model, "-i", memory, "--out", tmp_path / "out")
    assert done.code == 2
    assert "got 0 questions with an answer as text (patterns alone cannot be fitted to); needed 20" in done.error()
    assert not list(tmp_path.glob("out*"))


def test_fit_prior_refuses_what_cannot_be_saved_before_the_first_question(model, memory, tmp_path, monkeypatch) -> None:
    data, foreign = tmp_path / "train.jsonl", tmp_path / "foreign"
    data.write_text("\n".join(json.dumps({"question": f"Who wrote {i}?", "answer": "Emma"}) for i in range(22)))
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    monkeypatch.setattr("latentrag.evaluation.prior._row", None)
    options = ["-m", model, "-i", memory, "--out"]
    named = cli("fit-prior", data, *options, foreign).error()
    assert "exists and is no model that latentrag saved; name a new folder" in named
    rounded = cli("fit-prior", data, *options, tmp_path / "new", "--dtype", "int8").error()
    assert "a generator in int8 cannot be saved; load it in another dtype" in rounded


def test_train_trains_the_weights_on_and_saves_them(model, memory, reranker, tmp_path) -> None:
    data, out = tmp_path / "train.jsonl", tmp_path / "run"
    rows = [{"question": QUESTION, "answer": ["Beethoven"]}, {"question": "Who wrote Emma?", "answer": ["Austen"]}]
    data.write_text("\n".join(map(json.dumps, rows)))
    options = ["-m", model, "-i", memory, "--retriever", "hybrid", "--reranker", reranker, "--candidates", 3]
    how = ["--freeze", "generator", "--steps", 2, "--batch-size", 2, "-k", 2, "--lr-retriever", "1e-3", "--out", out]
    assert cli("train", data, *options, *how).code == 0
    settings = json.loads((out / "model/latentrag.json").read_text())["prior"]["settings"]
    rag = latentrag.load(model, memory=memory, retriever="hybrid", reranker=reranker)
    assert isinstance(rag.retriever, HybridRetriever)
    assert settings["num_candidates"] == 3
    for name, before in rag.retriever.settings()["weights"].items():
        assert settings["weights"][name] != before
    trained = latentrag.load(out / "model", memory=memory)
    assert set(trained.answer(QUESTION).sources[0].parts) == {"dense", "bm25", "reranker"}
