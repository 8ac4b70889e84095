"""p_η(z|x) as a sum of experts: vectors, words, a cross-encoder that reads x and z together, a passage's own bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from latentrag.errors import InputError, ModelError
from latentrag.place import Places
from latentrag.protocols import ChecksQuestions, Memory, SavablePart, SearchesWords
from latentrag.retriever.biases import BIASES
from latentrag.retriever.bm25 import checked_k
from latentrag.retriever.dense import TrainableQueryEncoder, check_hindsight
from latentrag.retriever.reranker import check_finite, load_reranker
from latentrag.retriever.together import flat, places_of
from latentrag.types import Asked, Candidates, Passage, Retrieved, Together, question_texts, singles

if TYPE_CHECKING:
    import os

    from torch import Tensor

    from latentrag.retriever.table import ModelParts

NUM_CANDIDATES = 20
"""Passages that vectors propose, and as many that words do."""
BM25_WEIGHT = 0.2
"""λ of a prior that was not fitted (docs/experiments/prior.md)."""
RERANKER_WEIGHT = 0.5
"""μ of a prior that was not fitted."""


class Reranker(SavablePart, Protocol):
    """r(x, z): a model that reads question and passage together."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    def scores(self, x: Sequence[str], passages: Sequence[Sequence[Passage]]) -> list[np.ndarray]:
        """For each of B questions the raw logits of its passages, (n,) float32."""
        ...


class HybridRetriever:
    """The K passages of largest logit among those that vectors and words propose, and p_η(z|x) over them.

        logit(z) = s·d(z)·q(x) + λ·BM25(x,z) + μ·r(x,z) + Σ_i w_i·b_i(x,z)

    The candidates are the ``num_candidates`` (or K, if that is more) of largest d(z)·q(x) and as many of largest
    BM25(x,z) above 0; each expert scores all of them exactly. The weights are parameters, fitted or trained like the
    query encoder's; d(z), BM25 and r are constant. Equal logits come in the table's order.

    Differs from Lewis et al. 2020, §2.2, by every part but the first; with λ = 0 and no other part it is the dense
    retriever, but for the candidates of BM25.
    """

    kind = "hybrid"
    searches_words = True

    def __init__(
        self,
        query_encoder: TrainableQueryEncoder,
        memory: Memory,
        *,
        weights: Mapping[str, float] | None = None,
        num_candidates: int = NUM_CANDIDATES,
        reranker: Reranker | None = None,
    ) -> None:
        """
        Args:
            weights: of the experts by name: dense, bm25, reranker, and of biases in ``BIASES``. A bias without a weight
                is no part of the logit. None, or one of the first three missing: as of a prior that was not fitted; the
                encoder's own scale for dense.
        Raises: InputError for an unknown expert, a weight that is not finite, or num_candidates < 1;
            EncoderMismatchError if the memory holds the vectors of an encoder that does not fit.
        """
        memory.check(query_encoder)
        if num_candidates < 1:
            raise InputError(f"num_candidates={num_candidates} passages cannot be proposed; choose 1 or more")
        self.query_encoder = query_encoder
        self.memory = memory
        self.num_candidates = num_candidates
        self.reranker = reranker
        usual = {"dense": query_encoder.scale, "bm25": BM25_WEIGHT}
        if reranker is not None:
            usual["reranker"] = RERANKER_WEIGHT
        if reranker is None and "reranker" in (weights or {}):
            raise InputError("the prior has a weight for a reranker, and there is none; name it (--reranker)")
        chosen = {**usual, **(weights or {})}
        for name, weight in chosen.items():
            if name not in usual:
                BIASES[name]
            if not math.isfinite(weight):
                raise InputError(f"the weight of {name} is {weight}; needed a finite number")
        self.weights = {name: nn.Parameter(torch.tensor(float(weight))) for name, weight in chosen.items()}

    def weighing(self, weights: Mapping[str, float]) -> HybridRetriever:
        """The same retriever with these weights, which may name other biases."""
        return HybridRetriever(
            self.query_encoder,
            self.memory,
            weights=weights,
            num_candidates=self.num_candidates,
            reranker=self.reranker,
        )

    def over(self, memory: Memory) -> HybridRetriever:
        """The same retriever, with the same parameters, over another memory."""
        other = HybridRetriever(self.query_encoder, memory, num_candidates=self.num_candidates, reranker=self.reranker)
        other.weights = self.weights
        return other

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        """Passages and logits for B questions, best first; what only a K above ``num_candidates`` proposes comes last.

        Returns: parts (B, K) float32, on the device of the query encoder.
        Raises: InputError for a question that cannot be encoded, k < 1, k > len(memory), or a memory without an index
            of words.
        """
        memory, texts = self.memory.snapshot(), question_texts(x)
        q = self._q(texts)
        return self._retrieved(*self._ranked(memory, q, texts, k))

    def retrieve_in_hindsight(self, x: Sequence[Asked], y: Sequence[str], k: int, num_hindsight: int) -> Retrieved:
        """The top K of x, then ``num_hindsight`` others that vectors and words of x and y together find: see
        ``DenseRetriever``. All logits are of x alone.

        Raises: as ``retrieve``; InputError if the memory has fewer passages than that.
        """
        memory, texts = self.memory.snapshot(), question_texts(x)
        check_hindsight(memory, k, num_hindsight)
        both = [f"{text} {answer}" for text, answer in zip(texts, y, strict=True)]
        with torch.no_grad():
            q_of_both = self._q_of_both(texts, both)
            more = self._proposed(memory, q_of_both, both, k + num_hindsight)
            proposed = self._parts(q_of_both, both, more, reranks=False)
        q = self._q(texts)  # last: a call that takes gradients lets packed weights go
        found, parts, top = self._ranked(memory, q, texts, k)
        rows = []
        for b, of_both in enumerate(proposed):
            order = _best_first(of_both)
            rows.append(order[~np.isin(more.rows[b][order], found.rows[b][top[b]])][:num_hindsight])
        added = _some_of(more, rows, lambda each: self._words(memory).word_scores(texts, each))
        of_added = self._parts(q, texts, added)
        first = self._retrieved(found, parts, top)
        second = self._retrieved(added, of_added, [np.arange(len(of_one)) for of_one in rows])
        return Retrieved(
            [[*of_x, *of_both] for of_x, of_both in zip(first.latents, second.latents, strict=True)],
            {name: torch.cat([part, second.parts[name]], dim=1) for name, part in first.parts.items()},
            first.version,
        )

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
        memory, every = self.memory.snapshot(), flat(texts)
        more: list[Candidates] = []
        if num_also:
            with torch.no_grad():
                more = self._best(memory, self._q(flat(also)), flat(also), num_also, reranks=False)
        q = self._q(every)  # last: a call that takes gradients lets packed weights go
        found = self._best(memory, q.detach(), every, k)
        unions, sizes = [], []
        for b, places in enumerate(places_of(texts)):
            own = _united([found[i] for i in places])
            sizes.append(len(own.rows[0]))
            added = [more[i] for i in places_of(also)[b]] if more else []
            unions.append(_united([own, *added]))
        together = []
        for b, places in enumerate(places_of(texts)):
            of_texts = self._repeated(memory, unions[b], texts[b])
            parts = self._parts(q[places.start : places.stop], texts[b], of_texts)
            stacked = {name: torch.stack([each[name] for each in parts]) for name in parts[0]}  # (R, n)
            together.append(Together(unions[b].passages[0], stacked, sizes[b], unions[b].version))
        return together

    def _best(
        self, memory: Memory, q: Tensor, texts: Sequence[str], num: int, *, reranks: bool = True
    ) -> list[Candidates]:
        """The ``num`` candidates of largest logit for each text."""
        found = self._proposed(memory, q, texts, num)
        parts = self._parts(q, texts, found, reranks=reranks)
        return [_one_of(found, b, _best_first(each)[:num]) for b, each in enumerate(parts)]

    def _repeated(self, memory: Memory, found: Candidates, texts: Sequence[str]) -> Candidates:
        """The candidates of one question for each of its texts."""
        rows = found.rows * len(texts)
        words = self._words(memory).word_scores(texts, rows)
        return Candidates(found.passages * len(texts), rows, found.vectors * len(texts), words, found.version)

    def features(self, x: Sequence[Asked], num: int) -> tuple[Candidates, list[dict[str, np.ndarray]]]:
        """What every expert says of the candidates of B questions, without its weight: for a fit.

        Args:
            num: passages that vectors propose, and as many that words do.
        Returns: the candidates, and for each question the experts' values by name, (n,) float64 each: those of every
            bias, too.
        """
        memory, texts = self.memory.snapshot(), question_texts(x)
        with torch.no_grad():
            q = self._q(texts)
            found = self._words(memory).candidates(_searched(q), texts, min(num, len(memory)))
            values = self._values(q, texts, found, list(dict.fromkeys([*self.weights, *BIASES])))
        return found, [{name: each.double().cpu().numpy() for name, each in of_one.items()} for of_one in values]

    def check_questions(self, x: Sequence[str]) -> None:
        """Raises: InputError for a question that its encoder or its reranker cannot read, as far as they say."""
        for part in (self.query_encoder, self.reranker):
            if isinstance(part, ChecksQuestions):
                part.check_questions(x)

    def settings(self) -> Mapping[str, Any]:
        """The weights, and how many passages each of vectors and words proposes."""
        weights = {name: weight.item() for name, weight in self.weights.items()}
        return {"weights": weights, "num_candidates": self.num_candidates}

    def parts(self) -> Mapping[str, SavablePart]:
        """The query encoder, and the reranker if there is one."""
        return {"query_encoder": self.query_encoder, **({"reranker": self.reranker} if self.reranker else {})}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """η: the query encoder's weights and those of the experts."""
        yield from self.query_encoder.module.named_parameters()
        yield from ((f"prior.{name}", weight) for name, weight in self.weights.items())

    def _q(self, texts: Sequence[str]) -> Tensor:
        return self.query_encoder.encode_queries(texts).float()  # (B, D)

    def _q_of_both(self, texts: Sequence[str], both: Sequence[str]) -> Tensor:
        """(B, D) of x and y as one text; of x alone where that is too long for the encoder."""
        rows = []
        for text, of_both in zip(texts, both, strict=True):
            try:
                rows.append(self._q([of_both]))
            except InputError:
                rows.append(self._q([text]))
        return torch.cat(rows)

    def _words(self, memory: Memory) -> SearchesWords:
        if isinstance(memory, SearchesWords):
            return memory
        raise InputError(f"a {type(memory).__name__} keeps no index of words, which hybrid needs; use dense or bm25")

    def _proposed(self, memory: Memory, q: Tensor, texts: Sequence[str], k: int) -> Candidates:
        num = min(len(memory), max(checked_k(memory, texts, k), self.num_candidates))
        return self._words(memory).candidates(_searched(q), texts, num)

    def _ranked(
        self, memory: Memory, q: Tensor, texts: Sequence[str], k: int
    ) -> tuple[Candidates, list[dict[str, Tensor]], list[np.ndarray]]:
        """Candidates with their parts, and the places of each question's K best, best first.

        The first five of fifty are the five: what a larger K adds to the ``num_candidates`` of vectors and of words
        comes after them.
        """
        found = self._proposed(memory, q, texts, k)
        parts = self._parts(q, texts, found)
        order = [_best_first(each) for each in parts]
        if k > self.num_candidates:
            usual = self._words(memory).candidates(_searched(q), texts, min(len(memory), self.num_candidates))
            are_usual = [np.isin(found.rows[b][at], usual.rows[b]) for b, at in enumerate(order)]
            order = [np.concatenate([at[own], at[~own]]) for at, own in zip(order, are_usual, strict=True)]
        return found, parts, [at[:k] for at in order]

    def _parts(
        self, q: Tensor, texts: Sequence[str], found: Candidates, *, reranks: bool = True
    ) -> list[dict[str, Tensor]]:
        """For each question each expert's part of the logits of its candidates, (n,)."""
        names = [name for name in self.weights if reranks or name != "reranker"]
        values = self._values(q, texts, found, names)
        return [{name: self.weights[name].to(q.device) * value for name, value in each.items()} for each in values]

    def _values(
        self, q: Tensor, texts: Sequence[str], found: Candidates, names: Sequence[str]
    ) -> list[dict[str, Tensor]]:
        reranked: Sequence[np.ndarray] = ()
        if self.reranker is not None and "reranker" in names:
            reranked = self.reranker.scores(texts, found.passages)
            check_finite(self.reranker.name, reranked)
        rows = []
        for b, passages in enumerate(found.passages):
            values: dict[str, Tensor] = {}
            for name in names:
                if name == "dense":
                    with torch.autocast(q.device.type, enabled=False):
                        values[name] = torch.from_numpy(found.vectors[b]).to(q) @ q[b]
                    continue
                if name == "bm25":
                    value = found.words[b]
                elif name == "reranker":
                    value = reranked[b]
                else:
                    value = BIASES[name](texts[b], passages)
                values[name] = torch.from_numpy(value).to(q)
            rows.append(values)
        return rows

    def _retrieved(
        self, found: Candidates, parts: Sequence[Mapping[str, Tensor]], chosen: Sequence[np.ndarray]
    ) -> Retrieved:
        """The chosen candidates of each question."""
        passages = [[found.passages[b][i] for i in of_one.tolist()] for b, of_one in enumerate(chosen)]
        stacked = {
            name: torch.stack([parts[b][name][torch.from_numpy(at).to(part.device)] for b, at in enumerate(chosen)])
            for name, part in parts[0].items()
        }
        return Retrieved(singles(passages), stacked, found.version)


def _searched(q: Tensor) -> np.ndarray:
    """q for the search, which has no gradient."""
    array: np.ndarray = q.detach().cpu().numpy()
    return array


def _best_first(parts: Mapping[str, Tensor]) -> np.ndarray:
    """Candidates of one question by falling logit, equal ones in their order."""
    logits = Retrieved([], {name: part.detach()[None] for name, part in parts.items()}, 0).logits[0]
    order: np.ndarray = torch.argsort(logits, descending=True, stable=True).cpu().numpy()
    return order


def _some_of(
    found: Candidates,
    chosen: Sequence[np.ndarray],
    words: Callable[[list[np.ndarray]], list[np.ndarray]],
) -> Candidates:
    """The chosen candidates of each question. Args: words: rows → BM25 of the questions that are scored."""
    rows = [found.rows[b][at] for b, at in enumerate(chosen)]
    return Candidates(
        [[found.passages[b][i] for i in at.tolist()] for b, at in enumerate(chosen)],
        rows,
        [found.vectors[b][at] for b, at in enumerate(chosen)],
        words(rows),
        found.version,
    )


def _one_of(found: Candidates, b: int, at: np.ndarray) -> Candidates:
    """The chosen candidates of question b."""
    return Candidates(
        [[found.passages[b][i] for i in at.tolist()]],
        [found.rows[b][at]],
        [found.vectors[b][at]],
        [found.words[b][at]],
        found.version,
    )


def _united(found: Sequence[Candidates]) -> Candidates:
    """The candidates of one question, each once, in their order; without BM25, which differs by text."""
    rows = np.concatenate([each.rows[0] for each in found])
    _, first = np.unique(rows, return_index=True)
    first = np.sort(first)
    passages = [z for each in found for z in each.passages[0]]
    vectors = np.concatenate([each.vectors[0] for each in found])
    kept = [passages[i] for i in first.tolist()]
    return Candidates([kept], [rows[first]], [vectors[first]], [np.zeros(len(first))], found[0].version)


def hybrid(
    parts: ModelParts,
    memory: Memory,
    places: Places,
    *,
    weights: Mapping[str, float] | None = None,
    num_candidates: int = NUM_CANDIDATES,
    reranker: str | os.PathLike[str] | None = None,
) -> HybridRetriever:
    """A row of the table of retrievers.

    Args:
        reranker: a cross-encoder's folder or hub id; None: the model's own, if it was saved with one.
    """
    opened: Reranker | None = None
    if reranker is not None:
        opened = load_reranker(reranker, device=places.encoder.device)
    elif "reranker" in (weights or {}):
        try:
            folder = parts.folder("reranker")
        except ModelError as error:
            raise ModelError(
                "the prior was fitted with a reranker, and the model's folder holds none; name it (--reranker)"
            ) from error
        opened = load_reranker(folder, device=places.encoder.device)
    return HybridRetriever(
        parts.query_encoder(), memory, weights=weights, num_candidates=num_candidates, reranker=opened
    )
