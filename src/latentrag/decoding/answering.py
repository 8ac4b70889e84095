"""From decoded tokens to answers: texts, posteriors, and what is certain of them while they are decoded."""

from __future__ import annotations

import math
import string
from collections.abc import Generator as Coroutine
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

from latentrag.asking import Asking
from latentrag.confidence import ABSTAINED, Calibration, signals
from latentrag.decoding.loop import Decided, Decoded, Ended, Failed, Search, Turns, Work, alone
from latentrag.decoding.rescore import as_targets
from latentrag.decoding.sentences import adding_sentences
from latentrag.decoding.step import reading
from latentrag.decoding.top import TopTokens
from latentrag.errors import OptionError
from latentrag.model import Evidence, Read, closed_book
from latentrag.protocols import CountsTokensRead, Generator, Scores, steps_together
from latentrag.types import (
    Answer,
    Hypothesis,
    NoPassage,
    Passage,
    Question,
    Source,
    Token,
    Variant,
    distinct_passages,
)

G = TypeVar("G", bound=Scores)


@dataclass(frozen=True, slots=True)
class Sources:
    """The passages of a question with their priors, best first, the memory's version, and what did not answer of it:
    known before decoding."""

    question: int
    passages: tuple[tuple[Passage, float], ...]
    version: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """The answer to a question begins with these tokens, whatever follows: those said before, and at least one more."""

    question: int
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Confidence:
    """How an answer's confidence is known.

    Attributes:
        calibration: of the model.
        abstain_below: a confidence below which the answer is ``ABSTAINED``; None: it never is.
    """

    calibration: Calibration
    abstain_below: float | None

    def of(self, answer: Answer) -> Answer:
        """An answer, which has all hypotheses of the search, with its confidence, or with what is said in its
        place."""
        known = self.calibration.probability(signals(answer))
        answer = replace(answer, confidence=known)
        if self.abstain_below is None or known >= self.abstain_below:
            return answer
        return replace(answer, text=ABSTAINED, best_guess=answer.text)


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a question."""

    question: int
    answer: Answer


_UNSETTLED = frozenset(string.punctuation + "\ufffd")
RULED_OUT = (
    "every answer is ruled out by the options; lower {min_tokens} or {no_repeat_ngram_size}, or raise {max_tokens}"
)
"""What is said of a question for which a search has found nothing."""


class Answering:
    """B questions while they are answered, numbered from 0: a task for a ``Loop``.

    First come the ``Sources`` of every question, then what it begins with as soon as that is certain. A token is said
    once its text is settled too. A generator whose tokenizer changes text before the last word when more follows may
    answer with other white space there than was said. Thorough and Fast Decoding choose when all is decoded; of theirs
    nothing is certain before the end. A question that the options rule every answer to out has ``Failed``.

    Args:
        read: the questions with their latent values. What the generator can read of them in slices, it reads so.
        search: decodes them.
        asking: how they are to be answered; for ``top_tokens`` the generator must decode step by step.
        confidence: how that of each question is known; None, or none for all: it is not. While an answer may still be
            withheld, no token of it is said.
        num_best: hypotheses that an answer has at most; None: all that the search has found.
    """

    def __init__(
        self,
        read: Read[Scores],
        search: Search,
        asking: Asking,
        *,
        confidence: Sequence[Confidence | None] = (),
        num_best: int | None = None,
    ) -> None:
        self._read, self._search, self._asking, self._num_best = read, search, asking, num_best
        self._confidence = confidence or [None] * len(read.questions)
        self._variant, self._stop = asking.variant, asking.options.stop
        self._top: dict[int, TopTokens] = {}
        self._num_input_tokens = num_input_tokens(read)
        self._decoded: dict[int, list[Decoded]] = {}
        self._num_ids = [0] * len(read.questions)
        self._num_said = [0] * len(read.questions)

    @property
    def live(self) -> list[int]:
        """The questions without an answer that are still wanted."""
        return sorted([*self._search.live, *self._decoded])

    @property
    def num_rows(self) -> int:
        """Question × passage × beam."""
        return self._search.num_rows

    def drop(self, question: int) -> None:
        """Do not go on with this live question."""
        if self._decoded.pop(question, None) is None:
            self._search.drop(question)

    def turns(self) -> Turns:
        """What is to be read, then what the search asks for, and what the answers ask for as soon as it has them."""
        for question in self.live:
            yield self._sources(question)
        yield from reading(self._read.generator, self._read.prepared)
        turns, result = self._search.turns(), None
        begun: list[Decided] = []
        while True:
            try:
                turn = turns.send(result)
            except StopIteration:
                break
            result = None
            if isinstance(turn, Decided):
                begun.append(turn)
            elif isinstance(turn, Ended):
                self._decoded[turn.question] = turn.hypotheses
            else:  # a work: until it is done questions may be dropped, so that all the search has said is taken first
                yield from self._said(begun)
                begun = []
                if not self._search.live:
                    return
                result = yield cast("Work", turn)
        yield from self._said(begun)

    def _said(self, begun: Sequence[Decided]) -> Turns:
        """What questions begin with, and the answers to those that have been decoded."""
        for event in begun:
            if event.question in self.live:
                yield from self._begun(event)
        yield from self._answered()

    def _sources(self, question: int) -> Sources:
        passages, priors = self._read.of_passages(question)
        retrieved = self._read.retrieved
        return Sources(question, tuple(zip(passages, priors, strict=True)), retrieved.version, retrieved.missing)

    def _begun(self, event: Decided) -> Turns:
        question, ids, generator = event.question, event.ids, self._read.generator
        if self._may_withhold(question) or len(ids) == self._num_ids[question]:
            return
        self._num_ids[question] = len(ids)
        ended = ids[-1] in generator.end_ids
        evidence = evidence_of(Decoded(ids, 0.0, event.log_p_theta, finished=ended), self._read, question)
        tokens = tokens_of(generator, evidence, 0, self._variant)
        if not ended:
            tokens = tokens[: num_settled([token.text for token in tokens], self._stop)]
        if len(tokens) > self._num_said[question]:
            self._num_said[question] = len(tokens)
            if self._asking.top_tokens:
                tokens = yield alone(partial(self._with_top, question, ids, tokens))
            if question in self.live:
                yield Begun(question, tokens)

    def _may_withhold(self, question: int) -> bool:
        confidence = self._confidence[question]
        return confidence is not None and confidence.abstain_below is not None

    def _with_top(self, question: int, ids: Sequence[int], tokens: tuple[Token, ...]) -> tuple[Token, ...]:
        """The first tokens of a hypothesis, with others in their places."""
        if question not in self._top:
            read = cast("Read[Generator]", self._read.rows([question]))
            self._top[question] = TopTokens(read, variant=self._variant, num=self._asking.top_tokens)
        top = self._top[question].of(ids[: len(tokens)])
        return tuple(replace(token, top=others) for token, others in zip(tokens, top, strict=True))

    def _answered(self) -> Turns:
        """The answers to all questions that have been decoded and are still wanted."""
        for question in [question for question, hypotheses in self._decoded.items() if not hypotheses]:
            del self._decoded[question]
            yield Failed(question, OptionError(RULED_OUT))
        questions = sorted(self._decoded)
        if not questions:
            return
        log_p = yield self._closed_book(questions)
        for question, closed_book_log_p in zip(questions, log_p, strict=True):
            if question in self._decoded:
                answer = yield from self._answer(question, self._decoded[question], closed_book_log_p)
                if self._decoded.pop(question, None) is not None:
                    yield Answered(question, answer)

    def _closed_book(self, questions: Sequence[int]) -> Work:
        """log p(y|x) without any passage, of the best hypothesis of each."""
        generator = self._read.generator
        asked = [(self._read.questions[question], self._decoded[question][0].ids) for question in questions]
        return Work(lambda: asked, partial(_closed_book_log_p, generator), ("closed book", id(generator)))

    def _answer(
        self, question: int, hypotheses: Sequence[Decoded], closed_book_log_p: float
    ) -> Coroutine[Work, Any, Answer]:
        best, generator = hypotheses[0], self._read.generator
        evidence = evidence_of(best, self._read, question)
        tokens = cut_at_stop(tokens_of(generator, evidence, 0, self._variant), self._stop)
        if self._asking.top_tokens:
            tokens = yield alone(partial(self._with_top, question, best.ids, tokens))
        x, sources = self._read.questions[question], sources_of(evidence, 0, self._variant)
        if self._asking.sentences:
            sources = yield from adding_sentences(sources, generator, x, evidence, 0, self._variant)
        is_real = evidence.log_p_eta[0] > float("-inf")  # other values only fill up the list
        answer = Answer(
            question=x.text,
            text="".join(token.text for token in tokens),
            log_prob=best.log_prob,
            closed_book_log_prob=closed_book_log_p,
            variant=self._variant,
            decoding=self._asking.decoding,
            memory_version=evidence.version,
            sources=sources,
            tokens=tokens,
            hypotheses=tuple(
                Hypothesis(before_stop(generator.text(other.ids), self._stop), other.log_prob, other.finished)
                for other in hypotheses
            ),
            log_p_eta=tuple(evidence.log_p_eta[0][is_real].tolist()),
            log_p_theta=tuple(map(tuple, evidence.log_p_theta[0][is_real].tolist())),
            no_passage=no_passage_of(evidence, 0, self._variant),
            num_input_tokens=self._num_input_tokens[question],
            sets=sets_of(evidence, 0),
            conversation=evidence.conversation(0, self._variant, num_dropped=x.num_dropped),
            missing=evidence.missing,
        )
        confidence = self._confidence[question]
        is_known = confidence is not None and not answer.missing  # what was calibrated had all passages
        known = confidence.of(answer) if confidence is not None and is_known else answer
        return replace(known, hypotheses=known.hypotheses[: self._num_best])


def _closed_book_log_p(
    generator: Scores, asked: Sequence[Sequence[tuple[Question, Sequence[int]]]]
) -> list[list[float]]:
    """log p(y|x) of the generator alone, nats, for the pairs (x, y) of several tasks."""
    x, sequences = zip(*(pair for of_task in asked for pair in of_task), strict=True)
    best = as_targets(sequences, device=generator.device)
    log_p = iter(closed_book(generator, x).evidence(best).log_likelihood("sequence").tolist())
    return [[next(log_p) for _ in of_task] for of_task in asked]


def decodes_apart(generator: Scores) -> bool:
    """Whether each question has a decoder state of its own: it takes no more rows than it needs, and leaves when it is
    done. So it is where a generator goes on with several states in one pass, and a processor computes it; an
    accelerator computes one state of several questions with fewer calls."""
    return steps_together(generator) and generator.device.type == "cpu"


def apart(read: Read[G]) -> list[Read[G]]:
    """The questions, as they share decoder states."""
    if len(read.questions) == 1 or not decodes_apart(read.generator):
        return [read]
    return [read.rows([b]) for b in range(len(read.questions))]


def num_input_tokens(read: Read[Scores]) -> list[int]:
    """For each question how many tokens the generator reads, of x with each z; 0 where it does not say."""
    if not isinstance(read.prepared, CountsTokensRead):
        return [0] * len(read.questions)
    num_passages, counts = read.prepared.num_passages, read.prepared.num_tokens
    return [sum(counts[start : start + num_passages]) for start in range(0, len(counts), num_passages)]


def evidence_of(hypothesis: Decoded, read: Read[Scores], b: int) -> Evidence:
    """What is known of one hypothesis for question ``b``, as a batch of one."""
    return Evidence(
        latents=[read.retrieved.latents[b]],
        log_p_eta=read.log_p_eta[b : b + 1],
        log_p_theta=hypothesis.log_p_theta[None],
        targets=as_targets([hypothesis.ids], device=read.log_p_eta.device),
        version=read.retrieved.version,
        parts={name: part[b : b + 1] for name, part in read.logit_parts().items()},
        readings=read.retrieved.readings[b : b + 1],
        missing=read.retrieved.missing,
    )


def tokens_of(generator: Scores, evidence: Evidence, b: int, variant: Variant) -> tuple[Token, ...]:
    """The tokens of y without an end token, whose posterior is in the sources."""
    length = int(evidence.targets.mask[b].sum())
    ids = evidence.targets.ids[b, :length].tolist()
    _, of_passages = evidence.of_passages(b, evidence.posterior_of_tokens(variant)[b])  # (P, T)
    posterior = of_passages.T.tolist()
    log_p = evidence.log_p_of_tokens(variant)[b].tolist()
    texts = generator.token_texts(ids)
    shown = length - 1 if ids[-1] in generator.end_ids else length
    return tuple(Token(texts[i], log_p[i], tuple(posterior[i])) for i in range(shown))


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string."""
    found = [position for position in (text.find(each) for each in stop) if position >= 0]
    return text[: min(found)].rstrip() if found else text


def cut_at_stop(tokens: tuple[Token, ...], stop: Sequence[str]) -> tuple[Token, ...]:
    """The tokens whose text lies before the first stop string, the last one shortened where it reaches into it."""
    room = len(before_stop("".join(token.text for token in tokens), stop))
    kept = []
    for token in tokens:
        if room <= 0 and token.text:
            break
        kept.append(replace(token, text=token.text[:room]))
        room -= len(token.text)
    return tuple(kept)


def sources_of(evidence: Evidence, b: int, variant: Variant) -> tuple[Source, ...]:
    """The passages of question b with prior and posterior."""
    passages, prior = evidence.of_passages(b, evidence.log_p_eta[b].exp())
    _, posterior = evidence.of_passages(b, evidence.posterior(variant)[b])
    parts = evidence.parts_of_passages(b)
    return tuple(
        Source(passage, before, after, parts=of_one)
        for passage, before, after, of_one in zip(passages, prior.tolist(), posterior.tolist(), parts, strict=True)
    )


def sets_of(evidence: Evidence, b: int) -> tuple[tuple[int, ...], ...]:
    """For each real latent value of question b the places of its passages among the sources; empty where each is one
    passage or none."""
    real = [
        z for z, log_p in zip(evidence.latents[b], evidence.log_p_eta[b].tolist(), strict=True) if log_p > -math.inf
    ]
    if all(len(z) < 2 for z in real):
        return ()
    places = {passage: place for place, passage in enumerate(distinct_passages(real))}
    return tuple(tuple(places[passage] for passage in z) for z in real)


def no_passage_of(evidence: Evidence, b: int, variant: Variant) -> NoPassage | None:
    """The share of the generator alone; None where it is no value of question b's z."""
    prior = evidence.log_p_eta[b].exp()
    empty = [k for k, z in enumerate(evidence.latents[b]) if not z and prior[k] > 0]
    if not empty:
        return None
    return NoPassage(prior[empty].sum().item(), evidence.posterior(variant)[b][empty].sum().item())


def settled_length(text: str, stop: Sequence[str]) -> int:
    """How many characters of a text stay what they are, whatever tokens follow.

    White space and ASCII's punctuation at its end may still change (white space that is dropped, an apostrophe that is
    drawn to the next word), and so may U+FFFD, which stands for half of a character; and from where a stop string may
    have begun it may be cut.
    """
    length = len(text)
    for each in stop:
        length = min(length, _possible_start(text, each))
    while length and (text[length - 1].isspace() or text[length - 1] in _UNSETTLED):
        length -= 1
    return length


def _possible_start(text: str, stop: str) -> int:
    """Where ``stop`` begins in the text, or might with what follows; the text's length if nowhere."""
    found = text.find(stop)
    if found >= 0:
        return found
    starts = range(max(0, len(text) - len(stop) + 1), len(text))
    return next((start for start in starts if stop.startswith(text[start:])), len(text))


def num_settled(texts: Sequence[str], stop: Sequence[str]) -> int:
    """How many tokens have a text that stays what it is. One that adds nothing yet waits for what follows."""
    room = settled_length("".join(texts), stop)
    count = 0
    for number, text in enumerate(texts, start=1):
        room -= len(text)
        if room < 0:
            break
        if text:
            count = number
    return count
