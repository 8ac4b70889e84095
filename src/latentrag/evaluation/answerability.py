"""Q-BLEU-1: whether a generated question asks for what the right one asks for (Nema & Khapra 2018)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from latentrag.evaluation.intervals import UNIT
from latentrag.evaluation.metrics import mean_of
from latentrag.evaluation.texts import words

if TYPE_CHECKING:
    from latentrag.training.data import Example
    from latentrag.types import Passage

ENTITIES, CONTENT, FUNCTION, TYPE = 0.41, 0.36, 0.03, 0.20
"""Weights of the four kinds of words, as tuned on SQuAD by its authors."""
DELTA = 0.66
"""Weight of the answerability against BLEU-1, tuned there too."""
_QUESTION_WORDS = frozenset("what which why who whom whose where when how".split())
_NAMES_A_TYPE = frozenset(("what", "which"))
"""The word after these says what is asked for: "which river"."""
_FUNCTION_WORDS = frozenset(
    """a about above after again against all am an and any are as at be because been before being below between both
    but by can did do does doing don down during each few for from further had has have having he her here hers herself
    him himself his i if in into is it its itself just me more most my myself no nor not now of off on once only or
    other our ours ourselves out over own s same she should so some such t than that the their theirs them themselves
    then there these they this those through to too under until up very was we were while will with you your yours
    yourself yourselves""".split()
)


def q_bleu_1(text: str, answers: Sequence[str]) -> float:
    """δ·answerability + (1 − δ)·BLEU-1, against the reference where it is highest.

        answerability = Σ_kinds w · 2PR / (P + R)

    over entities (words with a capital), content words, function words and the question's type; P is BLEU-1 of the
    question's words of a kind against the reference's, R the other way round. As the authors' script has it: a kind
    that the reference lacks counts as 0, so that a question equal to the reference need not reach 1.

    Differs: words are ``texts.words`` where the script calls Stanford's tokenizer.
    """
    return max((_against(text, answer) for answer in answers), default=0.0)


def _against(text: str, answer: str) -> float:
    said, gold = kinds(text), kinds(answer)
    shares = [_f1(ours, theirs) for ours, theirs in zip(said, gold, strict=True)]
    weights = (ENTITIES, CONTENT, FUNCTION, TYPE)
    answerability = math.fsum(weight * share for weight, share in zip(weights, shares, strict=True))
    return DELTA * answerability + (1 - DELTA) * bleu_1(words(text), words(answer))


def kinds(question: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """Its words that are entities, content words, function words and the question's type, as the script sorts them."""
    parts = question.split()
    of_type: list[str] = []
    for i, part in enumerate(parts):
        if part.lower() in _QUESTION_WORDS:
            of_type += parts[i : i + 2] if part.lower() in _NAMES_A_TYPE else [part]
    begins = 1 if parts and parts[0].lower() in _QUESTION_WORDS else 0
    entities = [part for part in parts[begins:] if part[0].isupper()]
    others = [part for part in parts if part not in of_type and not part[0].isupper()]
    content = [part for part in others if part not in _FUNCTION_WORDS]
    function = [part for part in parts if part.lower() in _FUNCTION_WORDS]
    entities_, content_, function_, type_ = (words(" ".join(each)) for each in (entities, content, function, of_type))
    return entities_, content_, function_, type_


def bleu_1(said: Sequence[str], gold: Sequence[str]) -> float:
    """Share of the words that the reference has, each as often as there, times the penalty for brevity; 0 for none."""
    if not said or not gold:
        return 0.0
    shared = (Counter(said) & Counter(gold)).total()
    return shared / len(said) * math.exp(min(0.0, 1 - len(gold) / len(said)))


def _f1(said: Sequence[str], gold: Sequence[str]) -> float:
    precision, recall = bleu_1(said, gold), bleu_1(gold, said)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _of_example(example: Example, text: str, _passages: Sequence[Passage]) -> float | None:
    return q_bleu_1(text, example.answers) if example.answers else None


Q_BLEU_1 = mean_of("q_bleu_1", _of_example, bounds=UNIT)
