"""The values that pass between the rooms. No I/O, nothing heavy to import.

Dimensions, everywhere in latentrag:

    B  batch: questions handled together       T  target tokens
    K  latent values of a question             V  vocabulary of the generator
    M  beams (hypotheses kept alive)           D  embedding
    N  passages in the memory                  S  input tokens of the generator

Symbols of Lewis et al. (2020): x input (the question), y target (the answer), z latent value, η retriever,
θ generator. Logarithms are natural: every ``log_*`` is in nats.

A latent value is a tuple of passages: one passage in the paper, ``()`` for the generator alone, several for a set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

from latentrag.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Variant = Literal["sequence", "token"]
"""RAG-Sequence: one passage explains the whole output. RAG-Token: each token may lean on another (§2.1)."""

Decoding = Literal["exact", "thorough", "fast"]
"""How RAG-Sequence is decoded: one exact marginal beam, or the paper's Thorough or Fast Decoding (§2.5).
RAG-Token has one decoder, which is exact."""


Scalar = str | int | float | bool
"""The value of a passage's field."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """x: the turns of a conversation, at least one, of which the last asks. Today's parts read that one alone.

    ``passages`` are those that come with it, in place of a memory (``retriever.given``).
    """

    turns: tuple[Turn, ...]
    passages: tuple[Passage, ...] = ()

    @property
    def text(self) -> str:
        """What the last turn asks."""
        return self.turns[-1].text

    @classmethod
    def of(cls, x: str | Question, passages: tuple[Passage, ...] = ()) -> Question:
        """A plain text as a conversation of one turn, with the passages that come with it; a question as it is."""
        return x if isinstance(x, Question) else cls((Turn("user", x),), passages)


Asked = str | Question
"""x as callers may give it."""


def question_texts(x: Sequence[Asked], *, with_passages: bool = False) -> list[str]:
    """What each question asks.

    Args:
        with_passages: whether passages that come with a question are read.
    Raises: InputError for one text in place of a list, and for a question that is no text, blank or no valid Unicode,
        or comes with passages that are not read.
    """
    if isinstance(x, str):
        raise InputError("got one text, needed a list of texts; write [question]")
    texts = [Question.of(question).text for question in x]
    for i, text in enumerate(texts):
        which = f"question {i + 1} of {len(x)}"
        if not with_passages and Question.of(x[i]).passages:
            raise InputError(f"{which} comes with passages of its own, which this retriever does not read")
        if not isinstance(text, str):
            raise InputError(f"{which} is a {type(text).__name__}, needed a text")
        if not text.strip():
            raise InputError(f"{which} is empty; write at least one word")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{which} is not valid Unicode text; remove its lone surrogates") from None
    return texts


@dataclass(frozen=True, slots=True)
class Document:
    """A text as a reader found it, before it is split.

    ``id`` is unique within its source and stable between readings. ``page_starts`` says where in the text each page
    begins, from page 1 on; empty where there are no pages. ``whole`` marks a text that is a passage already (a row
    of psgs_w100.tsv, say) and must not be split again. ``fields`` go to each of its passages.
    """

    id: str
    text: str
    title: str = ""
    source: str = ""
    page_starts: tuple[int, ...] = ()
    whole: bool = False
    fields: Mapping[str, Scalar] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of the memory. ``text == document.text[start:end]``, offsets in characters.

    ``page`` is the page, counted from 1, on which it begins; None where there are no pages. The field "end_page" says
    where it ends, if that is another one.
    ``origin`` names the file that `index sync` keeps the passage equal to; empty for one that was added by hand.
    ``fields`` are named values that its document states: date, author, language, …
    """

    id: str
    text: str
    title: str = ""
    source: str = ""
    start: int = 0
    end: int = 0
    page: int | None = None
    origin: str = ""
    fields: Mapping[str, Scalar] = field(default_factory=dict, hash=False)


Latent = tuple[Passage, ...]
"""z: what the generator reads beside x."""

LatentLists = Sequence[Sequence[Latent]]
"""For each of B questions its K latent values."""

PassageLists = Sequence[Sequence[Passage]]


def singles(passages: PassageLists) -> list[list[Latent]]:
    """Every passage as a latent value of its own, as in the paper."""
    return [[(passage,) for passage in of_question] for of_question in passages]


def no_passages(num_questions: int) -> list[list[Latent]]:
    """One empty latent value for each question: closed book."""
    return [[()] for _ in range(num_questions)]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Top-K passages of a memory for B query vectors, best first; all from one version.

    Attributes:
        passages: B lists of K passages.
        vectors: (B, K, D) float32, the d(z) of those passages as the memory holds them.
        scores: (B, K) float32, d(z)·q without scale.
        version: the memory's version that was searched.
    """

    passages: list[list[Passage]]
    vectors: np.ndarray
    scores: np.ndarray
    version: int


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
class Retrieved:
    """What a retriever returns for B questions, best first.

    Attributes:
        latents: B lists of K latent values. Where a question has fewer, the list is filled up, and ``mask`` says so.
        parts: name → (B, K) float32; their sum is the logit of p_η(z|x), differentiable in the retriever's weights.
        version: the memory's version they came from; 0: no memory was asked.
        mask: (B, K), True = a value of the question; None: all are.
    """

    latents: LatentLists
    parts: Mapping[str, Tensor]
    version: int
    mask: Tensor | None = None

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
        return type(self)(
            [[of_one[k] for k in places] for of_one, places in zip(self.latents, rows, strict=True)],
            {name: part.gather(1, index) for name, part in self.parts.items()},
            self.version,
            None if self.mask is None else self.mask.gather(1, index),
        )

    def between(self, start: int, stop: int | None = None) -> Self:
        """Of each question the latent values from ``start`` to ``stop``."""
        return type(self)(
            [of_one[start:stop] for of_one in self.latents],
            {name: part[:, start:stop] for name, part in self.parts.items()},
            self.version,
            None if self.mask is None else self.mask[:, start:stop],
        )


def distinct_passages(latents: Sequence[Latent]) -> list[Passage]:
    """The passages of latent values, each once, in the order in which they first stand there."""
    return list(dict.fromkeys(passage for z in latents for passage in z))


@dataclass(frozen=True, slots=True)
class Targets:
    """y as the generator's tokens. ids: (B, T) int64. mask: (B, T) bool, True = a token that is scored.

    Each row ends with the generator's end token, which is scored too: p(y|x) is the probability of saying y
    and stopping there.
    """

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a passage, ``passage.text[start:end]``, offsets in characters.

    ``log_prob_without`` is log p(y|x), nats, had the passage been without it (and the white space after it): the
    generator reads the shortened passage, the prior stays.
    """

    start: int
    end: int
    log_prob_without: float


@dataclass(frozen=True, slots=True)
class Source:
    """A retrieved passage with its share in an answer.

    ``prior`` is p_η(z|x). ``posterior`` is p(z|x,y) for RAG-Sequence; for RAG-Token, where every token has a
    posterior of its own, it is their mean: the expected share of the answer's tokens that came from z.
    ``sentences`` are those of the passage of highest posterior, where they were asked for; else there are none.
    ``parts`` are those of its logit by name (dense, bm25, reranker, …), whose softmax over the sources is the prior;
    empty where z is a set of passages.
    """

    passage: Passage
    prior: float
    posterior: float
    sentences: tuple[Sentence, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class NoPassage:
    """The share of the generator alone, where "no passage" is one of the values of z: ``prior`` and ``posterior`` as of
    a ``Source``. With those of the sources they add up to one."""

    prior: float
    posterior: float


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer, with a probability for each of the K sources in their order.

    RAG-Token: p(z|x,y_i,y_<i), who said this token. RAG-Sequence: p(z|x,y_≤i), what is believed after it.
    ``log_prob`` is log p(y_i|x,y_<i), marginalised over the passages. ``top`` are the most probable tokens in its
    place, with the same log-probability, where they were asked for; else there are none.
    """

    text: str
    log_prob: float
    posterior: tuple[float, ...]
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A candidate answer. ``log_prob`` is log p(y|x), the end token included, under the chosen variant.

    ``finished`` is False where the length limit or a stop string cut the text off; ``log_prob`` is then that of
    all texts that begin so.
    """

    text: str
    log_prob: float
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, its exact probability, and where it came from.

    Attributes:
        closed_book_log_prob: log p_θ(y|x) of the same tokens without any passage. ``log_prob`` minus this is
            what the memory contributed, in nats.
        sources: in the order of retrieval; best prior first, unless the generator weighs passages, too.
        hypotheses: the ``num_best`` that were wanted, best first; the first is this answer.
        log_p_eta: (K,) log p_η(z|x) of the sources, nats.
        log_p_theta: (K, T) log p_θ(y_i|x,z,y_<i) of all T tokens that ``log_prob`` counts: the end token too, and those
            behind a stop string, which ``tokens`` has not. With log_p_eta all that the other numbers are made of.
            −inf after Fast Decoding for every passage whose beam did not hold y.
        no_passage: the share of the generator alone; None where it is no value of z. The last row of the two tensors
            is its.
        num_input_tokens: what the generator read, the question with each of its latent values; 0: it does not say.
        sets: where sets of passages are values of z, the places of the sources that each row of the two tensors read;
            empty: row k read source k.
        confidence: the probability that the answer is right, by a calibrated model; None: the model is not calibrated,
            or not for these settings.
        best_guess: where the model was to abstain, what it would have answered; ``tokens`` and all numbers are of it.
            None: it did not abstain.
    """

    question: str
    text: str
    log_prob: float
    closed_book_log_prob: float
    variant: Variant
    decoding: Decoding
    memory_version: int
    sources: tuple[Source, ...]
    tokens: tuple[Token, ...]
    hypotheses: tuple[Hypothesis, ...]
    log_p_eta: tuple[float, ...]
    log_p_theta: tuple[tuple[float, ...], ...]
    no_passage: NoPassage | None = None
    num_input_tokens: int = 0
    sets: tuple[tuple[int, ...], ...] = ()
    confidence: float | None = None
    best_guess: str | None = None

    @property
    def answer(self) -> str:
        """The text, under the name the command line's JSON has for it."""
        return self.text


@dataclass(frozen=True, slots=True)
class Score:
    """log p(y|x) of a given y, and what each passage did for it.

    Attributes:
        log_likelihood: log p(y|x), nats, summed over the tokens of y and its end token.
        num_tokens: how many tokens that is.
        without_passage: for each source, log p(y|x) had that passage not been retrieved (the prior
            renormalised over the others). Empty when there is one value of z only.
        no_passage: the share of the generator alone; None where it is no value of z.
    """

    x: str
    y: str
    log_likelihood: float
    closed_book_log_likelihood: float
    num_tokens: int
    variant: Variant
    memory_version: int
    sources: tuple[Source, ...]
    tokens: tuple[Token, ...]
    without_passage: tuple[float, ...]
    no_passage: NoPassage | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """A class: its probability among the given labels, and its log p(label|x) before that normalisation."""

    text: str
    probability: float
    log_likelihood: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels, most probable first, and the passages with their share in the most probable one; ``no_passage`` is
    that of the generator alone, None where it is no value of z."""

    x: str
    labels: tuple[Label, ...]
    variant: Variant
    memory_version: int
    sources: tuple[Source, ...]
    no_passage: NoPassage | None = None

    @property
    def best(self) -> str:
        """The most probable label."""
        return self.labels[0].text
