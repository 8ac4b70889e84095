"""Equal fingerprints, equal vectors; and a query encoder that keeps its pairing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentrag.encoder import SentenceEncoder, load_passage_encoder, load_query_encoder
from latentrag.types import Passage
from tests.encoder.tiny import write_json, write_sentence_encoder
from tests.noting import noting

PASSAGES = [Passage("1", "paris is the capital of france .", "paris"), Passage("2", "a play")]


@pytest.fixture(params=["sentence_folder", "passage_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


def fingerprint(folder, **options):
    return load_passage_encoder(folder, **options).fingerprint


def test_it_is_the_same_wherever_the_files_lie_and_whatever_the_scale(folder, tmp_path):
    before = fingerprint(folder)
    assert len(before) == 32
    assert int(before, 16) >= 0
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint(tmp_path / "elsewhere", scale=3.0, name="another") == before


def test_it_survives_saving_and_loading(folder, tmp_path):
    encoder = load_passage_encoder(folder)
    encoder.save(tmp_path / "saved")
    assert fingerprint(tmp_path / "saved") == encoder.fingerprint


def test_one_weight_changes_it(folder):
    before = fingerprint(folder)
    weights = load_file(folder / "model.safetensors")
    key = next(key for key in weights if key.endswith("layer.1.output.dense.weight"))
    weights[key] = weights[key].clone()
    weights[key][0, 0] = torch.nextafter(weights[key][0, 0], torch.tensor(9.0))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(folder) != before


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"num_attention_heads": 4}),
        ("config.json", {"hidden_act": "relu"}),
        ("sentence_bert_config.json", {"max_seq_length": 19}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}),
        ("1_Pooling/config.json", {"include_prompt": False}),
        ("config_sentence_transformers.json", {"prompts": {"document": "page : "}}),
        ("tokenizer.json", {"normalizer": None}),
        ("modules.json", None),
    ],
)
def test_every_setting_that_passages_depend_on_changes_it(sentence_folder, file, change):
    before = fingerprint(sentence_folder)
    path = sentence_folder / file
    if change is None:
        write_json(path, json.loads(path.read_text())[:-1])  # no Normalize
    else:
        write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | change)
    assert fingerprint(sentence_folder) != before


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"hidden_dropout_prob": 0.5, "_name_or_path": "another"}),
        ("config_sentence_transformers.json", {"prompts": {"query": "query : "}}),
        ("tokenizer.json", {"truncation": None, "padding": None}),
    ],
)
def test_settings_that_passages_do_not_depend_on_leave_it(sentence_folder, file, change):
    before = fingerprint(sentence_folder)
    path = sentence_folder / file
    write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | change)
    assert fingerprint(sentence_folder) == before


def test_it_is_computed_when_asked_for_and_then_kept(passage_folder, monkeypatch):
    from latentrag.encoder.identity import Fingerprint

    calls: list[Fingerprint] = []
    monkeypatch.setattr(Fingerprint, "_compute", noting(Fingerprint._compute, calls.append))
    encoder = load_passage_encoder(passage_folder)
    assert calls == []
    assert encoder.fingerprint == encoder.fingerprint
    assert len(calls) == 1


def test_it_follows_training(folder):
    encoder = load_passage_encoder(folder)
    before = encoder.fingerprint
    step(encoder)
    assert encoder.fingerprint != before


def step(encoder):
    """One step of an optimiser, on made-up gradients."""
    optimiser = torch.optim.SGD(encoder.module.parameters(), lr=0.1)
    for p in encoder.module.parameters():
        p.grad = torch.ones_like(p)
    optimiser.step()


class TestPairing:
    def test_a_trained_sentence_encoder_keeps_the_passages_it_began_with(self, sentence_folder, tmp_path):
        passage = load_passage_encoder(sentence_folder)
        query = load_query_encoder(sentence_folder)
        assert isinstance(query, SentenceEncoder)
        step(query)
        assert query.passage_fingerprint == passage.fingerprint != query.fingerprint
        query.save(tmp_path / "trained")
        again = load_query_encoder(tmp_path / "trained")
        assert isinstance(again, SentenceEncoder)
        assert again.passage_fingerprint == passage.fingerprint
        assert again.fingerprint == query.fingerprint
        again.save(tmp_path / "twice")
        assert load_query_encoder(tmp_path / "twice").passage_fingerprint == passage.fingerprint

    def test_dpr_has_the_pairing_it_is_given(self, query_folder, tmp_path):
        assert load_query_encoder(query_folder).passage_fingerprint is None
        load_query_encoder(query_folder, passage_fingerprint="abc").save(tmp_path / "saved")
        assert load_query_encoder(tmp_path / "saved").passage_fingerprint == "abc"
        assert load_query_encoder(tmp_path / "saved", passage_fingerprint="def").passage_fingerprint == "def"

    def test_a_sentence_encoder_can_be_paired_with_another(self, sentence_folder, tmp_path):
        other = load_passage_encoder(write_sentence_encoder(tmp_path / "other", seed=5)).fingerprint
        query = load_query_encoder(sentence_folder, passage_fingerprint=other)
        assert isinstance(query, SentenceEncoder)
        assert query.passage_fingerprint == other != query.fingerprint
