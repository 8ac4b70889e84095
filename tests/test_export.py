"""A trained model as plain folders: the same probabilities, read by the libraries alone."""

import json
from pathlib import Path

import pytest
import torch

import latentrag
from latentrag.assemble import export, save
from latentrag.assemble.training import generator_for_training
from latentrag.errors import InputError
from latentrag.generator import Lora
from latentrag.rag import Rag
from tests import tiny
from tests.cli.conftest import QUESTION, cli, encoder, files, generator, memory, model

__all__ = ["encoder", "files", "generator", "memory", "model"]


def adapted(model: Path, memory: Path, folder: Path, scope: str) -> Rag:
    """The model with an adapter that matters, saved."""
    rag = latentrag.load(model, memory=memory, dtype="float32")
    trained = generator_for_training(tiny.causal_of(rag), lora=Lora(rank=2, alpha=4, scope=scope), keep_preamble=True)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_" in name:
                weight.fill_(0.05)
    done = Rag(rag.retriever, trained, variant=rag.variant, k=3)
    save(done, folder, training={"data": "clues.jsonl, 3 examples", "steps": 2, "adapter": None})
    return done


def test_merged_it_says_the_same(model, memory, tmp_path) -> None:
    trained = adapted(model, memory, tmp_path / "trained", "all")
    plain = latentrag.load(model, memory=memory, dtype="float32", k=3).score(QUESTION, "Beethoven")
    expected = trained.score(QUESTION, "Beethoven").log_likelihood
    assert abs(plain.log_likelihood - expected) > 0.01
    done = cli("export", tmp_path / "trained", tmp_path / "plain")
    assert (done.code, done.stdout) == (0, "")
    again = latentrag.load(tmp_path / "plain", memory=memory, dtype="float32")
    assert again.score(QUESTION, "Beethoven").log_likelihood == pytest.approx(expected, abs=1e-5)
    assert not list((tmp_path / "plain").rglob("*lora*"))
    card = (tmp_path / "plain" / "README.md").read_text("utf-8")
    assert "- data: clues.jsonl, 3 examples" in card
    assert "adapter" not in card
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain" / "generator")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(loaded(ids).logits, tiny.causal_of(again).model(ids).logits, atol=1e-5)


def test_an_adapter_that_left_passages_alone_is_merged_with_a_word(model, memory, tmp_path) -> None:
    adapted(model, memory, tmp_path / "trained", "question")
    done = cli("export", tmp_path / "trained", tmp_path / "plain")
    assert done.code == 0
    assert "merged it reads passages too" in done.stderr


def test_a_model_without_an_adapter_is_copied(model, tmp_path) -> None:
    assert not export(model, tmp_path / "plain")
    assert json.loads((tmp_path / "plain/latentrag.json").read_text("utf-8"))["format"] == 2


def test_what_cannot_be_exported_is_refused(model, generator, tmp_path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert "name a new folder" in cli("export", model, tmp_path / "full").error()
    assert (tmp_path / "full" / "file").read_text() == "mine"
    with pytest.raises(InputError, match="no folder that latentrag saved"):
        export((model / "query_encoder", generator), tmp_path / "plain")  # type: ignore[arg-type]
