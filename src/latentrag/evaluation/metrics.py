"""Tasks and metrics, each in a table: which rows are read, how the model answers, how that is measured.

Metrics of strings are pure functions with the conventions of open-domain question answering.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from latentrag.registry import Table
from latentrag.training.data import QUESTIONS_AND_ANSWERS

if TYPE_CHECKING:
    from latentrag.evaluation.run import Plan
    from latentrag.model import Read
    from latentrag.protocols import Scores
    from latentrag.rag import Rag
    from latentrag.training.data import Example
    from latentrag.types import Passage

    Value = Callable[[Example, str, Sequence[Passage]], float | None]
    """Of an example, the model's answer to it, and the passages retrieved, best first. None: not measured."""
    Decoder = Callable[[Rag, Read[Scores], Plan], Sequence[tuple[str, float]]]
    """What the model answers to each of B questions, and log p of that in nats."""

Row: TypeAlias = dict[str, Any]
"""What is known of one example; ``evaluate`` says what the keys are."""

Part: TypeAlias = tuple[float, float]
"""What an example adds to a mean, and how much that counts: 0 where it is not measured."""
NOT_MEASURED: Part = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A measure of what a model retrieves and answers.

    Attributes:
        key: of its value in a row.
        value: of one example.
        parts: what a row adds to which means: the same names for every row, given the numbers of passages k at which
            recall is reported.
    """

    key: str
    value: Value
    parts: Callable[[Row, Sequence[int]], Mapping[str, Part]]


@dataclass(frozen=True, slots=True)
class Task:
    """What a model is measured on. Log p(y|x) of the first answer is measured in every task.

    Attributes:
        formats: of the rows of its files, names in ``training.data.FORMATS``.
        decoder: how the model answers, a name in ``DECODERS``.
        metrics: names in ``METRICS``.
    """

    formats: tuple[str, ...]
    decoder: str
    metrics: tuple[str, ...]


def mean_of(key: str, value: Value) -> Metric:
    """The mean of the examples' values."""
    return Metric(key, value, lambda row, _: {key: NOT_MEASURED if row[key] is None else (float(row[key]), 1.0)})


def share_at(name: str, key: str, value: Value, applies: Callable[[Row], bool]) -> Metric:
    """The share of examples whose rank, their value, is at most k, for each k: ``name@k``. None: not retrieved.

    Args:
        applies: whether it is measured of a row.
    """

    def parts(row: Row, at: Sequence[int]) -> Mapping[str, Part]:
        if not applies(row):
            return {f"{name}@{k}": NOT_MEASURED for k in at}
        return {f"{name}@{k}": (float(row[key] is not None and row[key] <= k), 1.0) for k in at}

    return Metric(key, value, parts)


# Strings

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation, English articles and surplus white space (SQuAD; Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction is one of the answers, both normalised."""
    return normalised(prediction) in {normalised(answer) for answer in answers}


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the normalised words, against the answer where it is highest.

    Where one side has no words the value is 1 if neither has, else 0 (SQuAD; Rajpurkar et al. 2016). 0 without answers.
    """
    said = Counter(normalised(prediction).split())
    return max((_f1(said, Counter(normalised(answer).split())) for answer in answers), default=0.0)


def _f1(said: Counter[str], gold: Counter[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    # 2PR / (P + R) with P = shared / |said| and R = shared / |gold|.
    return 2 * (said & gold).total() / (said.total() + gold.total())


def regex_match(prediction: str, pattern: str) -> bool:
    """Whether the pattern matches from the prediction's beginning, case aside (CuratedTREC's convention, as in
    Chen et al. 2017)."""
    return re.match(pattern, prediction.strip(), re.IGNORECASE) is not None


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether the normalised text holds a normalised answer, as whole words. Empty answers are never found."""
    padded = f" {normalised(text)} "
    return any(f" {wanted} " in padded for wanted in map(normalised, answers) if wanted)


def contains_match(text: str, pattern: str) -> bool:
    """Whether the pattern matches anywhere in the text as it is, case aside."""
    return re.search(pattern, text, re.IGNORECASE) is not None


# Examples


def is_right(example: Example, text: str, _passages: Sequence[Passage]) -> bool:
    """Whether the text is one of the answers, or matches the pattern of an example that has one."""
    return regex_match(text, example.pattern) if example.pattern else exact_match(text, example.answers)


def _f1_of_example(example: Example, text: str, _passages: Sequence[Passage]) -> float | None:
    return None if example.pattern else token_f1(text, example.answers)


def _rank_of_answer(example: Example, _text: str, passages: Sequence[Passage]) -> int | None:
    return _first(_holds_answer(example, f"{z.title}\n{z.text}") for z in passages)  # as the generator reads z


def _holds_answer(example: Example, text: str) -> bool:
    return contains_match(text, example.pattern) if example.pattern else contains_answer(text, example.answers)


def _rank_of_title(example: Example, _text: str, passages: Sequence[Passage]) -> int | None:
    return _first(z.title in example.titles for z in passages)


def _first(hits: Iterable[bool]) -> int | None:
    """The place, from 1, of the first hit."""
    return next((place for place, hit in enumerate(hits, start=1) if hit), None)


def _has_passages(row: Row) -> bool:
    return row["memory_version"] is not None


def _has_title(row: Row) -> bool:
    return _has_passages(row) and bool(row.get("titles") or row.get("title"))  # latentrag 0.1.0 wrote one title


METRICS: Table[Metric] = Table(
    "metric",
    {
        "exact_match": mean_of("exact_match", is_right),
        "f1": mean_of("f1", _f1_of_example),
        "recall": share_at("recall", "rank", _rank_of_answer, _has_passages),
        "title_recall": share_at("title_recall", "title_rank", _rank_of_title, _has_title),
    },
    group="latentrag.metrics",
)

DECODERS: Table[Decoder] = Table("decoder", {"search": "latentrag.evaluation.run:searched"}, group="latentrag.decoders")

OPEN_QA = "open-qa"
TASKS: Table[Task] = Table(
    "task",
    {
        OPEN_QA: Task(
            formats=QUESTIONS_AND_ANSWERS,
            decoder="search",
            metrics=("exact_match", "f1", "recall", "title_recall"),
        )
    },
    group="latentrag.tasks",
)
