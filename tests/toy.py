"""A generator of ten lines' worth of ideas: random tables instead of a network, small enough to enumerate."""

import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypedDict

import numpy as np
import torch
from torch import Tensor

from latentrag.protocols import Capabilities, Memory, QueryEncoder
from latentrag.rag import Rag
from latentrag.types import Asked, LatentLists, Passage, Question, SearchResult, Targets, Variant


@dataclass(frozen=True)
class ToyPrepared:
    """rows[b][k] names an (x, z)."""

    rows_of: tuple[tuple[str, ...], ...]

    @property
    def num_questions(self) -> int:
        return len(self.rows_of)

    @property
    def num_passages(self) -> int:
        return len(self.rows_of[0])

    def rows(self, index: Tensor) -> "ToyPrepared":
        return ToyPrepared(tuple(self.rows_of[i] for i in index.tolist()))

    def each_passage(self) -> "ToyPrepared":
        return ToyPrepared(tuple((name,) for row in self.rows_of for name in row))


@dataclass
class ToyState:
    prepared: ToyPrepared
    prefixes: list[list[tuple[int, ...]]]  # (B, M)


class ToyGenerator:
    """p(y_i|x,z,y_<i) is a softmax over random logits that depend on all of x, z, y_<i. Token 0 ends y."""

    end_ids: tuple[int, ...] = (0,)
    capabilities = Capabilities()
    device = torch.device("cpu")
    max_target_tokens: int | None = None

    def __init__(self, vocabulary: int = 4, *, seed: int = 0, sharpness: float = 2.0) -> None:
        self.vocabulary, self.seed, self.sharpness = vocabulary, seed, sharpness
        self.decoding_defaults: Mapping[str, Any] = {}
        self.num_steps = 0

    def log_p(self, name: str, prefix: Sequence[int]) -> Tensor:
        """(V,) log p(·|x,z,prefix)."""
        key = f"{self.seed}|{name}|{tuple(prefix)}"
        random = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        return torch.log_softmax(self.sharpness * torch.randn(self.vocabulary, generator=random), dim=0)

    def prepare(self, x: Sequence[Asked], latents: LatentLists) -> ToyPrepared:
        return ToyPrepared(
            tuple(
                tuple(f"{Question.of(question).text}|{'+'.join(passage.id for passage in z)}" for z in of_question)
                for question, of_question in zip(x, latents, strict=True)
            )
        )

    def targets(self, y: Sequence[str]) -> Targets:
        """Letters a, b, c … are tokens 1, 2, 3 …"""
        rows = [[ord(letter) - 96 for letter in text] + [0] for text in y]
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
        return Targets(ids, mask)

    def log_p_theta(self, prepared: ToyPrepared, targets: Targets) -> Tensor:
        rows = []
        for names, ids in zip(prepared.rows_of, targets.ids.tolist(), strict=True):
            rows.append(
                torch.stack(
                    [torch.stack([self.log_p(name, ids[:t])[ids[t]] for t in range(len(ids))]) for name in names]
                )
            )
        return torch.stack(rows)

    def start(self, prepared: ToyPrepared) -> tuple[Tensor, ToyState]:
        state = ToyState(prepared, [[()] for _ in prepared.rows_of])
        return self._grid(state), state

    def step(self, state: ToyState, parents: Tensor, tokens: Tensor) -> tuple[Tensor, ToyState]:
        num_beams = len(state.prefixes[0])
        flat = [prefix for row in state.prefixes for prefix in row]
        prefixes = [
            [(*flat[parent], token) for parent, token in zip(of_parents, of_tokens, strict=True)]
            for of_parents, of_tokens in zip(parents.tolist(), tokens.tolist(), strict=True)
        ]
        state = ToyState(state.prepared.rows(parents[:, 0] // num_beams), prefixes)
        self.num_steps += 1
        return self._grid(state), state

    def _grid(self, state: ToyState) -> Tensor:
        return torch.stack(
            [
                torch.stack([torch.stack([self.log_p(name, prefix) for prefix in of_question]) for name in names])
                for names, of_question in zip(state.prepared.rows_of, state.prefixes, strict=True)
            ]
        )

    def text(self, ids: Sequence[int]) -> str:
        return "".join(self.token_texts(ids))

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        return ["" if token == 0 else chr(96 + token) for token in ids]


def toy_of(rag: Rag) -> ToyGenerator:
    """Its generator, which is a toy."""
    assert isinstance(rag.generator, ToyGenerator)
    return rag.generator


class ToyMemory:
    """Passages with their vectors, searched one by one. It does not change, and takes any encoder."""

    def __init__(self, kept: Sequence[Passage] = (), vectors: np.ndarray | None = None, *, version: int = 7) -> None:
        self.kept, self.version = list(kept), version
        self.vectors = np.zeros((len(kept), 1), np.float32) if vectors is None else vectors

    def __len__(self) -> int:
        return len(self.kept)

    def search(self, q: np.ndarray, k: int) -> SearchResult:
        scores = q @ self.vectors.T  # (B, N)
        rows = np.argsort(-scores, axis=1)[:, :k]
        found = [[self.kept[row] for row in of_query] for of_query in rows]
        return SearchResult(found, self.vectors[rows], np.take_along_axis(scores, rows, axis=1), self.version)

    def passages(self) -> Iterator[Passage]:
        return iter(self.kept)

    def get(self, ids: Sequence[str]) -> list[Passage]:
        by_id = {passage.id: passage for passage in self.kept}
        return [by_id[key] for key in ids]

    def check(self, query_encoder: QueryEncoder) -> None:
        pass

    def snapshot(self) -> Self:
        return self


class ToyRetriever:
    """What a retriever has beside ``retrieve``, where no test asks for it."""

    memory: Memory = ToyMemory()

    def over(self, memory: Memory) -> Self:
        return self


class Tolerance(TypedDict):
    """What ``torch.testing.assert_close`` and ``torch.allclose`` take."""

    rtol: float
    atol: float


def grad_of(tensor: Tensor) -> Tensor:
    """The gradient that ``backward`` has left there."""
    assert tensor.grad is not None
    return tensor.grad


def passages(count: int, *, name: str = "z") -> list[Passage]:
    return [Passage(id=f"{name}{k}", text=f"text {k}", title=f"title {k}") for k in range(count)]


def enumerate_marginal(
    generator: ToyGenerator, names: Sequence[str], log_p_eta: Tensor, *, variant: Variant, max_tokens: int
) -> dict[tuple[int, ...], float]:
    """log p(y|x) in float64 of every y: all that end within max_tokens, and all cut-off ones of that length."""
    words = range(1, generator.vocabulary)
    found = {}
    for length in range(max_tokens + 1):
        for body in itertools.product(words, repeat=length):
            ids = (*body, 0) if length < max_tokens else body
            per_token = torch.stack(
                [torch.stack([generator.log_p(name, ids[:t])[ids[t]] for t in range(len(ids))]) for name in names]
            ).double()
            prior = log_p_eta.double()
            if variant == "sequence":
                found[ids] = (prior + per_token.sum(dim=1)).logsumexp(dim=0).item()
            else:
                found[ids] = (prior[:, None] + per_token).logsumexp(dim=0).sum().item()
    return found
