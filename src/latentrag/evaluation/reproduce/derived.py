"""Files that rows need and that are derived from the data sets: a selection, or the same question in other words."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from latentrag import io
from latentrag.registry import Table

Line = dict[str, Any]
Derivation = Callable[[Path], Iterable[Line]]
"""From the folder of the data to the lines of the file."""

_OLD, _NEW = "2016-11-26", "2020-11-27"
_PHRASES = (
    "Name the {role} of {country}.",
    "{country}: who is its {role}?",
    "Which person holds the office of {role} in {country}?",
    "Who serves as {role} in {country}?",
)


def changed_leaders(data: Path) -> Iterator[Line]:
    """Questions of the Factbook with an answer on both dates that share no alias of it (lower case, stripped)."""
    for line in leaders(data):
        old, new = ({alias.strip().lower() for alias in line["answer"][date]} for date in (_OLD, _NEW))
        if not old & new:
            yield line


def leaders(data: Path) -> Iterator[Line]:
    """Questions of the Factbook with an answer in 2016 and in 2020."""
    for line in _lines(data / "factbook.leaders.jsonl.gz"):
        if line["answer"].get(_OLD) and line["answer"].get(_NEW):
            yield line


def leaders_in_other_words(data: Path) -> Iterator[Line]:
    """``changed_leaders`` in free words, four phrasings in turn, where the set has one template."""
    for number, line in enumerate(changed_leaders(data)):
        phrase = _PHRASES[number % len(_PHRASES)]
        yield {**line, "question": phrase.format(role=line["role"], country=line["country"])}


DERIVED: Table[Derivation] = Table(
    "derived file",
    {
        "leaders": leaders,
        "changed-leaders": changed_leaders,
        "leaders-in-other-words": leaders_in_other_words,
    },
)


def derive(name: str, data: Path, out: Path) -> None:
    """Write a derived file. Raises: InputError for an unknown name."""
    lines = DERIVED[name](data)
    out.parent.mkdir(parents=True, exist_ok=True)
    io.write_file(out, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode())


def _lines(path: Path) -> Iterator[Line]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)
