"""Several texts of each question, searched at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise


def flat(texts: Sequence[Sequence[str]]) -> list[str]:
    """Those of all questions, one after the other."""
    return [text for of_question in texts for text in of_question]


def places_of(texts: Sequence[Sequence[str]]) -> list[range]:
    """Where each question's texts are in ``flat``."""
    return [range(*pair) for pair in pairwise(accumulate(map(len, texts), initial=0))]
