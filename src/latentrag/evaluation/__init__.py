"""Open-domain question answering: was the answer found, was it given, and how sure is that?

``latentrag.evaluation.run.evaluate`` measures a model; what is here needs no model.
"""

from latentrag.evaluation.compare import Comparison, Difference, compare
from latentrag.evaluation.intervals import Estimate, estimates, paired_difference, share_interval
from latentrag.evaluation.metrics import (
    contains_answer,
    contains_match,
    exact_match,
    normalised,
    regex_match,
    token_f1,
)
from latentrag.evaluation.report import RECALL_AT, Report

__all__ = [
    "RECALL_AT",
    "Comparison",
    "Difference",
    "Estimate",
    "Report",
    "compare",
    "contains_answer",
    "contains_match",
    "estimates",
    "exact_match",
    "normalised",
    "paired_difference",
    "regex_match",
    "share_interval",
    "token_f1",
]
