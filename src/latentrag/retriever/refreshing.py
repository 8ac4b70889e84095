"""p_η(z|x) with both encoders trained and the memory re-encoded now and then (REALM, Guu et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, Self

import torch

from latentrag.protocols import Memory, PassageEncoder, SavablePart
from latentrag.retriever.dense import DenseRetriever, TrainableQueryEncoder
from latentrag.types import Passage

if TYPE_CHECKING:
    from torch import Tensor, nn


class PairedQueryEncoder(TrainableQueryEncoder, Protocol):
    """A query encoder whose passage encoder can change."""

    def pair_with(self, passage_fingerprint: str) -> None:
        """From now on its queries belong to the vectors of the passage encoder with this fingerprint."""
        ...


class TrainablePassageEncoder(PassageEncoder, SavablePart, Protocol):
    """A passage encoder that is a module."""

    @property
    def module(self) -> nn.Module: ...

    def passage_vectors(self, passages: Sequence[Passage]) -> Tensor:
        """(N, D) float32, in the order given, differentiable unless grad mode is off."""
        ...


class EncoderCard(Protocol):
    """What encoded a version of a memory."""

    @property
    def fingerprint(self) -> str: ...

    def check_passage_encoder(self, encoder: PassageEncoder) -> None:
        """EncoderMismatchError for another passage encoder."""
        ...


class Version(Protocol):
    """Of a memory, by its number."""

    @property
    def version(self) -> int: ...


class StoredMemory(Protocol):
    """A whole memory in its folder, which this process may change."""

    def at(self, version: int | str | None) -> Self:
        """The same memory at another version; None: its newest."""
        ...

    def reencode(self, encoder: PassageEncoder) -> Version:
        """A new version, in which every passage has the vector that ``encoder`` gives it."""
        ...


class RefreshableMemory(Memory, Protocol):
    """A memory with versions, each of which may have a passage encoder of its own."""

    @property
    def card(self) -> EncoderCard: ...

    def at(self, version: int | str | None) -> Self:
        """The same memory at another version; None: its newest."""
        ...

    @property
    def stored(self) -> StoredMemory:
        """All of its passages. MemoryStoreError where this process does not see the folder."""
        ...


class RefreshingRetriever(DenseRetriever):
    """A dense retriever whose passage encoder is trained, too.

    The search goes over the memory's vectors, which grow stale as the encoder learns; the scores of what it finds are

        s·d(z)·q(x)

    with d(z) by the encoder as it is now and with its gradient, and with the memory's vectors where grad mode is off.
    The order of what it returns is that of the search.
    """

    query_encoder: PairedQueryEncoder
    memory: RefreshableMemory

    def __init__(
        self, query_encoder: PairedQueryEncoder, passage_encoder: TrainablePassageEncoder, memory: RefreshableMemory
    ) -> None:
        """Raises: EncoderMismatchError if the memory does not hold the vectors of ``passage_encoder``, or
        ``query_encoder`` does not belong to them."""
        memory.card.check_passage_encoder(passage_encoder)
        super().__init__(query_encoder, memory, fresh=self._fresh_vectors)
        self.passage_encoder = passage_encoder

    @property
    def version(self) -> int:
        """The memory's version that is searched."""
        return self.memory.version

    def over(self, memory: Memory) -> DenseRetriever:
        """The same encoders over another memory. Raises: EncoderMismatchError if it does not fit."""
        return DenseRetriever(self.query_encoder, memory, fresh=self._fresh_vectors)

    def parts(self) -> Mapping[str, SavablePart]:
        """Both encoders."""
        return {"query_encoder": self.query_encoder, "passage_encoder": self.passage_encoder}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """η: the weights of both encoders."""
        yield from self.query_encoder.module.named_parameters(prefix="query_encoder")
        yield from self.passage_encoder.module.named_parameters(prefix="passage_encoder")

    def refresh(self) -> int:
        """Re-encode the memory's newest version, whichever was searched so far, and search the result from now on.

        Returns: its number.
        Raises: as ``Memory.reencode``; nothing has changed then.
        """
        self.use(self.memory.stored.at(None).reencode(self.passage_encoder).version)
        return self.version

    def use(self, version: int) -> None:
        """Search that version from now on: for a run that is resumed, whose weights are those of then, or one that
        another process has made.

        Raises: MemoryStoreError if the memory has no such version.
        """
        memory = self.memory.at(version)
        self.query_encoder.pair_with(memory.card.fingerprint)
        memory.check(self.query_encoder)
        self.memory = memory

    def _fresh_vectors(self, passages: list[list[Passage]]) -> Tensor:
        """d(z) by the encoder as it is now, (B, K, D); each passage is encoded once."""
        distinct = {passage.id: passage for of_question in passages for passage in of_question}
        row = {key: number for number, key in enumerate(distinct)}
        index = torch.tensor([[row[passage.id] for passage in of_question] for of_question in passages])  # (B, K)
        d = self.passage_encoder.passage_vectors(list(distinct.values())).float()  # (U, D)
        return d[index.to(d.device)]
