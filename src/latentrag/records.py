"""Answers, scores and classifications as the objects of ``--json`` and of the HTTP API, and what these objects hold.

Documented in README.md: names here are API. Logarithms are natural; null stands for −∞.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from latentrag.types import (
    Answer,
    Conversation,
    Decoding,
    Hypothesis,
    NoPassage,
    Passage,
    Reading,
    Sentence,
    Source,
    Token,
    Variant,
)

if sys.version_info >= (3, 12):
    from typing import NotRequired, TypedDict
else:  # pydantic, which makes OpenAPI's schemas of these, reads no others there
    from typing import NotRequired

    from typing_extensions import TypedDict

if TYPE_CHECKING:
    from latentrag.corpus.readers import Ledger
    from latentrag.types import Classification, Score


class PassageRecord(TypedDict):
    """A passage and where it comes from; offsets in characters. ``fields`` are what its document states (date, author,
    …), where it states something."""

    id: str
    title: str
    text: str
    source: str
    start: int
    end: int
    page: int | None
    fields: NotRequired[dict[str, str | int | float | bool]]


class FileRecord(TypedDict):
    """What became of a file: characters kept, what was left out (reason → count), and the encoding it was read in."""

    file: str
    characters: int
    left_out: dict[str, int]
    encoding: str
    is_guess: bool


class SentenceRecord(TypedDict):
    """A sentence of a passage, offsets into its text in characters; ``log_prob_without`` is log p(y|x) had the passage
    been without it."""

    text: str
    start: int
    end: int
    log_prob_without: float | None


class SourceRecord(PassageRecord):
    """A passage with its share in the answer; ``sentences`` of the one with the largest, where they were asked for;
    ``parts`` of the logit of its prior, by name."""

    prior: float
    posterior: float
    sentences: list[SentenceRecord]
    parts: dict[str, float]


class NoPassageRecord(TypedDict):
    """The share of the generator alone, where "no passage" is one of the sources."""

    prior: float
    posterior: float


class ReadingRecord(TypedDict):
    """A way to read the last question of a conversation: "last" (alone), "before" (with the turn before), "all" (with
    all turns), "rewrite" (as the generator wrote it); what was searched for, its share before and after the answer is
    known, and how many earlier turns it left out because the text would have been too long."""

    kind: str
    text: str
    prior: float
    posterior: float
    num_dropped: int


class ConversationRecord(TypedDict):
    """What became of the earlier turns. ``trained``: whether the model has learned how to weigh readings; if not, the
    default weights were used. ``num_dropped``: earlier turns that the generator did not read."""

    readings: list[ReadingRecord]
    trained: bool
    num_dropped: int


class TopTokenRecord(TypedDict):
    """One of the most probable tokens in the place of another."""

    text: str
    log_prob: float | None


class TokenRecord(TypedDict):
    """A token, with a posterior for each source; ``top`` where it was asked for."""

    text: str
    log_prob: float | None
    posterior: list[float]
    top: NotRequired[list[TopTokenRecord]]


class HypothesisRecord(TypedDict):
    """A candidate answer."""

    text: str
    log_prob: float | None
    finished: bool


class AnswerRecord(TypedDict):
    """An answer with its probability and its evidence; logarithms in nats, null is −∞.

    ``log_p_eta`` is log p_η(z|x) of each source; ``log_p_theta`` is log p_θ(y_i|x,z,y_<i), for each source each token
    of log_prob, the end token included. ``sets`` is there where sets of passages are read together: for each row of
    both which sources it read, counted from 0. ``confidence`` is there where the model is calibrated: the probability
    that the answer is right. ``best_guess`` is there where the answer abstains: what it would have been.
    ``conversation`` is there where there were earlier turns. ``missing`` is there where parts of the memory did not
    answer, and names them: their passages had no chance to be among the sources.
    """

    question: str
    answer: str
    sets: NotRequired[list[list[int]]]
    confidence: NotRequired[float]
    best_guess: NotRequired[str]
    log_prob: float | None
    closed_book_log_prob: float | None
    variant: Variant
    decoding: Decoding
    memory_version: int
    sources: list[SourceRecord]
    tokens: list[TokenRecord]
    hypotheses: list[HypothesisRecord]
    log_p_eta: list[float | None]
    log_p_theta: list[list[float | None]]
    no_passage: NotRequired[NoPassageRecord]
    conversation: NotRequired[ConversationRecord]
    missing: NotRequired[list[str]]


FinishReason = Literal["stop", "length"]
"""Why an answer ends, as OpenAI says it: it was finished, or the limit on its tokens cut it."""


class UsageRecord(TypedDict):
    """Tokens. Of the prompt: what the generator read, the question with each of its passages. Of the completion: the
    answer's, the end token included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ScoreSourceRecord(TypedDict):
    """A passage with its share in y; ``sentences``, offsets into the passage's text, and ``parts`` as in an answer's
    source."""

    id: str
    title: str
    prior: float
    posterior: float
    sentences: list[SentenceRecord]
    parts: dict[str, float]


class ScoreRecord(TypedDict):
    """A given y with its likelihood; ``without_passage`` is empty where there is one passage only; ``missing`` as in an
    answer."""

    x: str
    y: str
    log_likelihood: float | None
    closed_book_log_likelihood: float | None
    num_tokens: int
    posterior: list[float]
    sources: list[ScoreSourceRecord]
    without_passage: list[float | None]
    no_passage: NotRequired[NoPassageRecord]
    conversation: NotRequired[ConversationRecord]
    missing: NotRequired[list[str]]


class LabelRecord(TypedDict):
    """A label; its probability is among the labels given."""

    text: str
    probability: float
    log_likelihood: float | None


class ClassificationRecord(TypedDict):
    """The labels, most probable first; ``missing`` as in an answer."""

    question: str
    label: str
    labels: list[LabelRecord]
    variant: Variant
    memory_version: int
    sources: list[SourceRecord]
    no_passage: NotRequired[NoPassageRecord]
    conversation: NotRequired[ConversationRecord]
    missing: NotRequired[list[str]]


def answer_record(answer: Answer) -> AnswerRecord:
    """An answer with its probability and its evidence."""
    record: AnswerRecord = {
        "question": answer.question,
        "answer": answer.text,
        "log_prob": answer.log_prob,
        "closed_book_log_prob": answer.closed_book_log_prob,
        "variant": answer.variant,
        "decoding": answer.decoding,
        "memory_version": answer.memory_version,
        "sources": _sources(answer.sources),
        "tokens": [token_record(token) for token in answer.tokens],
        "hypotheses": [
            {"text": hypothesis.text, "log_prob": hypothesis.log_prob, "finished": hypothesis.finished}
            for hypothesis in answer.hypotheses
        ],
        "log_p_eta": list(answer.log_p_eta),
        "log_p_theta": [list(of_passage) for of_passage in answer.log_p_theta],
    }
    if answer.no_passage is not None:
        record["no_passage"] = _no_passage(answer.no_passage)
    if answer.sets:
        record["sets"] = [list(places) for places in answer.sets]
    if answer.confidence is not None:
        record["confidence"] = answer.confidence
    if answer.best_guess is not None:
        record["best_guess"] = answer.best_guess
    if answer.conversation is not None:
        record["conversation"] = _conversation(answer.conversation)
    if answer.missing:
        record["missing"] = list(answer.missing)
    return record


def usage_record(answer: Answer) -> UsageRecord:
    """How many tokens were read and written."""
    num_written = len(answer.log_p_theta[0])
    num_read = answer.num_input_tokens
    return {"prompt_tokens": num_read, "completion_tokens": num_written, "total_tokens": num_read + num_written}


def finish_reason(answer: Answer, max_tokens: int) -> FinishReason:
    """Why it ends. max_tokens: the limit that it was decoded with."""
    cut = not answer.hypotheses[0].finished and len(answer.tokens) >= max_tokens
    return "length" if cut else "stop"


def answer_of(record: AnswerRecord) -> Answer:
    """The answer that an object of ``answer_record`` describes."""
    no_passage = record.get("no_passage")
    return Answer(
        question=record["question"],
        text=record["answer"],
        log_prob=_log(record["log_prob"]),
        closed_book_log_prob=_log(record["closed_book_log_prob"]),
        variant=record["variant"],
        decoding=record["decoding"],
        memory_version=record["memory_version"],
        sources=tuple(map(_source_of, record["sources"])),
        tokens=tuple(
            Token(
                each["text"],
                _log(each["log_prob"]),
                tuple(each["posterior"]),
                tuple((other["text"], _log(other["log_prob"])) for other in each.get("top", [])),
            )
            for each in record["tokens"]
        ),
        hypotheses=tuple(
            Hypothesis(each["text"], _log(each["log_prob"]), each["finished"]) for each in record["hypotheses"]
        ),
        log_p_eta=tuple(map(_log, record["log_p_eta"])),
        log_p_theta=tuple(tuple(map(_log, row)) for row in record["log_p_theta"]),
        no_passage=None if no_passage is None else NoPassage(**no_passage),
        confidence=record.get("confidence"),
        best_guess=record.get("best_guess"),
        sets=tuple(tuple(places) for places in record.get("sets", [])),
        conversation=_conversation_of(record.get("conversation")),
        missing=tuple(record.get("missing", [])),
    )


def _source_of(record: SourceRecord) -> Source:
    passage = Passage(
        record["id"],
        record["text"],
        record["title"],
        record["source"],
        record["start"],
        record["end"],
        record["page"],
        fields=record.get("fields", {}),
    )
    sentences = tuple(
        Sentence(each["start"], each["end"], _log(each["log_prob_without"])) for each in record["sentences"]
    )
    return Source(passage, record["prior"], record["posterior"], sentences, record["parts"])


def _log(value: float | None) -> float:
    """null is −∞."""
    return -math.inf if value is None else value


def score_record(score: Score) -> ScoreRecord:
    """A given y with its likelihood."""
    record: ScoreRecord = {
        "x": score.x,
        "y": score.y,
        "log_likelihood": score.log_likelihood,
        "closed_book_log_likelihood": score.closed_book_log_likelihood,
        "num_tokens": score.num_tokens,
        "posterior": [source.posterior for source in score.sources],
        "sources": [
            {
                "id": source.passage.id,
                "title": source.passage.title,
                "prior": source.prior,
                "posterior": source.posterior,
                "sentences": _sentences(source),
                "parts": dict(source.parts),
            }
            for source in score.sources
        ],
        "without_passage": list(score.without_passage),
    }
    if score.no_passage is not None:
        record["no_passage"] = _no_passage(score.no_passage)
    if score.conversation is not None:
        record["conversation"] = _conversation(score.conversation)
    if score.missing:
        record["missing"] = list(score.missing)
    return record


def classification_record(classification: Classification) -> ClassificationRecord:
    """The labels, most probable first."""
    record: ClassificationRecord = {
        "question": classification.x,
        "label": classification.best,
        "labels": [
            {"text": label.text, "probability": label.probability, "log_likelihood": label.log_likelihood}
            for label in classification.labels
        ],
        "variant": classification.variant,
        "memory_version": classification.memory_version,
        "sources": _sources(classification.sources),
    }
    if classification.no_passage is not None:
        record["no_passage"] = _no_passage(classification.no_passage)
    if classification.conversation is not None:
        record["conversation"] = _conversation(classification.conversation)
    if classification.missing:
        record["missing"] = list(classification.missing)
    return record


def token_record(token: Token) -> TokenRecord:
    """A token with a posterior for each source."""
    record: TokenRecord = {"text": token.text, "log_prob": token.log_prob, "posterior": list(token.posterior)}
    if token.top:
        record["top"] = [{"text": text, "log_prob": log_prob} for text, log_prob in token.top]
    return record


def passage_record(passage: Passage) -> PassageRecord:
    """A passage and where it comes from."""
    return {
        "id": passage.id,
        "title": passage.title,
        "text": passage.text,
        "source": passage.source,
        "start": passage.start,
        "end": passage.end,
        "page": passage.page,
        **_fields(passage),
    }


class _FieldsRecord(TypedDict):
    fields: NotRequired[dict[str, str | int | float | bool]]


def _fields(passage: Passage) -> _FieldsRecord:
    return {"fields": dict(passage.fields)} if passage.fields else {}


def _conversation(conversation: Conversation) -> ConversationRecord:
    return {
        "readings": [
            {
                "kind": each.kind,
                "text": each.text,
                "prior": each.prior,
                "posterior": each.posterior,
                "num_dropped": each.num_dropped,
            }
            for each in conversation.readings
        ],
        "trained": conversation.trained,
        "num_dropped": conversation.num_dropped,
    }


def _conversation_of(record: ConversationRecord | None) -> Conversation | None:
    if record is None:
        return None
    return Conversation(tuple(Reading(**each) for each in record["readings"]), record["trained"], record["num_dropped"])


def _no_passage(share: NoPassage) -> NoPassageRecord:
    return {"prior": share.prior, "posterior": share.posterior}


def _sources(sources: Sequence[Source]) -> list[SourceRecord]:
    return [
        {
            "id": source.passage.id,
            "title": source.passage.title,
            "text": source.passage.text,
            "prior": source.prior,
            "posterior": source.posterior,
            "source": source.passage.source,
            "start": source.passage.start,
            "end": source.passage.end,
            "page": source.passage.page,
            "sentences": _sentences(source),
            "parts": dict(source.parts),
            **_fields(source.passage),
        }
        for source in sources
    ]


def _sentences(source: Source) -> list[SentenceRecord]:
    return [
        {
            "text": source.passage.text[each.start : each.end],
            "start": each.start,
            "end": each.end,
            "log_prob_without": each.log_prob_without,
        }
        for each in source.sentences
    ]


def file_record(ledger: Ledger) -> FileRecord:
    """Of a file that was read."""
    return {
        "file": ledger.file,
        "characters": ledger.characters,
        "left_out": ledger.left_out,
        "encoding": ledger.encoding,
        "is_guess": ledger.is_guess,
    }
