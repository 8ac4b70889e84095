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
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, Self, cast, get_args

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


Role = Literal["system", "user", "assistant"]
"""Who says a turn; what the system says is the instruction."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """x: the turns of a conversation, at least one, of which the last asks.

    ``passages`` are those that come with it, in place of a memory (``retriever.given``). ``num_dropped`` is how many
    turns there were before these that are not read.
    """

    turns: tuple[Turn, ...]
    passages: tuple[Passage, ...] = ()
    num_dropped: int = 0

    @property
    def text(self) -> str:
        """What the last turn asks."""
        return self.turns[-1].text

    @property
    def instruction(self) -> str:
        """What the system's turns say; empty where there are none."""
        return "\n".join(turn.text for turn in self.turns if turn.role == "system")

    @property
    def exchanges(self) -> tuple[tuple[str, str], ...]:
        """Earlier questions, each with the answer that it got; either is empty where there was none."""
        pairs: list[tuple[str, str]] = []
        for turn in self.turns[:-1]:
            if turn.role == "user":
                pairs.append((turn.text, ""))
            elif turn.role == "assistant":
                asked = pairs.pop()[0] if pairs and not pairs[-1][1] else ""
                pairs.append((asked, turn.text))
        return tuple(pairs)

    @property
    def is_conversation(self) -> bool:
        """Whether anything was said before what is asked, by the system or anybody else."""
        return len(self.turns) > 1 or self.num_dropped > 0

    def since(self, num_exchanges: int) -> Question:
        """The same question after the last of so many exchanges, with what the system said."""
        first = len(self.exchanges) - num_exchanges
        kept = [turn for question, answer in self.exchanges[first:] for turn in _turns(question, answer)]
        system = (Turn("system", self.instruction),) if self.instruction else ()
        before = sum(turn.role != "system" for turn in self.turns[:-1])
        dropped = self.num_dropped + before - len(kept)
        return Question((*system, *kept, self.turns[-1]), self.passages, dropped)

    @classmethod
    def of(cls, x: Asked, passages: tuple[Passage, ...] = ()) -> Question:
        """A plain text as a conversation of one turn, with the passages that come with it; messages, as OpenAI's
        clients have them ({"role": "user", "content": "…"}), as their turns; a question as it is.

        Raises: InputError for messages that are no conversation, or whose last is not a user's with some text.
        """
        if isinstance(x, Question):
            return x
        return cls((Turn("user", x),) if isinstance(x, str) else turns_of(x), passages)


def _turns(question: str, answer: str) -> list[Turn]:
    turns = (Turn("user", question), Turn("assistant", answer))
    return [turn for turn in turns if turn.text]


Messages = Sequence[Mapping[str, object]]
"""Turns as OpenAI's clients have them."""

Asked = str | Question | Messages
"""x as callers may give it."""


def turns_of(messages: Messages) -> tuple[Turn, ...]:
    """The turns that have a text. Raises: InputError for what is no message, or if the last is not a user's text."""
    turns: list[Turn] = []
    if not isinstance(messages, Sequence):
        raise InputError(f"got a {type(messages).__name__} as a question; needed a text, or a list of messages")
    for number, message in enumerate(messages, start=1):
        role, text = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if role not in get_args(Role) or not isinstance(text, str):
            raise InputError(
                f'message {number} of {len(messages)} is not {{"role": "user", "content": "…"}}; needed a text and one '
                f"of the roles {', '.join(get_args(Role))}"
            )
        if text.strip():
            turns.append(Turn(cast("Role", role), text))
    if not turns or turns[-1].role != "user":
        raise InputError("the conversation does not end with a user's message that has some text; add what is asked")
    return tuple(turns)


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
    ``before`` and ``after`` are texts beside it in its document that are read with it; they are no part of it.
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
    before: str = field(default="", compare=False, repr=False)
    after: str = field(default="", compare=False, repr=False)


KEPT_ATTRIBUTES = tuple(each.name for each in fields(Passage) if each.compare)
"""Those of a passage that a memory keeps, "fields" last."""

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
class Found:
    """What is retrieved for a question: passages, each with the logit of p_η(z|x) and p_η(z|x) itself, best first.

    Attributes:
        version: of the memory.
    """

    question: str
    version: int
    passages: tuple[tuple[Passage, float, float], ...]


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
    """

    passages: Sequence[Passage]
    parts: Mapping[str, Tensor]
    num_found: int
    version: int


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
    """

    latents: LatentLists
    parts: Mapping[str, Tensor]
    version: int
    mask: Tensor | None = None
    readings: Sequence[Readings | None] = ()

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
            self.readings,
        )

    def between(self, start: int, stop: int | None = None) -> Self:
        """Of each question the latent values from ``start`` to ``stop``."""
        return type(self)(
            [of_one[start:stop] for of_one in self.latents],
            {name: part[:, start:stop] for name, part in self.parts.items()},
            self.version,
            None if self.mask is None else self.mask[:, start:stop],
            self.readings,
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
        conversation: as of an ``Answer``.
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


@dataclass(frozen=True, slots=True)
class Label:
    """A class: its probability among the given labels, and its log p(label|x) before that normalisation."""

    text: str
    probability: float
    log_likelihood: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels, most probable first, and the passages with their share in the most probable one; ``no_passage`` is
    that of the generator alone, None where it is no value of z. ``conversation`` is as of an ``Answer``, with the
    shares in the most probable label."""

    x: str
    labels: tuple[Label, ...]
    variant: Variant
    memory_version: int
    sources: tuple[Source, ...]
    no_passage: NoPassage | None = None
    conversation: Conversation | None = None

    @property
    def best(self) -> str:
        """The most probable label."""
        return self.labels[0].text
