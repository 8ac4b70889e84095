"""p_η(z|x) from words instead of vectors: BM25 scores as the logits, with nothing to train."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from latentrag.errors import InputError, MemoryStoreError, ModelError
from latentrag.place import Places
from latentrag.protocols import Memory, SavablePart
from latentrag.retriever.dense import check_hindsight
from latentrag.types import Asked, Passage, Retrieved, question_texts, singles
from latentrag.words import terms

if TYPE_CHECKING:
    import bm25s
    import numpy.typing as npt
    from torch import nn

    from latentrag.retriever.table import ModelParts


class BM25Retriever:
    """The top K of p_η(z|x) ∝ exp(s·BM25(x,z)), the word-overlap retriever of the paper's ablation (Table 6).

        BM25(x,z) = Σ_{w in x} log(1 + (N − n_w + ½)/(n_w + ½)) · f / (f + k1·(1 − b + b·|z|/mean|z|))

    with k1 = 1.5 and b = 0.75: Lucene's variant, which is the default of bm25s. f counts the word w in z's title
    and text, n_w the passages that hold it; a word that comes twice in x counts twice. Words have two letters or
    digits at least, are compared in NFKC and case aside, not stemmed, and are not among the 33 English stop words of
    bm25s; in scripts without spaces they are looked up (``latentrag.words.terms``).

    Differs from the paper where x has parts of words: pairs of characters of Korean and of scripts without spaces, or
    letters that stand alone. They are scored in the same way among themselves, |z| counting parts, and both sums are
    added. English questions have the scores that words alone have.

    The index is built in RAM on the first retrieval, about 12 bytes for each different word and part of each passage,
    and is not stored; of a memory that is exchanged, anew after each exchange. Safe to call from several threads.
    """

    kind = "bm25"

    def __init__(self, memory: Memory, *, scale: float = 1.0, device: str = "cpu") -> None:
        """
        Args:
            scale: s, above 0.
            device: of the scores.
        Raises: ModelError if bm25s is not installed; InputError for a scale that is not above 0.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"scale={scale} cannot weigh BM25 scores; choose a number above 0")
        _bm25s()
        self.memory = memory
        self.scale = scale
        self._device = device
        self._index: tuple[Memory, _WordIndex] | None = None
        self._index_lock = threading.Lock()

    def over(self, memory: Memory) -> Self:
        """The same retriever over another memory."""
        return type(self)(memory, scale=self.scale, device=self._device)

    def retrieve(self, x: Sequence[Asked], k: int) -> Retrieved:
        """Passages and logits, best first, equal ones in the table's order, for B questions.

        A question without any word of the memory gets the first K passages, all with the score 0: p_η is uniform.
        What a question gets does not depend on the others.

        Returns: scores (B, K) float32, without gradient.
        Raises: InputError for no question, an empty one, k < 1 or k > len(memory); MemoryStoreError if it is empty.
        """
        memory, questions = self.memory.snapshot(), question_texts(x)
        _check(memory, questions, k)
        index = self._built_index(memory)
        logits = [self._logits(index, question) for question in questions]
        return self._retrieved(memory, index, logits, [_best_first(each)[:k] for each in logits])

    def retrieve_in_hindsight(self, x: Sequence[Asked], y: Sequence[str], k: int, num_hindsight: int) -> Retrieved:
        """The top K of x, then the ``num_hindsight`` best of x and y together that are not among them.

        The scores are those of x alone for all of them; y only proposes.

        Returns: scores (B, K + num_hindsight) float32, without gradient.
        Raises: as ``retrieve``; InputError for num_hindsight < 0 or k + num_hindsight > len(memory).
        """
        memory, questions = self.memory.snapshot(), question_texts(x)
        _check(memory, questions, k)
        check_hindsight(memory, k, num_hindsight)
        index = self._built_index(memory)
        logits, rows = [], []
        for question, target in zip(questions, y, strict=True):
            of_x = self._logits(index, question)
            top = _best_first(of_x)[:k]
            proposed = _best_first(self._logits(index, f"{question} {target}"))
            logits.append(of_x)
            rows.append(np.concatenate([top, proposed[~np.isin(proposed, top)][:num_hindsight]]))
        return self._retrieved(memory, index, logits, rows)

    def settings(self) -> Mapping[str, float]:
        """The scale."""
        return {"scale": self.scale}

    def parts(self) -> Mapping[str, SavablePart]:
        """None: words need no encoder."""
        return {}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """η: BM25 has none."""
        return iter(())

    def _logits(self, index: _WordIndex, question: str) -> npt.NDArray[np.float32]:
        """s·BM25(x,z) of every passage, (N,)."""
        return (self.scale * index.scores(question)).astype(np.float32)

    def _retrieved(
        self,
        memory: Memory,
        index: _WordIndex,
        logits: Sequence[npt.NDArray[np.float32]],
        rows: Sequence[npt.NDArray[np.intp]],
    ) -> Retrieved:
        """The chosen rows of each question as passages with their scores."""
        chosen = np.stack(rows)  # (B, K)
        scores = np.stack([of_question[row] for of_question, row in zip(logits, chosen, strict=True)])  # (B, K)
        distinct = np.unique(chosen).tolist()
        by_row = dict(zip(distinct, memory.get([index.ids[row] for row in distinct]), strict=True))
        passages = [[by_row[row] for row in of_question] for of_question in chosen.tolist()]
        return Retrieved(singles(passages), {"bm25": torch.from_numpy(scores).to(self._device)}, memory.version)

    def _built_index(self, memory: Memory) -> _WordIndex:
        with self._index_lock:
            if self._index is None or self._index[0] is not memory:
                self._index = memory, _WordIndex.build(memory.passages())
            return self._index[1]


def bm25_of(question: str, passages: Sequence[Passage]) -> npt.NDArray[np.float64]:
    """BM25(x,z) of passages that are a collection of their own, (N,), as ``BM25Retriever`` has it."""
    return _WordIndex.build(passages).scores(question)


def bm25(parts: ModelParts, memory: Memory, places: Places, *, scale: float = 1.0) -> BM25Retriever:  # noqa: ARG001
    """A row of the table of retrievers."""
    return BM25Retriever(memory, scale=scale, device=places.memory.device)


@dataclass(frozen=True, slots=True)
class _WordIndex:
    """BM25's part for every word, and every part of a word, in every passage.

    Attributes:
        ids: of the N passages, in the table's order.
        words, parts: each a BM25 of its own.
        stop_words: which are left out of both.
    """

    ids: list[str]
    words: _Index
    parts: _Index
    stop_words: frozenset[str]

    @classmethod
    def build(cls, passages: Iterable[Passage]) -> _WordIndex:
        stop_words = frozenset(_bm25s().stopwords.STOPWORDS_EN)
        ids: list[str] = []
        words, parts = _Gathered(stop_words), _Gathered(stop_words)
        for passage in passages:
            ids.append(passage.id)
            found = terms(f"{passage.title} {passage.text}")
            words.add(found.words)
            parts.add(found.parts)
        return cls(ids, words.index(), parts.index(), stop_words)

    def scores(self, question: str) -> npt.NDArray[np.float64]:
        """BM25(x,z) of every passage, (N,)."""
        found = terms(question)
        scores = np.zeros(len(self.ids))
        for index, asked in ((self.words, found.words), (self.parts, found.parts)):
            known = [index.vocabulary[term] for term in asked if term in index.vocabulary]
            if known and index.bm25 is not None:
                scores += index.bm25.get_scores_from_ids(known)
        return scores


@dataclass(frozen=True, slots=True)
class _Index:
    """Scores of terms by their numbers; None if no passage has one, of which bm25s makes no index."""

    vocabulary: Mapping[str, int]
    bm25: bm25s.BM25 | None


class _Gathered:
    """Terms of passages, as numbers in the order in which they were first seen."""

    def __init__(self, stop_words: frozenset[str]) -> None:
        self._stop_words = stop_words
        self._vocabulary: defaultdict[str, int] = defaultdict()
        self._vocabulary.default_factory = self._vocabulary.__len__
        self._of_passages: list[npt.NDArray[np.int32]] = []

    def add(self, found: Iterable[str]) -> None:
        """Those of the next passage."""
        vocabulary, stop_words = self._vocabulary, self._stop_words
        numbers = [vocabulary[term] for term in found if term not in stop_words]
        self._of_passages.append(np.array(numbers, np.int32))

    def index(self) -> _Index:
        if not self._vocabulary:
            return _Index({}, None)
        # In float64, so that sums which are equal in exact arithmetic are equal once rounded to float32.
        bm25 = _bm25s().BM25(k1=1.5, b=0.75, method="lucene", dtype="float64")
        bm25.index((self._of_passages, dict(self._vocabulary)), create_empty_token=False, show_progress=False)
        return _Index(dict(self._vocabulary), bm25)


def _bm25s() -> Any:
    try:
        import bm25s
    except ModuleNotFoundError as error:
        raise ModelError("bm25s is not installed, and BM25 retrieval needs it; install latentrag[bm25]") from error
    return bm25s


def _best_first(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Rows by falling logit, equal ones in the order of the rows."""
    return np.argsort(-logits, kind="stable")


def _check(memory: Memory, questions: Sequence[str], k: int) -> None:
    if not questions:
        raise InputError("got no question; needed at least one")
    if k < 1:
        raise InputError(f"k={k} passages cannot be retrieved; choose 1 or more")
    num_passages = len(memory)
    if not num_passages:
        raise MemoryStoreError(f"the memory has no passages at version {memory.version}; add some")
    if k > num_passages:
        raise InputError(f"k={k} exceeds the memory's {num_passages} passages; lower k or add passages")
