"""What is answered, and how each passage and each reading had part in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from latentrag.types.passages import Passage

if TYPE_CHECKING:
    from torch import Tensor

Variant = Literal["sequence", "token"]
"""RAG-Sequence: one passage explains the whole output. RAG-Token: each token may lean on another (§2.1)."""

Decoding = Literal["exact", "thorough", "fast"]
"""How RAG-Sequence is decoded: one exact marginal beam, or the paper's Thorough or Fast Decoding (§2.5).
RAG-Token has one decoder, which is exact."""


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
class Reading:
    """A way to read the last question of a conversation, with its share in an answer.

    ``prior`` is p(r|h) as far as it goes to the sources: Σ_z p(z|h) p(r|z,h). ``posterior`` is p(r|h,y), the same sum
    over the posterior of z. ``kind``, ``text`` and ``num_dropped`` are those of ``AsRead``.
    """

    kind: str
    text: str
    prior: float
    posterior: float
    num_dropped: int = 0


@dataclass(frozen=True, slots=True)
class Conversation:
    """What became of the earlier turns of a conversation.

    Attributes:
        readings: of the last question, each with its share in the answer; the shares add up to one.
        trained: whether p(r|h) was trained with the model; if not, its weights are the default ones.
        num_dropped: earlier turns that the generator did not read.
    """

    readings: tuple[Reading, ...]
    trained: bool
    num_dropped: int = 0

    @property
    def best(self) -> Reading:
        """The reading of the largest posterior."""
        return max(self.readings, key=lambda reading: reading.posterior)


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
        conversation: how the question was read; None: it came without earlier turns.
        missing: the parts of the memory that did not answer: their passages had no chance to be among the sources.
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
    conversation: Conversation | None = None
    missing: tuple[str, ...] = ()

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
        conversation, missing: as of an ``Answer``.
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
    conversation: Conversation | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Label:
    """A class: its probability among the given labels, and its log p(label|x) before that normalisation."""

    text: str
    probability: float
    log_likelihood: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels, most probable first, and the passages with their share in the most probable one; ``no_passage`` is
    that of the generator alone, None where it is no value of z. ``conversation`` and ``missing`` are as of an
    ``Answer``, with the shares in the most probable label."""

    x: str
    labels: tuple[Label, ...]
    variant: Variant
    memory_version: int
    sources: tuple[Source, ...]
    no_passage: NoPassage | None = None
    conversation: Conversation | None = None
    missing: tuple[str, ...] = ()

    @property
    def best(self) -> str:
        """The most probable label."""
        return self.labels[0].text
