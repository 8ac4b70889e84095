"""Answers, scores and classifications as the objects of ``--json`` and of the HTTP API.

Documented in README.md: names here are API.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentrag.types import Answer, Classification, Passage, Score, Source, Token

Record = dict[str, Any]


def answer_record(answer: Answer) -> Record:
    """An answer with its probability and its evidence; logarithms in nats."""
    return {
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
            {"text": each.text, "log_prob": each.log_prob, "finished": each.finished} for each in answer.hypotheses
        ],
        "log_p_eta": list(answer.log_p_eta),
        "log_p_theta": [list(of_passage) for of_passage in answer.log_p_theta],
    }


def score_record(score: Score) -> Record:
    """A given y with its likelihood; ``without_passage`` is empty where there is one passage only."""
    return {
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
            }
            for source in score.sources
        ],
        "without_passage": list(score.without_passage),
    }


def classification_record(found: Classification) -> Record:
    """The labels, most probable first; ``probability`` is among the labels given."""
    return {
        "question": found.x,
        "label": found.best,
        "labels": [
            {"text": label.text, "probability": label.probability, "log_likelihood": label.log_likelihood}
            for label in found.labels
        ],
        "variant": found.variant,
        "memory_version": found.memory_version,
        "sources": _sources(found.sources),
    }


def token_record(token: Token) -> Record:
    """A token with a posterior for each source."""
    return {"text": token.text, "log_prob": token.log_prob, "posterior": list(token.posterior)}


def passage_record(passage: Passage) -> Record:
    """A passage and where it comes from."""
    return {
        "id": passage.id,
        "title": passage.title,
        "text": passage.text,
        "source": passage.source,
        "start": passage.start,
        "end": passage.end,
        "page": passage.page,
    }


def finite(value: Any) -> Any:
    """The same value for JSON: −∞, a probability of zero, is null there, which has no such number."""
    if isinstance(value, float) and math.isinf(value) and value < 0:
        return None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return value


def _sources(sources: Sequence[Source]) -> list[Record]:
    return [_source(source) for source in sources]


def _source(source: Source) -> Record:
    passage = passage_record(source.passage)
    named = {name: passage.pop(name) for name in ("id", "title", "text")}
    return {**named, "prior": source.prior, "posterior": source.posterior, **passage}
