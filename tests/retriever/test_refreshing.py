"""Both encoders trained: real encoders with random weights, a real memory."""

import numpy as np
import pytest
import torch

from latentrag.encoder import load_passage_encoder, load_query_encoder
from latentrag.errors import EncoderMismatchError, MemoryStoreError, ModelError
from latentrag.memory import Memory
from latentrag.retriever import DenseRetriever, RefreshingRetriever
from latentrag.types import Passage
from tests.encoder.tiny import write_dpr, write_sentence_encoder
from tests.toy import Tolerance

PASSAGES = [
    Passage("paris", "paris is the capital of france", "paris"),
    Passage("rome", "rome is a city in italy", "rome"),
    Passage("hamlet", "hamlet is a play", "hamlet"),
    Passage("seine", "the seine is a river in france", "seine"),
    Passage("thames", "the river in london is the thames .", ""),
]
X = ["what is the capital of france ?", "who wrote hamlet ?"]
Y = ["paris", "the king"]
# Sums of 16 products in float32, of scores up to some tens.
ROUNDING: Tolerance = {"rtol": 1e-5, "atol": 1e-4}
# The memory keeps fp16.
STORED: Tolerance = {"rtol": 2e-3, "atol": 2e-2}


@pytest.fixture(params=["dpr", "sentence"])
def encoders(request, tmp_path):
    """Two of DPR's, or a sentence encoder loaded twice."""
    if request.param == "sentence":
        folder = write_sentence_encoder(tmp_path / "sentence", head=["Normalize"])
        return load_query_encoder(folder), load_passage_encoder(folder)
    d = load_passage_encoder(write_dpr(tmp_path / "d", "DPRContextEncoder", seed=1))
    folder = write_dpr(tmp_path / "q", "DPRQuestionEncoder")
    return load_query_encoder(folder, passage_fingerprint=d.fingerprint), d


@pytest.fixture
def memory(encoders, tmp_path):
    return Memory.create(tmp_path / "memory.lance", encoders[1]).add(PASSAGES, encoders[1])


@pytest.fixture
def retriever(encoders, memory):
    return RefreshingRetriever(encoders[0], encoders[1], memory)


def learn(encoder, *, seed: int = 0, by: float = 0.3) -> None:
    """Other weights, as after many steps."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.module.parameters():
            parameter.add_(by * torch.randn_like(parameter))


def stored(memory: Memory, dimension: int = 16) -> dict[str, np.ndarray]:
    found = memory.search(np.ones((1, dimension), np.float32), len(memory))
    return {p.id: vector for p, vector in zip(found.passages[0], found.vectors[0], strict=True)}


def fresh_scores(retriever, x, passages) -> torch.Tensor:
    """s·d(z)·q(x), one pair at a time."""
    q, d = retriever.query_encoder, retriever.passage_encoder
    rows = []
    for question, of_question in zip(x, passages, strict=True):
        vector = q.encode_queries([question])[0]
        rows.append(torch.stack([q.scale * vector @ d.passage_vectors([z])[0] for z in of_question]))
    return torch.stack(rows)


def test_scores_and_gradients_are_those_of_the_encoder_as_it_is_now(retriever) -> None:
    learn(retriever.passage_encoder)
    found = retriever.retrieve(X, 3)
    expected = fresh_scores(retriever, X, found.passages)
    torch.testing.assert_close(found.logits, expected, **ROUNDING)
    upstream = torch.randn(2, 3)
    parameters = [parameter for _, parameter in retriever.named_parameters()]
    ours = torch.autograd.grad(found.logits, parameters, upstream)
    theirs = torch.autograd.grad(expected, parameters, upstream)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)
    assert sum(bool(gradient.abs().max() > 1e-3) for gradient in ours) > len(ours) // 2


def test_the_search_goes_over_the_memory_as_it_was_encoded(encoders, memory) -> None:
    plain, retriever = DenseRetriever(encoders[0], memory), RefreshingRetriever(encoders[0], encoders[1], memory)
    before = plain.retrieve(X, 5)
    learn(encoders[1])
    found = retriever.retrieve(X, 5)
    assert found.passages == before.passages
    assert found.version == memory.version == 2
    assert (found.logits - before.logits).abs().max() > 0.1


def test_without_gradients_the_scores_are_those_of_the_search(encoders, memory) -> None:
    plain, retriever = DenseRetriever(encoders[0], memory), RefreshingRetriever(encoders[0], encoders[1], memory)
    learn(encoders[1])
    with torch.no_grad():
        assert torch.equal(retriever.retrieve(X, 3).logits, plain.retrieve(X, 3).logits)


def test_every_passage_is_encoded_once(retriever, monkeypatch) -> None:
    calls = []
    original = retriever.passage_encoder.passage_vectors

    def counted(passages):
        calls.append([passage.id for passage in passages])
        return original(passages)

    monkeypatch.setattr(retriever.passage_encoder, "passage_vectors", counted)
    found = retriever.retrieve([X[0], X[1], X[0]], 4)
    (ids,) = calls
    assert sorted(ids) == sorted({passage.id for of_one in found.passages for passage in of_one})
    assert torch.equal(found.logits[0], found.logits[2])


def test_hindsight_has_fresh_scores_too(retriever) -> None:
    learn(retriever.passage_encoder)
    found = retriever.retrieve_in_hindsight(X, Y, 2, 2)
    assert [len({passage.id for passage in of_one}) for of_one in found.passages] == [4, 4]
    assert [of_one[:2] for of_one in found.passages] == retriever.retrieve(X, 2).passages
    torch.testing.assert_close(found.logits, fresh_scores(retriever, X, found.passages), **ROUNDING)


def test_parameters_are_both_encoders_and_none_is_shared(retriever) -> None:
    named = list(retriever.named_parameters())
    sides = {name.split(".")[0] for name, _ in named}
    assert sides == {"query_encoder", "passage_encoder"}
    assert len({name for name, _ in named}) == len({id(parameter) for _, parameter in named}) == len(named)
    q = retriever.query_encoder.module.named_parameters()
    assert [(name, id(p)) for name, p in named][: len(list(q))] == [
        (f"query_encoder.{name}", id(p)) for name, p in retriever.query_encoder.module.named_parameters()
    ]


def test_refresh_brings_the_memory_up_to_the_encoder(retriever, memory) -> None:
    query, passage = retriever.query_encoder, retriever.passage_encoder
    old = stored(memory)
    learn(passage)
    learn(query, seed=1)
    assert retriever.refresh() == retriever.version == retriever.memory.version == 3
    assert query.passage_fingerprint == passage.fingerprint == retriever.memory.card.fingerprint
    expected = passage.encode_passages(PASSAGES).half().float()
    for each, vector in zip(PASSAGES, expected, strict=True):
        assert torch.equal(torch.from_numpy(stored(retriever.memory)[each.id]), vector)
        assert not np.allclose(old[each.id], vector, atol=0.05)

    found = retriever.retrieve(X, 5)
    assert found.version == 3
    with torch.no_grad():
        as_stored = retriever.retrieve(X, 5)
    torch.testing.assert_close(found.logits.detach(), as_stored.logits, **STORED)

    again = Memory.open(memory.path, version=2)
    assert again.card.fingerprint == memory.card.fingerprint
    with pytest.raises(EncoderMismatchError):
        DenseRetriever(query, again)
    DenseRetriever(query, Memory.open(memory.path))


def test_refresh_takes_the_newest_version_whatever_was_searched(retriever, memory, encoders) -> None:
    """Killed after a refresh, before its checkpoint: the memory is ahead of the run."""
    learn(encoders[1])
    retriever.refresh()
    memory_of_others = Memory.open(memory.path).add([Passage("new", "the moon is red")], encoders[1])
    retriever.use(2)
    learn(encoders[1], seed=2)
    assert retriever.refresh() == memory_of_others.version + 1 == 5
    assert len(retriever.memory) == len(PASSAGES) + 1
    assert np.allclose(
        stored(retriever.memory)["new"],
        encoders[1].encode_passages([Passage("new", "the moon is red")])[0],
        **STORED,
    )


def test_use_goes_to_a_version_and_its_encoder(retriever, memory) -> None:
    fingerprint = memory.card.fingerprint
    before = retriever.retrieve(X, 3)
    learn(retriever.passage_encoder)
    retriever.refresh()
    retriever.use(2)
    assert retriever.version == 2
    assert retriever.query_encoder.passage_fingerprint == fingerprint
    found = retriever.retrieve(X, 3)
    assert (found.passages, found.version) == (before.passages, 2)
    retriever.use(3)
    assert retriever.query_encoder.passage_fingerprint == retriever.passage_encoder.fingerprint
    with pytest.raises(MemoryStoreError, match="version"):
        retriever.use(9)
    assert retriever.version == 3


def test_a_refresh_that_fails_changes_nothing(retriever, memory) -> None:
    fingerprint = retriever.query_encoder.passage_fingerprint
    with torch.no_grad():
        next(retriever.passage_encoder.module.parameters()).fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        retriever.refresh()
    assert retriever.version == Memory.open(memory.path).version == 2
    assert retriever.query_encoder.passage_fingerprint == fingerprint
    with torch.no_grad():
        assert retriever.retrieve(X, 1).version == 2


def test_another_passage_encoder_is_refused_at_once(encoders, memory) -> None:
    learn(encoders[1])
    with pytest.raises(EncoderMismatchError, match="differs from"):
        RefreshingRetriever(encoders[0], encoders[1], memory)


def test_a_query_encoder_that_does_not_belong_is_refused_at_once(encoders, memory) -> None:
    encoders[0].pair_with("another")
    with pytest.raises(EncoderMismatchError, match="another"):
        RefreshingRetriever(encoders[0], encoders[1], memory)


def test_learning_the_scores_moves_both_encoders_and_survives_a_refresh(retriever) -> None:
    """Gradient ascent on the log-probability of one passage, the memory re-encoded half-way."""
    optimiser = torch.optim.AdamW([parameter for _, parameter in retriever.named_parameters()], lr=3e-3)
    wanted = "thames"

    def log_p() -> torch.Tensor:
        found = retriever.retrieve(X[:1], 5)
        place = [passage.id for passage in found.passages[0]].index(wanted)
        return torch.log_softmax(found.logits[0], dim=0)[place]

    first = log_p().item()
    for step in range(20):
        optimiser.zero_grad()
        (-log_p()).backward()
        optimiser.step()
        if step == 9:
            retriever.refresh()
    assert log_p().item() > first + 0.5
    retriever.refresh()
    assert retriever.retrieve(X[:1], 1).passages[0][0].id == wanted
