"""Pure functions of strings and numbers; the conventions of open-domain question answering."""

import math
import re
import string
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
Z_95 = 1.959964


def normalised(text: str) -> str:
    """Lower case, without punctuation, English articles and surplus white space (SQuAD; Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction is one of the answers, both normalised."""
    return normalised(prediction) in {normalised(answer) for answer in answers}


def regex_match(prediction: str, pattern: str) -> bool:
    """Whether the pattern matches from the prediction's beginning, case aside (CuratedTREC's convention, as in
    Chen et al. 2017)."""
    return re.match(pattern, prediction.strip(), re.IGNORECASE) is not None


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether the normalised text holds a normalised answer, as whole words. Empty answers are never found."""
    padded = f" {normalised(text)} "
    return any(f" {wanted} " in padded for wanted in map(normalised, answers) if wanted)


def share_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if not trials:
        return 0.0, 1.0
    share, weight = successes / trials, Z_95**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of ours − theirs over the same questions, and its 95 % interval by paired bootstrap.

    Args:
        ours, theirs: one value for each question, in the same order.
    Returns: mean, lower and upper end.
    """
    difference = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    random = np.random.default_rng(seed)
    means = [random.choice(difference, size=len(difference)).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)
