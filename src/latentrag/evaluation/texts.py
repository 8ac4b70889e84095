"""Measures of longer texts: ROUGE-L by rouge-score, BLEU by sacrebleu, distinct trigrams.

Both libraries come with the extra ``evaluation`` and are imported when they are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import numpy as np
import regex

from latentrag.errors import ModelError
from latentrag.evaluation.intervals import UNIT
from latentrag.evaluation.metrics import CorpusMetric, Row, mean_of

if TYPE_CHECKING:
    from latentrag.evaluation.resampling import Measure, Places
    from latentrag.training.data import Example
    from latentrag.types import Passage

MAX_ORDER = 4
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORDS = regex.compile(
    rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]+",
    regex.VERSION1,
)


def library(name: str) -> Any:
    """A module of the extra ``evaluation``. Raises: ModelError if it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{name} is not installed, and this measure needs it; install latentrag[evaluation]"
        ) from error


def words(text: str) -> list[str]:
    """Runs of letters, digits and marks in lower case; in scripts without spaces each character, with its marks.

    For ASCII these are rouge-score's own tokens, which has no others: it drops every letter that is not a to z.
    """
    found: list[str] = _WORDS.findall(normalize("NFC", text).lower())
    return found


class _Words:
    """``words`` as rouge-score takes a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge() -> Any:
    return library("rouge_score.rouge_scorer").RougeScorer(["rougeL"], tokenizer=_Words())


def rouge_l(text: str, answers: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004), against the answer where it is highest.

    No stemming. 0 where one side has no word.
    """
    return float(_rouge().score_multi(answers, text)["rougeL"].fmeasure)


@cache
def _bleu() -> Any:
    return library("sacrebleu.metrics").BLEU(effective_order=True)


def bleu_counts(text: str, answers: Sequence[str]) -> list[int]:
    """What BLEU sums over texts (Papineni et al. 2002): matches and totals of 1- to 4-grams, both lengths.

    sacrebleu's tokens (13a), its case and its closest reference.
    """
    found = _bleu().sentence_score(text, list(answers))
    return [*found.counts, *found.totals, int(found.sys_len), int(found.ref_len)]


def bleu_of(counts: Sequence[int], *, max_order: int = MAX_ORDER) -> float:
    """BLEU between 0 and 1 from summed counts; sacrebleu's usual smoothing, "exp", of orders without a match."""
    correct, total = counts[:max_order], counts[MAX_ORDER : MAX_ORDER + max_order]
    found = _bleu().compute_bleu(
        correct=list(correct),
        total=list(total),
        sys_len=counts[-2],
        ref_len=counts[-1],
        smooth_method="exp",
        max_ngram_order=max_order,
    )
    return min(1.0, float(found.score) / 100)


def _bleu_over(name: str, max_order: int) -> Any:
    def over(rows: Sequence[Row]) -> Mapping[str, Measure]:
        if not rows or any(row["bleu_counts"] is None for row in rows):
            return {}
        counts = np.array([row["bleu_counts"] for row in rows])  # (n, 10)
        return {name: lambda places: bleu_of(counts[places].sum(axis=0).tolist(), max_order=max_order)}

    return over


def distinct_trigrams(texts: Sequence[str]) -> Measure:
    """The share of distinct trigrams of words among all of them, over texts (Li et al. 2016; the paper's Table 5).

    0 where there is none.
    """
    tokens = [words(text) for text in texts]
    trigrams = [list(zip(each, each[1:], each[2:], strict=False)) for each in tokens]
    numbers = {gram: number for number, gram in enumerate(dict.fromkeys(gram for each in trigrams for gram in each))}
    of_text = [np.array([numbers[gram] for gram in each], dtype=np.intp) for each in trigrams]

    def measure(places: Places) -> float:
        found = np.concatenate([np.empty(0, dtype=np.intp), *(of_text[place] for place in places)])
        return len(np.unique(found)) / len(found) if len(found) else 0.0

    return measure


def _trigrams_over(rows: Sequence[Row]) -> Mapping[str, Measure]:
    if not rows:
        return {}
    gold = [row["answers"][0] if row["answers"] else "" for row in rows]
    return {
        "distinct_trigrams": distinct_trigrams([row["text"] for row in rows]),
        "distinct_trigrams_of_gold": distinct_trigrams(gold),
    }


def _rouge_of_example(example: Example, text: str, _passages: Sequence[Passage]) -> float | None:
    return rouge_l(text, example.answers) if example.answers else None


def _counts_of_example(example: Example, text: str, _passages: Sequence[Passage]) -> list[int] | None:
    return bleu_counts(text, example.answers) if example.answers else None


ROUGE_L = mean_of("rouge_l", _rouge_of_example, bounds=UNIT)
BLEU = CorpusMetric(_bleu_over("bleu", MAX_ORDER), "bleu_counts", _counts_of_example)
BLEU_1 = CorpusMetric(_bleu_over("bleu_1", 1), "bleu_counts", _counts_of_example)
DISTINCT_TRIGRAMS = CorpusMetric(_trigrams_over)
