"""Labels of a classification: what files call them, and the words that the model says for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from latentrag.errors import InputError

_OTHER_THAN_LETTERS = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Label:
    """A class.

    Attributes:
        name: in files; case, spaces and underscores aside.
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
    Raises: InputError for what is not of this form, an unknown name, one given twice, and fewer than two labels.
    """
    chosen: dict[str, str] = {}
    for each in given:
        name, _, wording = (part.strip() for part in each.partition("="))
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
    if len({label.wording for label in found}) < len(found):
        raise InputError(f"two labels of the task {task} have the same wording; give each its own with --label")
    return found


def _key(name: str) -> str:
    return _OTHER_THAN_LETTERS.sub("", name).casefold()


def _names(labels: Sequence[Label]) -> str:
    return ", ".join(label.name for label in labels)
