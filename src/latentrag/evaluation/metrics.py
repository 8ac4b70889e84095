"""Pure functions of strings; the conventions of open-domain question answering."""

import re
import string
from collections import Counter
from collections.abc import Sequence

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
