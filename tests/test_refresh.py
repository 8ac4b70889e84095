"""A model whose passage encoder is trained too, from its parts to a saved model that fits the refreshed memory."""

from pathlib import Path

import pytest
import torch

from latentrag.assemble import (
    ModelSpec,
    load,
    load_passage_encoder,
    open_memory,
    retriever_for_training,
    save,
    with_parts,
)
from latentrag.errors import EncoderMismatchError, InputError, ModelError
from latentrag.memory import Memory
from latentrag.retriever import RefreshingRetriever
from latentrag.types import Passage
from tests import tiny
from tests.encoder.tiny import write_dpr, write_sentence_encoder
from tests.test_assemble import PASSAGES, QUESTION


@pytest.fixture(params=["dpr", "sentence"])
def spec(request, tmp_path) -> ModelSpec:
    generator = tmp_path / "generator"
    tiny.save_tokenizer(generator, end=False)
    tiny.save_llama(generator)
    if request.param == "sentence":
        return ModelSpec(write_sentence_encoder(tmp_path / "encoder", head=["Normalize"]), generator)
    query = write_dpr(tmp_path / "q", "DPRQuestionEncoder")
    return ModelSpec(query, generator, write_dpr(tmp_path / "d", "DPRContextEncoder", seed=1))


@pytest.fixture
def path(spec, tmp_path) -> Path:
    encoder = load_passage_encoder(spec)
    return Memory.create(tmp_path / "memory.lance", encoder).add(PASSAGES, encoder).local


def trained(spec: ModelSpec, path: Path) -> RefreshingRetriever:
    """After one step of gradient on every weight of both encoders."""
    memory = open_memory(path)
    retriever = retriever_for_training(load(spec, memory=memory), spec, memory, True, device="cpu")
    assert isinstance(retriever, RefreshingRetriever)
    optimiser = torch.optim.AdamW([weight for _, weight in retriever.named_parameters()], lr=0.01)
    retriever.retrieve([QUESTION], 4).logits[0, 3].neg().backward()
    optimiser.step()
    return retriever


def test_the_retriever_stays_as_it_is_unless_asked(spec, path) -> None:
    memory = open_memory(path)
    rag = load(spec, memory=memory)
    assert retriever_for_training(rag, spec, memory, False, device="cpu") is rag.retriever


def test_the_encoders_learn_apart(spec, path) -> None:
    retriever = trained(spec, path)
    before = load_passage_encoder(spec)
    assert retriever.passage_encoder.fingerprint != before.fingerprint
    assert retriever.query_encoder.passage_fingerprint == before.fingerprint
    assert retriever.query_encoder.module is not retriever.passage_encoder.module


def test_the_saved_model_fits_the_refreshed_memory(spec, path, tmp_path) -> None:
    retriever = trained(spec, path)
    retriever.refresh()
    rag = load(spec, memory=path, version=2, k=3)
    rag = with_parts(rag, retriever, rag.generator)
    save(rag, tmp_path / "model", passage_encoder=retriever.passage_encoder)

    again = load(tmp_path / "model", memory=path)
    answer = again.answer(QUESTION, max_tokens=5)
    assert answer.memory_version == 3
    assert answer == rag.answer(QUESTION, max_tokens=5)
    encoder = load_passage_encoder(tmp_path / "model")
    assert encoder.fingerprint == open_memory(path).card.fingerprint
    open_memory(path).add([Passage("moon", "the moon is red")], encoder)
    with pytest.raises(EncoderMismatchError):
        load(tmp_path / "model", memory=path, version=2)
    with pytest.raises(EncoderMismatchError):
        load(spec, memory=path)

    memory = open_memory(path)  # and can be trained on
    further = retriever_for_training(again, tmp_path / "model", memory, True, device="cpu")
    assert isinstance(further, RefreshingRetriever)
    assert further.refresh() == 5


def test_a_model_saved_without_its_passage_encoder_cannot_refresh(spec, path, tmp_path) -> None:
    retriever = trained(spec, path)
    rag = load(spec, memory=path)
    save(with_parts(rag, retriever, rag.generator), tmp_path / "model")
    memory = open_memory(path)
    again = load(tmp_path / "model", memory=memory)
    with pytest.raises((EncoderMismatchError, ModelError)) as caught:
        retriever_for_training(again, tmp_path / "model", memory, True, device="cpu")
    assert "\n" not in str(caught.value)


def test_bm25_has_nothing_to_refresh(spec, path) -> None:
    memory = open_memory(path)
    rag = load(spec, memory=memory, retriever="bm25")
    assert retriever_for_training(rag, spec, memory, False, device="cpu") is rag.retriever
    with pytest.raises(InputError, match="bm25 retrieval has no passage encoder"):
        retriever_for_training(rag, spec, memory, True, device="cpu")
