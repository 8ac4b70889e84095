"""p_η(z|x) from words instead of vectors: BM25 scores as the logits, with nothing to train."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from latentrag.errors import InputError, MemoryStoreError, OptionError, exceeds_memory
from latentrag.place import Places
from latentrag.postings import WordIndex, segment_of
from latentrag.protocols import Memory, SavablePart, SearchesWords, is_filtered
from latentrag.retriever.dense import check_hindsight
from latentrag.retriever.together import flat, places_of
from latentrag.types import Asked, Candidates, Passage, Retrieved, Together, WordResult, question_texts, singles

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import nn

    from latentrag.retriever.table import ModelParts


class BM25Retriever:
    """The top K of p_η(z|x) ∝ exp(s·BM25(x,z)), the word-overlap retriever of the paper's ablation (Table 6).

    BM25 is Lucene's variant, as ``latentrag.postings`` has it. Words have two letters or digits at least, are compared
    in NFKC and case aside, not stemmed, and are not among Lucene's 33 English stop words; in scripts without spaces
    they are looked up (``latentrag.words.terms``).

    Differs from the paper where x has parts of words: pairs of characters of Korean and of scripts without spaces, or
    letters that stand alone. They are scored in the same way among themselves, |z| counting parts, and both sums are
    added. English questions have the scores that words alone have.

    A memory that keeps an index of its words is searched by that; of another one is built in RAM on the first
    retrieval, and anew after each exchange. Passages that satisfy a condition have the scores that they have among all.
    Safe to call from several threads.
    """

    kind = "bm25"
    searches_words = True

    def __init__(self, memory: Memory, *, scale: float = 1.0, device: str = "cpu") -> None:
        """
        Args:
            scale: s, above 0.
            device: of the scores.
        Raises: InputError for a scale that is not above 0.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"scale={scale} cannot weigh BM25 scores; choose a number above 0")
        self.memory = memory
        self.scale = scale
        self._device = device
        self._in_ram: tuple[Memory, WordsInRam] | None = None
        self._in_ram_lock = threading.Lock()

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
        k = checked_k(memory, questions, k)
        found = self._words(memory).search_words(questions, k, scale=self.scale)
        return self._retrieved(found.passages, found.scores, memory)

    def retrieve_in_hindsight(self, x: Sequence[Asked], y: Sequence[str], k: int, num_hindsight: int) -> Retrieved:
        """The top K of x, then the ``num_hindsight`` best of x and y together that are not among them.

        The scores are those of x alone for all of them; y only proposes.

        Returns: scores (B, K + num_hindsight) float32, without gradient.
        Raises: as ``retrieve``; InputError for num_hindsight < 0 or k + num_hindsight > len(memory).
        """
        memory, questions = self.memory.snapshot(), question_texts(x)
        k = checked_k(memory, questions, k)
        check_hindsight(memory, k, num_hindsight)
        words = self._words(memory)
        found = words.search_words(questions, k, scale=self.scale)
        both = [f"{question} {target}" for question, target in zip(questions, y, strict=True)]
        more = words.search_words(both, k + num_hindsight, scale=self.scale)
        others = [np.flatnonzero(~np.isin(more.rows[b], found.rows[b]))[:num_hindsight] for b in range(len(questions))]
        rows = [more.rows[b][places] for b, places in enumerate(others)]
        scores = np.stack([self.scale * each for each in words.word_scores(questions, rows)]).astype(np.float32)
        passages = [[*of_x, *(more.passages[b][place] for place in others[b])] for b, of_x in enumerate(found.passages)]
        return self._retrieved(passages, np.concatenate([found.scores, scores], axis=1), memory)

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
        k = checked_k(memory, every, k)
        words = self._words(memory)
        found = words.search_words(every, k, scale=self.scale)
        more = words.search_words(flat(also), num_also, scale=self.scale) if num_also else None
        together = []
        for b, places in enumerate(places_of(texts)):
            rows = _rows_of(found, places)
            num_found = len(rows)
            if more is not None:
                rows = rows | {row: z for row, z in _rows_of(more, places_of(also)[b]).items() if row not in rows}
            scores = words.word_scores(texts[b], [np.array(list(rows))] * len(texts[b]))
            logits = torch.from_numpy(np.stack(scores) * self.scale).float().to(self._device)  # (R, n)
            together.append(Together(list(rows.values()), {"bm25": logits}, num_found, memory.version))
        return together

    def settings(self) -> Mapping[str, float]:
        """The scale."""
        return {"scale": self.scale}

    def parts(self) -> Mapping[str, SavablePart]:
        """None: words need no encoder."""
        return {}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """η: BM25 has none."""
        return iter(())

    def _retrieved(self, passages: list[list[Passage]], scores: npt.NDArray[np.float32], memory: Memory) -> Retrieved:
        return Retrieved(singles(passages), {"bm25": torch.from_numpy(scores).to(self._device)}, memory.version)

    def _words(self, memory: Memory) -> SearchesWords:
        if isinstance(memory, SearchesWords):
            return memory
        with self._in_ram_lock:
            if self._in_ram is None or self._in_ram[0] is not memory:
                self._in_ram = memory, WordsInRam(memory)
            return self._in_ram[1]


class WordsInRam:
    """An index of the words of a memory that keeps none."""

    def __init__(self, memory: Memory) -> None:
        self._memory, ids = memory, []

        def passages() -> Iterator[Passage]:
            for passage in memory.passages():
                ids.append(passage.id)
                yield passage

        self._index = WordIndex([(segment_of(passages()), None)])
        self._ids = ids

    def search_words(self, x: Sequence[str], k: int, *, scale: float = 1.0) -> WordResult:
        """As ``SearchesWords``; a row is a passage's place in the table."""
        rows, scores = np.empty((len(x), k), np.int64), np.empty((len(x), k), np.float32)
        for b, question in enumerate(x):
            rows[b], scores[b] = self._index.filled(question, k, scale=scale)
        distinct = np.unique(rows).tolist()
        by_row = dict(zip(distinct, self._memory.get([self._ids[row] for row in distinct]), strict=True))
        passages = [[by_row[row] for row in of_one] for of_one in rows.tolist()]
        return WordResult(passages, rows, scores, self._memory.version)

    def word_scores(self, x: Sequence[str], rows: Sequence[npt.NDArray[np.int64]]) -> list[npt.NDArray[np.float64]]:
        """As ``SearchesWords``."""
        return [self._index.scores(question, each) for question, each in zip(x, rows, strict=True)]

    def candidates(self, q: npt.NDArray[np.float32], x: Sequence[str], num: int) -> Candidates:  # noqa: ARG002
        """Raises: InputError: it has no vectors."""
        raise InputError(f"a {type(self._memory).__name__} keeps no index of words; retrieve with dense or bm25")


def _rows_of(found: WordResult, places: range) -> dict[int, Passage]:
    """Of what these questions have found, each passage once by its row."""
    return {row: z for b in places for row, z in zip(found.rows[b].tolist(), found.passages[b], strict=True)}


def bm25_of(question: str, passages: Sequence[Passage]) -> npt.NDArray[np.float64]:
    """BM25(x,z) of passages that are a collection of their own, (N,), as ``BM25Retriever`` has it."""
    return WordIndex([(segment_of(passages), None)]).scores(question, np.arange(len(passages)))


def bm25(parts: ModelParts, memory: Memory, places: Places, *, scale: float = 1.0) -> BM25Retriever:  # noqa: ARG001
    """A row of the table of retrievers."""
    return BM25Retriever(memory, scale=scale, device=places.memory.device)


def checked_k(memory: Memory, questions: Sequence[str], k: int) -> int:
    """How many passages are retrieved: k, or all that satisfy a condition if there are fewer."""
    if not questions:
        raise InputError("got no question; needed at least one")
    if k < 1:
        raise OptionError("{k}={given} passages cannot be retrieved; choose 1 or more", given=k)
    if is_filtered(memory):
        memory.require_some()
        return min(k, len(memory))
    num_passages = len(memory)
    if not num_passages:
        raise MemoryStoreError(f"the memory has no passages at version {memory.version}; add some")
    if k > num_passages:
        raise exceeds_memory(k, num_passages)
    return k
