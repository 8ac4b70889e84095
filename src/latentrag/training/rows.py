"""Rows that a model cannot use, found before the first step or answer: they are named, cut or left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from latentrag.errors import DataError, InputError
from latentrag.protocols import ChecksQuestions, ReadsTurns
from latentrag.training.data import Example
from latentrag.training.options import Answers
from latentrag.types import Question, Turn, question_texts

Check = Callable[[Sequence[Any]], object]
"""Raises InputError for texts among which one cannot be used: as question, or as y. The question of a row
with messages of the system is a ``Question`` that has these, too."""

_T = TypeVar("_T", str, str | Question)

_AT_ONCE = 256
_NAMED = 3


def reads(*parts: object) -> Check:
    """A check of questions by those parts of a model that say what they can read."""

    def check(x: Sequence[str | Question]) -> None:
        for part in parts:
            if isinstance(part, ChecksQuestions):
                asked: Any = x if isinstance(part, ReadsTurns) else question_texts(x)
                part.check_questions(asked)

    return check


def usable(
    examples: Sequence[Example],
    *,
    name: object,
    question: Check,
    y: Check,
    answers: Answers,
    truncate: bool | None = None,
    skip_bad: bool,
    say: Callable[[str], None],
) -> tuple[Example, ...]:
    """The examples whose question and targets can be used.

    Args:
        name: of their file, for messages.
        question, y: what raises InputError for a text.
        answers: which answers of an example become y.
        truncate: cut texts that cannot be used where they can, at the end of a word if there is one. None: that is not
            to be had.
        skip_bad: leave out examples that still cannot be used.
        say: gets a line about those that are cut or left out.
    Raises: DataError that names the first of them; also if none is left.
    """
    num_trained = None if answers == "sample" else 1
    questions = _refused([_asked(example, example.x) for example in examples], question)
    targets = _refused([text for example in examples for text in example.answers[:num_trained]], y)

    def fitting(text: str, made: Callable[[str], Any], refused: Mapping[Any, str], check: Check) -> str:
        if made(text) not in refused:
            return text
        return shortened(text, lambda texts: check(list(map(made, texts)))) if truncate else ""

    kept: list[Example] = []
    cut: list[str] = []
    bad: list[str] = []
    for example in examples:
        chosen = example.answers[:num_trained]
        asked = partial(_asked, example)
        x = fitting(example.x, asked, questions, question)
        texts = [fitting(text, str, targets, y) for text in chosen]
        fits = bool(x) and all(texts)
        problem = questions.get(asked(example.x)) or next((targets[text] for text in chosen if text in targets), None)
        if problem:
            (cut if fits else bad).append(f"{example.id}: {problem}")
        if fits:
            kept.append(replace(example, x=x, answers=(*texts, *example.answers[len(texts) :])))
    if bad and not (skip_bad and kept):
        remedy = "--truncate or --skip-bad" if truncate is False else "--skip-bad"
        raise DataError(f"{name}: {described(bad, examples)} cannot be used; correct them or pass {remedy}")
    for names, what in ((cut, "cut"), (bad, "left out")):
        if names:
            say(f"warning: {name}: {described(names, examples)} cannot be used as they are; they are {what}")
    return tuple(kept)


def _asked(example: Example, x: str) -> str | Question:
    """What of the example's question must fit whatever else is read: x, after what the system says. Other turns before
    it are dropped where they are too long."""
    system = [turn for turn in example.history if turn.role == "system"]
    return Question((*system, Turn("user", x))) if system else x


def described(bad: Sequence[str], examples: Sequence[Example]) -> str:
    """How many of all, and the first of them."""
    more = "; …" if len(bad) > _NAMED else ""
    return f"{len(bad)} of {len(examples)} examples ({'; '.join(bad[:_NAMED])}{more})"


def shortened(text: str, check: Check) -> str:
    """The longest beginning of a text that can be used; empty if there is none."""
    text = text.strip()
    fits, too_long = 0, len(text) + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (fits, middle) if _refused([text[:middle]], check) else (middle, too_long)
    beginning = text[:fits]
    words, space, _ = beginning.rpartition(" ")
    whole = not space or fits == len(text) or text[fits].isspace()
    chosen = (beginning if whole else words).strip()
    return chosen if chosen and not _refused([chosen], check) else ""


def _refused(texts: Sequence[_T], check: Check) -> dict[_T, str]:
    """Those of the texts that cannot be used, with what is said of them."""
    found: dict[_T, str] = {}
    texts = sorted(set(texts), key=_length)  # those of like length together: little is padded
    waiting = [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]
    while waiting:
        part = waiting.pop()
        try:
            check(part)
        except InputError as error:
            if len(part) == 1:
                found[part[0]] = str(error)
            else:
                half = len(part) // 2
                waiting += [part[:half], part[half:]]
    return found


def _length(text: str | Question) -> int:
    return len(text) if isinstance(text, str) else sum(len(turn.text) for turn in text.turns)
