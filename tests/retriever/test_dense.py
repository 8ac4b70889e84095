"""Dense retrieval: the logits and their gradient, with an encoder and a memory of ten lines each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latentrag.errors import EncoderMismatchError
from latentrag.retriever import DenseRetriever
from latentrag.types import Passage, SearchResult
from tests.toy import ToyMemory


class FakeQueryEncoder:
    """q(x) is a row of a trainable table; x is its number."""

    dimension = 6
    scale = 20.0
    passage_fingerprint = "f1"
    module = nn.Module()

    def __init__(self) -> None:
        self.table = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def encode_queries(self, x: Sequence[str]) -> torch.Tensor:
        return self.table[[int(text) for text in x]]

    def save(self, folder: Path) -> None:
        raise AssertionError("not asked for")


class FakeMemory(ToyMemory):
    """Nine passages; keeps what was found last."""

    def __init__(self, *, fits: bool = True) -> None:
        vectors = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
        super().__init__([Passage(str(row), f"text {row}") for row in range(9)], vectors, version=3)
        self.fits = fits
        self.checked: list[object] = []

    def check(self, query_encoder: object) -> None:
        self.checked.append(query_encoder)
        if not self.fits:
            raise EncoderMismatchError("got, needed, remedy")

    def search(self, q: np.ndarray, k: int) -> SearchResult:
        assert isinstance(q, np.ndarray)
        assert q.dtype == np.float32
        self.found = super().search(q, k)
        return self.found


def test_scores_are_the_scaled_scores_of_the_search():
    encoder, memory = FakeQueryEncoder(), FakeMemory()
    retrieved = DenseRetriever(encoder, memory).retrieve(["2", "0", "2"], 4)
    assert retrieved.passages == memory.found.passages
    assert retrieved.version == 3
    assert retrieved.logits.shape == (3, 4)
    assert retrieved.logits.dtype == torch.float32
    # Two float32 sums of six products in different orders: a few last bits of scores up to about 100.
    expected = torch.from_numpy(20.0 * memory.found.scores)
    torch.testing.assert_close(retrieved.logits.detach(), expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_reaches_q_and_is_the_scaled_sum_of_the_passages():
    """∂/∂q_b Σ_k g_bk s d_bk·q_b = s Σ_k g_bk d_bk."""
    encoder, memory = FakeQueryEncoder(), FakeMemory()
    scores = DenseRetriever(encoder, memory).retrieve(["1", "3"], 5).logits
    upstream = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    scores.backward(upstream)
    d = torch.from_numpy(memory.found.vectors)
    expected = torch.zeros(4, 6)
    for row, b in ((1, 0), (3, 1)):
        expected[row] = 20.0 * sum(upstream[b, k] * d[b, k] for k in range(5))
    # Float32 sums of five products of size up to about 50.
    torch.testing.assert_close(encoder.table.grad, expected, rtol=1e-5, atol=1e-4)


def test_no_gradient_is_kept_in_no_grad_mode():
    with torch.no_grad():
        scores = DenseRetriever(FakeQueryEncoder(), FakeMemory()).retrieve(["1"], 2).logits
    assert not scores.requires_grad


def test_mixed_precision_does_not_round_the_scores():
    encoder, memory = FakeQueryEncoder(), FakeMemory()
    retriever = DenseRetriever(encoder, memory)
    plain = retriever.retrieve(["0", "1"], 3).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = retriever.retrieve(["0", "1"], 3).logits
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


def test_the_scale_is_read_at_each_call():
    encoder = FakeQueryEncoder()
    retriever = DenseRetriever(encoder, FakeMemory())
    before = retriever.retrieve(["0"], 3).logits
    encoder.scale = 10.0
    torch.testing.assert_close(retriever.retrieve(["0"], 3).logits, before / 2)


def test_a_query_encoder_that_does_not_fit_is_refused_at_once():
    encoder, memory = FakeQueryEncoder(), FakeMemory(fits=False)
    with pytest.raises(EncoderMismatchError):
        DenseRetriever(encoder, memory)
    assert memory.checked == [encoder]
