"""Cross-encoders by sentence-transformers and by onnxruntime: raw logits, each pair once."""

import sys
import types

import numpy as np
import pytest
import torch

from latentrag.errors import InputError, ModelError
from latentrag.readings import readings_of
from latentrag.retriever import HybridRetriever
from latentrag.retriever.reranker import CrossEncoderReranker, load_reranker
from latentrag.types import Passage, Question, Turn
from tests.encoder.tiny import sizes, write_tokenizer
from tests.retriever.test_hybrid import FakeQueryEncoder
from tests.toy import ToyMemory

PASSAGES = [Passage("a", "paris is a city", "paris"), Passage("b", "the king of england", ""), Passage("c", "seine")]
X = ["what river is in paris ?", "who was king ?"]


def write_reranker(folder, *, num_labels=1):
    """A tiny BERT that gives one number for a pair."""
    from transformers import BertConfig, BertForSequenceClassification

    write_tokenizer(folder, model_max_length=24)
    torch.manual_seed(3)
    config = BertConfig(**{**sizes(), "num_labels": num_labels})
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def test_raw_logits_of_title_and_text_after_the_question(tmp_path):
    from transformers import AutoTokenizer

    model = write_reranker(tmp_path / "reranker")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reranker")
    reranker = load_reranker(tmp_path / "reranker", device="cpu")
    found = reranker.scores(X, [PASSAGES, PASSAGES[:2]])
    assert [len(each) for each in found] == [3, 2]
    for question, passages, scores in zip(X, (PASSAGES, PASSAGES[:2]), found, strict=True):
        for z, score in zip(passages, scores.tolist(), strict=True):
            text = f"{z.title}\n{z.text}" if z.title else z.text
            inputs = tokenizer(question, text, return_tensors="pt", truncation=True, padding=False)
            with torch.no_grad():
                assert score == pytest.approx(model(**inputs).logits.item(), abs=1e-5)
    assert reranker.name == "reranker"
    reranker.save(tmp_path / "saved")
    saved = load_reranker(tmp_path / "saved", device="cpu")
    again = saved.scores(X, [PASSAGES, PASSAGES[:2]])
    assert all(map(np.array_equal, again, found))
    assert saved.fingerprint == reranker.fingerprint
    (tmp_path / "saved" / "config.json").write_text("{}")
    changed = CrossEncoderReranker(tmp_path / "saved", lambda _: np.zeros(0, np.float32), name="x")
    assert changed.fingerprint != reranker.fingerprint


@pytest.fixture
def asked():
    """The shapes that an ONNX reranker was given."""
    return []


@pytest.fixture
def onnx(tmp_path, monkeypatch, asked):
    """An ONNX reranker whose logit is the sum of a pair's token ids."""

    class Session:
        def __init__(self, file, options, providers):
            assert file == str(tmp_path / "model.onnx")

        def get_inputs(self):
            return [types.SimpleNamespace(name=name) for name in ("input_ids", "attention_mask")]

        def run(self, outputs, inputs):
            asked.append({name: each.shape for name, each in inputs.items()})
            return [(inputs["input_ids"] * inputs["attention_mask"]).sum(axis=1, keepdims=True).astype(np.float32)]

    fake = types.SimpleNamespace(SessionOptions=types.SimpleNamespace, InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    write_tokenizer(tmp_path)
    (tmp_path / "model.onnx").touch()
    return load_reranker(tmp_path, device="cpu")


def test_turns_that_are_too_long_for_an_onnx_reranker_are_dropped_and_a_long_question_is_refused(onnx, monkeypatch):
    monkeypatch.setattr("latentrag.retriever.reranker.MAX_TOKENS", 24)
    monkeypatch.setattr("latentrag.retriever.reranker.ROOM", 8)
    encoder = FakeQueryEncoder()  # which reads everything
    retriever = HybridRetriever(encoder, ToyMemory(PASSAGES), reranker=onnx)
    said = [turn for i in range(9) for turn in (Turn("user", f"king {i}"), Turn("assistant", "of england"))]
    ways = readings_of(retriever, Question((*said, Turn("user", X[0]))))
    assert [way.kind for way in ways] == ["last", "before", "all"]
    assert ways[-1].num_dropped > 0
    for way in ways:
        assert len(onnx.scores([way.text], [PASSAGES])[0]) == 3
    long = " ".join(["paris"] * 30)
    for ask in (retriever.check_questions, lambda x: onnx.scores(x, [PASSAGES])):
        with pytest.raises(InputError, match="too long for the reranker: 33 tokens, 16 at most leave room"):
            ask([long])


def test_onnx_reads_each_pair_once_shortest_first_and_only_the_inputs_that_are_wanted(onnx, asked):
    found = onnx.scores(X, [PASSAGES, [PASSAGES[1], PASSAGES[1]]])
    assert found[1][0] == found[1][1]
    assert asked == [dict.fromkeys(("input_ids", "attention_mask"), (4, asked[0]["input_ids"][1]))]
    again = [onnx.scores([x], [[z]])[0].item() for x, z in ((X[0], PASSAGES[2]), (X[1], PASSAGES[1]))]
    assert again == [found[0][2], found[1][1]]
    assert len(asked) == 1


def test_what_is_no_reranker(tmp_path, monkeypatch):
    write_reranker(tmp_path / "two", num_labels=2)
    with pytest.raises(ModelError, match="gives 2 numbers for a passage; a reranker gives one"):
        load_reranker(tmp_path / "two", device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds neither model.safetensors nor model.onnx"):
        load_reranker(tmp_path / "empty", device="cpu")
    (tmp_path / "empty" / "model.onnx").touch()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"needs onnxruntime; install latentrag\[onnx\]"):
        load_reranker(tmp_path / "empty", device="cpu")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_refused_and_nothing_of_the_call_is_kept(tmp_path, wrong):
    asked = []

    def scorer(pairs):
        asked.append(len(pairs))
        return np.array([wrong if len(asked) == 1 and not i else 0.5 for i in range(len(pairs))], np.float32)

    reranker = CrossEncoderReranker(tmp_path, scorer, name="damaged")
    with pytest.raises(ModelError, match="the reranker damaged gives no finite number for 1 of 3 pairs of question"):
        reranker.scores(X[:1], [PASSAGES])
    assert reranker.scores(X[:1], [PASSAGES])[0].tolist() == [0.5] * 3
    assert asked == [3, 3]
