"""What is found for a question, with logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from latentrag.errors import UnavailableError
from latentrag.types.passages import Latent, LatentLists, Passage

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Top-K passages of a memory for B query vectors, best first; all from one version.

    Attributes:
        passages: B lists of K passages.
        vectors: (B, K, D) float32, the d(z) of those passages as the memory holds them.
        scores: (B, K) float32, d(z)·q without scale.
        version: the memory's version that was searched.
        missing: the parts of the memory that did not answer, where it is one that is searched without them: its
            passages are not among these. Empty: it was searched as a whole.
    """

    passages: list[list[Passage]]
    vectors: np.ndarray
    scores: np.ndarray
    version: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What is retrieved for a question: passages, each with the logit of p_η(z|x) and p_η(z|x) itself, best first.

    Attributes:
        version: of the memory.
        missing: as of a ``SearchResult``.
    """

    question: str
    version: int
    passages: tuple[tuple[Passage, float, float], ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WordResult:
    """Passages of a memory that hold words of B questions, best first; all from one version.

    Attributes:
        passages: B lists of K passages.
        rows: (B, K) int64, how the memory names them.
        scores: (B, K) float32, BM25 times the scale that was asked for.
        version: the memory's version that was searched.
    """

    passages: list[list[Passage]]
    rows: np.ndarray
    scores: np.ndarray
    version: int


@dataclass(frozen=True, slots=True)
class Candidates:
    """Passages of a memory that vectors or words propose for B questions, in the table's order; all from one version.

    Attributes:
        passages: for each question n of them.
        rows: (n,) int64 each, how the memory names them.
        vectors: (n, D) float32 each, their d(z) as the memory holds them.
        words: (n,) float64 each, BM25(x,z).
        version: the memory's version that was searched.
    """

    passages: list[list[Passage]]
    rows: list[np.ndarray]
    vectors: list[np.ndarray]
    words: list[np.ndarray]
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """What several texts find for one question, and what each of them says of all that was found.

    Attributes:
        passages: n of them, each once: the top ones of each text, then those that were proposed otherwise.
        parts: name → (R, n) float32; the sum is the logit of p_η(z|r), differentiable in the retriever's weights.
        num_found: how many of the passages the texts themselves have found.
        version: the memory's version that was searched.
        missing: as of a ``SearchResult``.
    """

    passages: Sequence[Passage]
    parts: Mapping[str, Tensor]
    num_found: int
    version: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AsRead:
    """A way to read the last question of a conversation, as retrieval read it.

    Attributes:
        kind: "last": alone; "before": with the question before and its answer; "all": with all turns; "rewrite": as
            the generator has written it.
        text: what was searched for.
        num_dropped: earlier turns that it left out because the text would have been too long.
    """

    kind: str
    text: str
    num_dropped: int = 0


@dataclass(frozen=True, slots=True)
class Readings:
    """How the last question of a conversation may be read, a latent value beside z.

    Attributes:
        ways: R of them.
        prior: (R,) p(r|h).
        of_passages: id of each passage that was retrieved → (R,) p(r|z,h), which of them it is owed to.
        trained: whether p(r|h) was trained with the model; if not, it is that of ``readings.DEFAULTS``.
    """

    ways: tuple[AsRead, ...]
    prior: tuple[float, ...]
    of_passages: Mapping[str, tuple[float, ...]] = field(hash=False)
    trained: bool

    def shares(self, latents: Sequence[Latent], weights: Sequence[float]) -> tuple[float, ...]:
        """(R,) the share of each reading: Σ_z w_z p(r|z,h). A set has the mean of its passages; "no passage" says
        nothing of the reading and has p(r|h).

        Args:
            weights: (K,) of the latent values, prior or posterior.
        """
        total = [0.0] * len(self.ways)
        for z, weight in zip(latents, weights, strict=True):
            rows = [self.of_passages[passage.id] for passage in z] or [self.prior]
            for r in range(len(total)):
                total[r] += weight * sum(row[r] for row in rows) / len(rows)
        return tuple(total)


@dataclass(frozen=True, slots=True, eq=False)
class Retrieved:
    """What a retriever returns for B questions, best first.

    Attributes:
        latents: B lists of K latent values. Where a question has fewer, the list is filled up, and ``mask`` says so.
        parts: name → (B, K) float32; their sum is the logit of p_η(z|x), differentiable in the retriever's weights.
        version: the memory's version they came from; 0: no memory was asked.
        mask: (B, K), True = a value of the question; None: all are.
        readings: of each question, None where it is one turn; empty: all are.
        missing: as of a ``SearchResult``.
    """

    latents: LatentLists
    parts: Mapping[str, Tensor]
    version: int
    mask: Tensor | None = None
    readings: Sequence[Readings | None] = ()
    missing: tuple[str, ...] = ()

    @property
    def logits(self) -> Tensor:
        """(B, K) of p_η(z|x): the sum of the parts; −inf where masked."""
        first, *others = self.parts.values()
        total = first
        for part in others:
            total = total + part
        return total if self.mask is None else total.masked_fill(~self.mask, float("-inf"))

    @property
    def passages(self) -> list[list[Passage]]:
        """For each question the passages of its latent values, each once, in their order."""
        masks = [[True] * len(row) for row in self.latents] if self.mask is None else self.mask.tolist()
        return [
            distinct_passages([z for z, is_real in zip(row, of_row, strict=True) if is_real])
            for row, of_row in zip(self.latents, masks, strict=True)
        ]

    def at(self, rows: Sequence[Sequence[int]]) -> Self:
        """Of each question the latent values at these places, as many for each."""
        index = next(iter(self.parts.values())).new_tensor(rows).long()
        return replace(
            self,
            latents=[[of_one[k] for k in places] for of_one, places in zip(self.latents, rows, strict=True)],
            parts={name: part.gather(1, index) for name, part in self.parts.items()},
            mask=None if self.mask is None else self.mask.gather(1, index),
        )

    def between(self, start: int, stop: int | None = None) -> Self:
        """Of each question the latent values from ``start`` to ``stop``."""
        return replace(
            self,
            latents=[of_one[start:stop] for of_one in self.latents],
            parts={name: part[:, start:stop] for name, part in self.parts.items()},
            mask=None if self.mask is None else self.mask[:, start:stop],
        )

    def whole(self) -> Self:
        """Itself, for what a part of the memory would falsify: a measure, a step of training.

        Raises: UnavailableError if a part did not answer.
        """
        if self.missing:
            raise UnavailableError(
                f"{' and '.join(self.missing)} did not answer, and what is measured or learned needs all passages; go "
                "on when all shards answer (`latentrag cluster status`)"
            )
        return self


def distinct_passages(latents: Sequence[Latent]) -> list[Passage]:
    """The passages of latent values, each once, in the order in which they first stand there."""
    return list(dict.fromkeys(passage for z in latents for passage in z))
