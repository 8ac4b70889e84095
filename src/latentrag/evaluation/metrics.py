"""Metrics and decoders, each in a table: how the model answers, how that is measured; ``training.tasks`` names them.

Metrics of strings are pure functions with the conventions of open-domain question answering.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from unicodedata import normalize

import regex

from latentrag.evaluation.intervals import UNIT, Bounds
from latentrag.registry import Table
from latentrag.words import compared_words, folded, normalised


class Said(NamedTuple):
    """What a model answers.

    Attributes:
        log_prob: log p(text|x), nats.
        known: what else a row keeps of it, by key.
    """

    text: str
    log_prob: float
    known: Mapping[str, object] = MappingProxyType({})


if TYPE_CHECKING:
    from latentrag.evaluation.resampling import Measure
    from latentrag.evaluation.run import Plan
    from latentrag.model import Read
    from latentrag.protocols import Scores
    from latentrag.rag import Rag
    from latentrag.training.data import Example
    from latentrag.types import Passage

    Value = Callable[[Example, str, Sequence[Passage]], float | list[int] | None]
    """Of an example, the model's answer to it, and the passages retrieved, best first. None: not measured."""
    Decoder = Callable[[Rag, Read[Scores], Plan, Sequence[Example]], Sequence[Said | tuple[str, float]]]
    """What the model answers to each of B questions. The examples are those of the questions; of their answers it must
    make no use."""

Row: TypeAlias = dict[str, Any]
"""What is known of one example; ``evaluate`` says what the keys are."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A measure of what a model retrieves and answers.

    Attributes:
        key: of its value in a row.
        value: of one example; None: the row has it anyway.
        measures: a row's values of which means, None where it is not measured: the same names for every row, given the
            numbers of passages k at which recall is reported.
        bounds: between which the measures of a row lie; None: there are none. Intervals depend on it.
    """

    key: str
    value: Value | None
    measures: Callable[[Row, Sequence[int]], Mapping[str, float | None]]
    bounds: Bounds | None = None


@dataclass(frozen=True, slots=True)
class CorpusMetric:
    """A measure of all examples together, which is no mean of theirs: BLEU, macro F1, distinct trigrams.

    Attributes:
        over: n rows to a measure by name, each between 0 and 1: a function of places among the rows. None by a name:
            not measured.
        key, value: as for ``Metric``: what a row keeps for it; None: what it has anyway is enough.
        details: what else the report has of all rows, by name, as JSON values.
    """

    over: Callable[[Sequence[Row]], Mapping[str, Measure]]
    key: str | None = None
    value: Value | None = None
    details: Callable[[Sequence[Row]], Mapping[str, object]] = lambda _: {}


def mean_of(key: str, value: Value, *, bounds: Bounds | None = None) -> Metric:
    """The mean of the examples' values."""
    return Metric(key, value, lambda row, _: {key: None if row[key] is None else float(row[key])}, bounds)


def share_at(name: str, key: str, value: Value, applies: Callable[[Row], bool]) -> Metric:
    """The share of examples whose rank, their value, is at most k, for each k: ``name@k``. None: not retrieved.

    Args:
        applies: whether it is measured of a row.
    """

    def measures(row: Row, at: Sequence[int]) -> Mapping[str, float | None]:
        if not applies(row):
            return {f"{name}@{k}": None for k in at}
        return {f"{name}@{k}": float((row.get(key) or math.inf) <= k) for k in at}

    return Metric(key, value, measures, UNIT)


# Strings

_TOKENS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_SINGLE = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_RUNS = r"[\p{Katakana}ー]+|\p{Hangul}+"
_SCRIPTS = regex.compile(
    rf"{_RUNS}|[{_SINGLE}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{_SINGLE}\p{{Katakana}}\p{{Hangul}}ー]]+|[^\p{{Z}}\p{{C}}]",
    regex.VERSION1,
)
_ENDS_IN_KOREAN = regex.compile(r"\p{Hangul} $")
_UNSPACED = regex.compile(rf"[{_SINGLE}\p{{Katakana}}\p{{Hangul}}]")


def is_wordless(answer: str) -> bool:
    """Whether normalisation leaves nothing of an answer: it is only articles, punctuation or signs."""
    return not normalised(answer)


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction has the words of one of the answers."""
    return compared_words(prediction) in [compared_words(answer) for answer in answers]


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, against the answer where it is highest.

    0 where one side has no words, and without answers.
    """
    said = Counter(compared_words(prediction))
    return max((_f1(said, Counter(compared_words(answer))) for answer in answers), default=0.0)


def _f1(said: Counter[str], gold: Counter[str]) -> float:
    # 2PR / (P + R) with P = shared / |said| and R = shared / |gold|.
    return 2 * (said & gold).total() / max(1, said.total() + gold.total())


def regex_match(prediction: str, pattern: str) -> bool:
    """Whether the pattern matches from the prediction's beginning, case aside (CuratedTREC's convention, as in
    Chen et al. 2017)."""
    return re.match(pattern, prediction.strip(), re.IGNORECASE) is not None


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether the text holds an answer, token by token: has_answer of DPR (Karpukhin et al. 2020), after DrQA."""
    tokens = answer_tokens(text)
    return any(wanted in tokens for wanted in map(answer_tokens, answers) if wanted.strip())


def answer_tokens(text: str) -> str:
    """DPR's tokens of a text, with a space before, between and after: runs of letters, numbers and marks, and every
    other visible character, in NFD and lower case."""
    return _spaced(_TOKENS, normalize("NFD", text))


def contains_unspaced(text: str, answers: Sequence[str]) -> bool:
    """As ``contains_answer``, for texts without spaces between words, or with particles that cling to them.

    Both are ``folded``. A token is one character of Chinese, hiragana, Thai, Lao, Khmer or Burmese, with its marks, or
    a run of one other script; Korean may go on after an answer ("서울" in "서울은"). It finds too much where the
    characters are within a longer word ("京都" in "東京都"), which takes a dictionary to see.
    """
    tokens = _spaced(_SCRIPTS, folded(text))
    for answer in answers:
        wanted = _spaced(_SCRIPTS, folded(answer))
        if wanted.strip() and (wanted.rstrip() if _ENDS_IN_KOREAN.search(wanted) else wanted) in tokens:
            return True
    return False


def is_unspaced(answer: str) -> bool:
    """Whether an answer has a character of a script that ``contains_unspaced`` is for."""
    return _UNSPACED.search(answer) is not None


def contains_match(text: str, pattern: str) -> bool:
    """Whether the pattern matches anywhere in the text, case aside, both in NFD (DPR's, for CuratedTREC)."""
    return re.search(normalize("NFD", pattern), normalize("NFD", text), re.IGNORECASE | re.MULTILINE) is not None


def _spaced(tokens: regex.Pattern[str], text: str) -> str:
    """The tokens with a space before, between and after: what holds others holds them as a string."""
    return f" {' '.join(tokens.findall(text.lower()))} "


# Examples


def is_right(example: Example, text: str, _passages: Sequence[Passage]) -> bool:
    """Whether the text is one of the answers, or matches the pattern of an example that has one."""
    return regex_match(text, example.pattern) if example.pattern else exact_match(text, example.answers)


def _f1_of_example(example: Example, text: str, _passages: Sequence[Passage]) -> float | None:
    return None if example.pattern else token_f1(text, example.answers)


def _rank_of_answer(example: Example, _text: str, passages: Sequence[Passage]) -> int | None:
    if not _has_answer(example.answers, example.pattern, example.choices):
        return None
    return _first(_holds_answer(example, z.text) for z in passages)  # not the title: as DPR counts


def _holds_answer(example: Example, text: str) -> bool:
    return contains_match(text, example.pattern) if example.pattern else contains_answer(text, example.answers)


def _rank_of_unspaced(example: Example, _text: str, passages: Sequence[Passage]) -> int | None:
    if example.pattern or example.choices or not any(map(is_unspaced, example.answers)):
        return None
    return _first(contains_unspaced(z.text, example.answers) for z in passages)


def _rank_of_title(example: Example, _text: str, passages: Sequence[Passage]) -> int | None:
    return _first(z.title in example.titles for z in passages)


def _first(hits: Iterable[bool]) -> int | None:
    """The place, from 1, of the first hit."""
    return next((place for place, hit in enumerate(hits, start=1) if hit), None)


def _has_answer(answers: Sequence[str], pattern: str | None, choices: Sequence[str]) -> bool:
    """Whether there is an answer that passages may hold: a label is none, and neither is yes."""
    return bool(pattern or answers) and not choices


def _has_passages(row: Row) -> bool:
    return row["memory_version"] is not None


def _is_answered(row: Row) -> bool:
    return _has_passages(row) and _has_answer(row.get("answers", ()), row.get("pattern"), row.get("choices", ()))


def _has_unspaced(row: Row) -> bool:
    return _is_answered(row) and not row.get("pattern") and any(map(is_unspaced, row.get("answers", ())))


def _has_title(row: Row) -> bool:
    return _has_passages(row) and bool(row.get("titles") or row.get("title"))  # latentrag 0.1.0 wrote one title


METRICS: Table[Metric | CorpusMetric] = Table(
    "metric",
    {
        "exact_match": mean_of("exact_match", is_right, bounds=UNIT),
        "f1": mean_of("f1", _f1_of_example, bounds=UNIT),
        "recall": share_at("recall", "rank", _rank_of_answer, _is_answered),
        "unspaced_recall": share_at("unspaced_recall", "unspaced_rank", _rank_of_unspaced, _has_unspaced),
        "title_recall": share_at("title_recall", "title_rank", _rank_of_title, _has_title),
        "accuracy": "latentrag.evaluation.labels:ACCURACY",
        "macro_f1": "latentrag.evaluation.labels:MACRO_F1",
        "rouge_l": "latentrag.evaluation.texts:ROUGE_L",
        "bleu": "latentrag.evaluation.texts:BLEU",
        "bleu_1": "latentrag.evaluation.texts:BLEU_1",
        "q_bleu_1": "latentrag.evaluation.answerability:Q_BLEU_1",
        "distinct_trigrams": "latentrag.evaluation.texts:DISTINCT_TRIGRAMS",
        "kilt": "latentrag.evaluation.kilt:KILT",
        "confidence": "latentrag.evaluation.confidence:CONFIDENCE",
        "ranking": "latentrag.evaluation.ranking:RANKING",
    },
    group="latentrag.metrics",
)

DECODERS: Table[Decoder] = Table(
    "decoder",
    {"search": "latentrag.evaluation.decoders:searched", "choose": "latentrag.evaluation.decoders:chosen"},
    group="latentrag.decoders",
)


def stored(metrics: Iterable[Metric | CorpusMetric], example: Example, text: str, passages: Sequence[Passage]) -> Row:
    """What a row keeps for these metrics.

    Args:
        text: the model's answer.
        passages: what was retrieved, best first.
    """
    return {each.key: each.value(example, text, passages) for each in metrics if each.key and each.value}
