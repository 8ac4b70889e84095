"""Measures of classification: accuracy, macro F1, and which label was taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from latentrag.evaluation.intervals import UNIT
from latentrag.evaluation.metrics import CorpusMetric, Row, mean_of

if TYPE_CHECKING:
    from latentrag.evaluation.resampling import Measure, Places
    from latentrag.training.data import Example
    from latentrag.types import Passage


def is_chosen(example: Example, text: str, _passages: Sequence[Passage]) -> bool:
    """Whether the choice is right."""
    return text in example.answers


def macro_f1(rows: Sequence[Row]) -> Mapping[str, Measure]:
    """The mean over the labels of F1 = 2·TP / (2·TP + FP + FN); 0 for a label that is neither given nor right."""
    if not rows:
        return {}
    labels = list(dict.fromkeys(label for row in rows for label in row["choices"]))
    gold = np.array([labels.index(_gold(row)) for row in rows])
    said = np.array([labels.index(row["text"]) for row in rows])

    def measure(places: Places) -> float:
        right = np.bincount(gold[places][gold[places] == said[places]], minlength=len(labels))
        given = np.bincount(gold[places], minlength=len(labels)) + np.bincount(said[places], minlength=len(labels))
        return float((2 * right / np.maximum(given, 1)).mean())

    return {"macro_f1": measure}


def confusion(rows: Sequence[Row]) -> Mapping[str, object]:
    """How often each right label got each answer: {right: {given: number}}."""
    labels = list(dict.fromkeys(label for row in rows for label in row["choices"]))
    pairs = Counter((_gold(row), row["text"]) for row in rows)
    return {"confusion": {right: {given: pairs[right, given] for given in labels} for right in labels}}


def _gold(row: Row) -> str:
    """The right label; of several the one that was given."""
    answers: list[str] = row["answers"]
    return str(row["text"]) if row["text"] in answers else answers[0]


ACCURACY = mean_of("accuracy", is_chosen, bounds=UNIT)
MACRO_F1 = CorpusMetric(macro_f1, details=confusion)
