"""Open-domain question answering: was the answer found, was it given, and how sure is that?"""

from latentrag.evaluation.metrics import (
    contains_answer,
    exact_match,
    normalised,
    paired_difference,
    regex_match,
    share_interval,
)

__all__ = [
    "contains_answer",
    "exact_match",
    "normalised",
    "paired_difference",
    "regex_match",
    "share_interval",
]
