"""What speaks for a passage besides its text: parts of a hybrid prior's logit, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date

import numpy as np

from latentrag.postings import STOP_WORDS
from latentrag.registry import Table
from latentrag.types import Passage
from latentrag.words import terms

Bias = Callable[[str, Sequence[Passage]], np.ndarray]
"""A question and n passages → (n,) float64. The value of a passage does not depend on the others."""

_EPOCH = date(2000, 1, 1)
_DAYS = 365.25


def title(x: str, passages: Sequence[Passage]) -> np.ndarray:
    """The share of the words of a passage's title that are in the question, stop words left out; 0 without a title."""
    asked = {*terms(x).words}
    return np.array([_share(z.title, asked) for z in passages], np.float64)


def _share(named: str, asked: set[str]) -> float:
    words = {word for word in terms(named).words if word not in STOP_WORDS}
    return len(words & asked) / len(words) if words else 0.0


def recency(_: str, passages: Sequence[Passage]) -> np.ndarray:
    """Years from 2000 to the field "date" of a passage, which begins YYYY-MM-DD, YYYY-MM or YYYY; 0 without one."""
    return np.array([_years(str(z.fields.get("date", ""))) for z in passages], np.float64)


def _years(text: str) -> float:
    numbers = text[:10].split("T", maxsplit=1)[0].split("-")
    try:
        year, month, day = (*map(int, numbers), 1, 1)[:3]
        return (date(year, month, day) - _EPOCH).days / _DAYS
    except ValueError:
        return 0.0


BIASES: Table[Bias] = Table("bias", {"title": title, "recency": recency}, group="latentrag.biases")
