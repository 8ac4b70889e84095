"""Labels of a classification: what files call them, and the words that the model says for them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from latentrag.errors import InputError

_SEPARATORS = re.compile(r"[\s_-]+")
_EQUALS = re.compile(r"(?<![<>])=")
"""The sign between NAME and WORDING: not that of "<=" and ">=", which names may have."""


@dataclass(frozen=True, slots=True)
class Label:
    """A class.

    Attributes:
        name: in files; case does not matter, nor do spaces, "_" and "-" between letters or digits.
        wording: what the model says: a target.
        also: other names of it.
    """

    name: str
    wording: str
    also: tuple[str, ...] = ()


def label_of(name: str, labels: Sequence[Label]) -> Label | None:
    """The label with this name; None: there is none."""
    wanted = _key(name)
    return next((each for each in labels if wanted in {_key(known) for known in (each.name, *each.also)}), None)


def with_wordings(labels: Sequence[Label], given: Sequence[str], *, task: str) -> tuple[Label, ...]:
    """The labels with other wordings.

    Args:
        labels: of the task; none: those that are given are its labels.
        given: "NAME=WORDING" each, NAME one of the labels'.
        task: for messages.
    Raises: InputError for what is not of this form, an unknown name, one given twice, fewer than two labels, and
        labels whose names count as the same.
    """
    chosen: dict[str, str] = {}
    for each in given:
        name, wording = _parts(each)
        if not name or not wording:
            raise InputError(f"--label {each!r}; needed NAME=WORDING, as SUPPORTS=true")
        known = label_of(name, labels)
        if labels and known is None:
            raise InputError(f"--label {each!r} names no label of the task {task}; needed one of {_names(labels)}")
        if (known or Label(name, wording)).name in chosen:
            raise InputError(f"--label {name} is given twice; give each label once")
        chosen[(known or Label(name, wording)).name] = wording
    found = tuple(replace(label, wording=chosen.get(label.name, label.wording)) for label in labels)
    found = found or tuple(Label(name, wording) for name, wording in chosen.items())
    if len(found) < 2:
        raise InputError(f"the task {task} has no labels of its own; give two or more with --label NAME=WORDING")
    _check_names(found, task)
    if len({label.wording for label in found}) < len(found):
        raise InputError(f"two labels of the task {task} have the same wording; give each its own with --label")
    return found


def _parts(given: str) -> tuple[str, str]:
    """NAME and WORDING of "NAME=WORDING"; an empty WORDING where there is no "="."""
    sign = _EQUALS.search(given) or re.search("=", given)
    if sign is None:
        return given.strip(), ""
    return given[: sign.start()].strip(), given[sign.end() :].strip()


def _check_names(labels: Sequence[Label], task: str) -> None:
    """Raises: InputError for two labels of which a row's label might be either."""
    owners: dict[str, tuple[str, Label]] = {}
    for label in labels:
        for name in (label.name, *label.also):
            other, owner = owners.setdefault(_key(name), (name, label))
            if owner != label:
                raise InputError(
                    f"the task {task} has the labels {other!r} and {name!r}, which count as the same name; needed "
                    'names that differ in more than case and in spaces, "_" and "-" between letters or digits'
                )


def _key(name: str) -> str:
    """What is equal for names that count as the same."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())

    def joined(separators: re.Match[str]) -> str:
        start, end = separators.span()
        sides = text[start - 1 : start] + text[end : end + 1]
        is_sign = sides.isdigit() and "-" in separators[0]  # 1-5 is not 15
        return "" if len(sides) == 2 and all(map(_is_of_word, sides)) and not is_sign else separators[0]

    return _SEPARATORS.sub(joined, text)


def _is_of_word(character: str) -> bool:
    """Whether it is a letter, a digit, or a combining mark, such as a vowel sign of Devanagari."""
    return unicodedata.category(character)[0] in "LMN"


def _names(labels: Sequence[Label]) -> str:
    return ", ".join(label.name for label in labels)
