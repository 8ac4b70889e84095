"""Which pairs stay: pure functions of texts."""

from __future__ import annotations

from array import array
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np

from latentrag.evaluation.metrics import (
    contains_answer,
    contains_unspaced,
    exact_match,
    is_unspaced,
)
from latentrag.words import compared_words, normalised

Reason = Literal["no_pair", "answer_not_in_passage", "answer_in_question", "answered_otherwise", "near_duplicate"]
REASONS: dict[Reason, str] = {
    "no_pair": "what was written is not a question and an answer",
    "answer_not_in_passage": "the answer does not stand in the passage",
    "answer_in_question": "the answer stands in the question",
    "answered_otherwise": "asked the question, the generator gives another answer from the passage",
    "near_duplicate": "a kept question is nearly the same",
}
NEAR = 0.75
"""Share of the character trigrams of two questions that both have (Jaccard), from which on they are nearly the same."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer."""

    question: str
    answer: str


def parsed(text: str) -> Pair | None:
    """The pair of a text "[… Question:] … Answer: …", each in one line; None if it is none.

    The answer is what stands in one line after "Answer:", without a full stop at its end.
    """
    before, marker, after = text.partition("Answer:")
    question = " ".join(before.rpartition("Question:")[2].split())
    lines = after.strip().splitlines()
    answer = " ".join(lines[0].split()).removesuffix(".").strip() if lines else ""
    if not marker or not question or not normalised(answer) or "Question:" in answer:
        return None
    return Pair(question, answer)


def holds(text: str, answer: str) -> bool:
    """Whether the answer stands in the text, token by token; as ``eval`` counts recall."""
    return contains_answer(text, [answer]) or (is_unspaced(answer) and contains_unspaced(text, [answer]))


def fault_of(pair: Pair, passage: str) -> Reason | None:
    """Why a pair cannot stay, as far as its passage says; None: it may."""
    if not holds(passage, pair.answer):
        return "answer_not_in_passage"
    return "answer_in_question" if holds(pair.question, pair.answer) else None


def is_answered(pair: Pair, decoded: str) -> bool:
    """Whether what was decoded from the passage and the question is the answer, after normalisation."""
    return exact_match(decoded, [pair.answer])


class Kept:
    """The questions that stay. Args: near: as ``NEAR``."""

    def __init__(self, near: float = NEAR) -> None:
        self.near = near
        self._sizes = array("i")
        """How many trigrams each question has."""
        self._holding: defaultdict[str, array[int]] = defaultdict(lambda: array("i"))
        """Trigram → the questions that have it, by their places."""

    def __len__(self) -> int:
        return len(self._sizes)

    def is_near(self, question: str) -> bool:
        """Whether a kept question is nearly the same."""
        ours = trigrams(question)
        holding = [np.frombuffer(self._holding[each], np.int32) for each in ours if each in self._holding]
        if not holding:
            return False
        shared = np.bincount(np.concatenate(holding), minlength=len(self))
        in_either = len(ours) + np.frombuffer(self._sizes, np.int32) - shared
        return bool((shared >= self.near * in_either).any())

    def add(self, question: str) -> None:
        """Keep it."""
        ours = trigrams(question)
        for each in ours:
            self._holding[each].append(len(self))
        self._sizes.append(len(ours))


def trigrams(text: str) -> frozenset[str]:
    """Runs of three characters of the normalised text; a shorter text is one run."""
    text = " ".join(compared_words(text))
    return frozenset(text[i : i + 3] for i in range(max(1, len(text) - 2)))
