"""Answers, scores and classifications as the objects of ``--json``. Documented in README.md: names here are API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentrag.types import Answer, Classification, Score, Source

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
        "tokens": [
            {"text": token.text, "log_prob": token.log_prob, "posterior": list(token.posterior)}
            for token in answer.tokens
        ],
        "hypotheses": [
            {"text": each.text, "log_prob": each.log_prob, "finished": each.finished} for each in answer.hypotheses
        ],
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


def _sources(sources: Sequence[Source]) -> list[Record]:
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
        }
        for source in sources
    ]
