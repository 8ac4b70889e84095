"""p_η(z|x) with dense vectors: top-K by inner product, differentiable in the query encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from latentrag.errors import InputError
from latentrag.place import Places
from latentrag.protocols import ChecksQuestions, Memory, QueryEncoder, SavablePart
from latentrag.retriever.together import flat, places_of
from latentrag.types import Asked, Passage, Retrieved, SearchResult, Together, question_texts, singles

if TYPE_CHECKING:
    from torch import Tensor, nn

    from latentrag.retriever.table import ModelParts


class TrainableQueryEncoder(QueryEncoder, SavablePart, Protocol):
    """A query encoder that is a module."""

    @property
    def module(self) -> nn.Module: ...


class DenseRetriever:
    """The top-K of p_η(z|x) ∝ exp(s·d(z)·q(x)) (Lewis et al. 2020, §2.2).

    The search sees q(x) without its gradient, since which passages are the top K is not differentiable; their
    scores are computed again with it. d(z) is constant, as in §2.4, unless ``fresh`` gives it.
    """

    kind = "dense"

    def __init__(
        self,
        query_encoder: TrainableQueryEncoder,
        memory: Memory,
        *,
        fresh: Callable[[list[list[Passage]]], Tensor] | None = None,
    ) -> None:
        """
        Args:
            fresh: B × K passages to their d(z), (B, K, D), in place of the memory's vectors wherever gradients are
                wanted.
        Raises: EncoderMismatchError if the memory holds the vectors of an encoder that does not fit.
        """
        memory.check(query_encoder)
        self.query_encoder = query_encoder
        self.memory = memory
        self._fresh = fresh

    def over(self, memory: Memory) -> DenseRetriever:
        """The same retriever over another memory. Raises: EncoderMismatchError if it does not fit."""
        return DenseRetriever(self.query_encoder, memory, fresh=self._fresh)

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        """Passages and logits, best first, for B questions.

            scores[b, k] = s · Σ_i q(x_b)_i d(z_bk)_i

        Returns: scores (B, K) float32, on the device of the query encoder.
        Raises: InputError for a question that cannot be encoded, k < 1 or k > len(memory).
        """
        q = self._q(x)
        found = self.memory.search(_searched(q), k)
        return self._scored(q, found.passages, found.vectors, found)

    def retrieve_in_hindsight(self, x: Sequence[Asked], y: Sequence[str], k: int, num_hindsight: int) -> Retrieved:
        """The top K of x, then ``num_hindsight`` others that x and y find together: candidates for training, where
        y is known (Hindsight, Paranjape et al. 2022; VOD, Liévin et al. 2023).

        y only proposes: all scores are s·d(z)·q(x). A prior over the union is a truncation of p_η as the top K is
        one, at passages that matter for y as well.

        Returns: B × (K + num_hindsight), no passage twice.
        Raises: as ``retrieve``; InputError if the memory has fewer passages than that.
        """
        memory = self.memory.snapshot()
        check_hindsight(memory, k, num_hindsight)
        more = memory.search(_searched(self._q_of_both(x, y)), k + num_hindsight)
        q = self._q(x)  # last: a call that takes gradients lets packed weights go
        found = memory.search(_searched(q), k)
        passages, vectors = [], []
        for b, of_x in enumerate(found.passages):
            known = {passage.id for passage in of_x}
            others = [i for i, passage in enumerate(more.passages[b]) if passage.id not in known][:num_hindsight]
            passages.append([*of_x, *(more.passages[b][i] for i in others)])
            vectors.append(np.concatenate([found.vectors[b], more.vectors[b][others]]))
        return self._scored(q, passages, np.stack(vectors), found, more)

    def retrieve_together(
        self,
        texts: Sequence[Sequence[str]],
        k: int,
        *,
        x: Sequence[Asked],  # noqa: ARG002
        also: Sequence[Sequence[str]] = (),
        num_also: int = 0,
    ) -> list[Together]:
        """As ``ReadsConversations``."""
        memory = self.memory.snapshot()
        more = None
        if num_also:
            with torch.no_grad():
                more = memory.search(_searched(self._q(flat(also))), num_also)
        q = self._q(flat(texts))  # last: a call that takes gradients lets packed weights go
        found = memory.search(_searched(q), k)
        together = []
        for b, places in enumerate(places_of(texts)):
            vectors = _vectors_of(found, places)
            num_found = len(vectors)
            if more is not None:
                vectors = vectors | {z: d for z, d in _vectors_of(more, places_of(also)[b]).items() if z not in vectors}
            missing = _missing(found, more)
            of_texts = q[places.start : places.stop]
            together.append(self._scored_together(of_texts, vectors, num_found, found.version, missing))
        return together

    def _scored_together(
        self,
        q: Tensor,
        vectors: Mapping[Passage, np.ndarray],
        num_found: int,
        version: int,
        missing: tuple[str, ...],
    ) -> Together:
        passages = list(vectors)
        d = self._d(q, [passages], np.stack(list(vectors.values()))[None])[0]  # (n, D)
        with torch.autocast(q.device.type, enabled=False):
            scores = self.query_encoder.scale * q @ d.T  # (R, n)
        return Together(passages, {"dense": scores}, num_found, version, missing)

    def check_questions(self, x: Sequence[str]) -> None:
        """Raises: InputError for a question that cannot be encoded, as far as its encoder says."""
        if isinstance(self.query_encoder, ChecksQuestions):
            self.query_encoder.check_questions(x)

    def settings(self) -> Mapping[str, object]:
        """None: its scale is the encoder's."""
        return {}

    def parts(self) -> Mapping[str, SavablePart]:
        """The query encoder."""
        return {"query_encoder": self.query_encoder}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """η: the query encoder's weights."""
        return self.query_encoder.module.named_parameters()

    def _q(self, x: Sequence[Asked]) -> Tensor:
        return self.query_encoder.encode_queries(question_texts(x)).float()  # (B, D)

    @torch.no_grad()
    def _q_of_both(self, x: Sequence[Asked], y: Sequence[str]) -> Tensor:
        """(B, D) of x and y as one text; of x alone where that is too long for the encoder."""
        both = [f"{text} {answer}" for text, answer in zip(question_texts(x), y, strict=True)]
        try:
            return self._q(both)
        except InputError:
            return torch.cat(
                [self._q_of_both([x[b]], [y[b]]) if len(x) > 1 else self._q([x[b]]) for b in range(len(x))]
            )

    def _scored(self, q: Tensor, passages: list[list[Passage]], vectors: np.ndarray, *found: SearchResult) -> Retrieved:
        """The passages of these searches, with logits."""
        d = self._d(q, passages, vectors)
        # Mixed precision would round the logits to a step of 0.5 at DPR's usual scores of about 80.
        with torch.autocast(q.device.type, enabled=False):
            scores = self.query_encoder.scale * torch.einsum("bd,bkd->bk", q, d)
        return Retrieved(singles(passages), {"dense": scores}, found[0].version, missing=_missing(*found))

    def _d(self, q: Tensor, passages: list[list[Passage]], vectors: np.ndarray) -> Tensor:
        """(B, K, D), where q is."""
        if self._fresh is not None and torch.is_grad_enabled():
            return self._fresh(passages).to(q.device)
        return torch.from_numpy(vectors).to(q.device)


def dense(parts: ModelParts, memory: Memory, places: Places) -> DenseRetriever:  # noqa: ARG001
    """A row of the table of retrievers."""
    return DenseRetriever(parts.query_encoder(), memory)


def check_hindsight(memory: Memory, k: int, num_hindsight: int) -> None:
    """Raises: InputError if the memory has fewer passages than k and those that hindsight adds."""
    if num_hindsight < 0:
        raise InputError(f"num_hindsight={num_hindsight} passages cannot be added; choose 0 or more")
    if k + num_hindsight > len(memory) >= k:
        raise InputError(
            f"k={k} passages and {num_hindsight} more by hindsight exceed the memory's {len(memory)}; lower either, or "
            "add passages"
        )


def _vectors_of(found: SearchResult, places: range) -> dict[Passage, np.ndarray]:
    """Of what these queries have found, each passage once."""
    return {z: d for b in places for z, d in zip(found.passages[b], found.vectors[b], strict=True)}


def _missing(*found: SearchResult | None) -> tuple[str, ...]:
    """The parts of the memory that one of these searches was done without."""
    return tuple(dict.fromkeys(part for each in found if each is not None for part in each.missing))


def _searched(q: Tensor) -> np.ndarray:
    """q for the search, which has no gradient."""
    array: np.ndarray = q.detach().cpu().numpy()
    return array
