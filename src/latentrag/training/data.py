"""Examples (x, y): files of questions and answers, the target of an epoch, the order of an epoch.

Nothing here depends on the machine, the process or the batch: both choices are functions of the seed and the epoch.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast, get_args

import numpy as np

from latentrag.errors import DataError, InputError
from latentrag.training.options import Answers

_QUESTIONS = ("question", "input", "x")
_ANSWERS = ("answer", "answers", "golden_answers", "y")
_NAMED_IN_ERRORS = 3


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answers.

    Attributes:
        id: unique within its file.
        x: the input.
        answers: any of them is right; none where there is a ``pattern`` instead.
        title: of the article that holds the evidence. It measures retrieval and is never trained on (§2.4).
        pattern: a regular expression that right answers match, as CuratedTREC has it; good for evaluation only.
    """

    id: str
    x: str
    answers: tuple[str, ...]
    title: str = ""
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no example: its line (in a JSON array: its place, from 1), and why."""

    line: int
    problem: str


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of a file, in its order, and the rows that were left out."""

    rows: tuple[Example, ...]
    skipped: tuple[BadRow, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.rows[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.rows)


def read_examples(path: str | Path, *, skip_bad: bool = False) -> Examples:
    """The examples of a file of JSON lines, or of a JSON array of objects; also gzipped (``.gz``).

    Each row's fields say which format it has:

    | | x | answers |
    |---|---|---|
    | ours, NQ-open | question | answer: text or a list |
    | Jeopardy | category and question: "CATEGORY: clue" | answer |
    | DPR | question | answers |
    | KILT | input | output: [{"answer": …, "provenance": [{"title": …}]}] |
    | FlashRAG | question | golden_answers |
    | `latentrag score` | x | y |
    | CuratedTREC | question | answer_regex |

    ``id`` or ``_id`` is the example's id, else its line number; an id that comes twice makes the second row a bad
    one. ``title``, or the first title of KILT's provenance, is the title. Other fields are ignored.

    Args:
        skip_bad: leave rows that are no examples out, and list them in ``skipped``.
    Raises: DataError if the file cannot be read or has no example, or for bad rows: how many, and where the first are.
    """
    path = Path(path).expanduser()
    rows: list[Example] = []
    bad: list[BadRow] = []
    seen: dict[str, int] = {}
    for line, row in _rows(path):
        try:
            example = _example(row, line)
        except _BadRowError as error:
            bad.append(BadRow(line, str(error)))
            continue
        if seen.setdefault(example.id, line) != line:
            bad.append(BadRow(line, f"its id {example.id!r} is that of line {seen[example.id]}"))
            continue
        rows.append(example)
    if bad and not skip_bad:
        raise DataError(f"{path}: {described(bad, of=len(rows) + len(bad))}; correct them or pass --skip-bad")
    if not rows:
        why = f"; {described(bad, of=len(bad))}" if bad else ""
        raise DataError(f"{path} holds no example; needed rows with a question and an answer{why}")
    return Examples(tuple(rows), tuple(bad))


def described(bad: Sequence[BadRow], *, of: int) -> str:
    """The bad rows in words: how many of all, and the first of them with their lines."""
    first = ", ".join(f"line {row.line}: {row.problem}" for row in bad[:_NAMED_IN_ERRORS])
    more = ", …" if len(bad) > _NAMED_IN_ERRORS else ""
    return f"{len(bad)} of {of} rows cannot be used ({first}{more})"


def target(example: Example, *, epoch: int, seed: int, choice: Answers) -> str:
    """y of an example in an epoch.

    ``sample`` draws one of the answers, with equal chances, from (seed, epoch, id) alone.

    Raises: DataError for an example that has a pattern and no answer.
    """
    if choice not in get_args(Answers):
        raise InputError(f"choice={choice!r} is unknown; needed {' or '.join(map(repr, get_args(Answers)))}")
    if not example.answers:
        raise DataError(f"example {example.id} has a pattern and no answer; it can be evaluated, not trained on")
    if choice == "first":
        return example.answers[0]
    drawn = hashlib.sha256(f"{seed}\0{epoch}\0{example.id}".encode()).digest()
    return example.answers[int.from_bytes(drawn, "big") % len(example.answers)]


def order(n: int, *, epoch: int, seed: int) -> list[int]:
    """The order of n examples in an epoch: a permutation of 0 … n−1, uniform over (seed, epoch).

    Raises: InputError if one of the numbers is negative.
    """
    if min(n, epoch, seed) < 0:
        raise InputError(f"n={n}, epoch={epoch}, seed={seed}; needed 0 or more of each")
    # numpy promises the raw stream of a bit generator for good, but not that of its shuffles.
    random = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    return [int(place) for place in np.argsort(random.random_raw(n), kind="stable")]


class _BadRowError(Exception):
    """Why a row is no example."""


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of every row that is not blank; what is not JSON comes as a _BadRowError in its place."""
    try:
        with _opened(path) as stream:
            first = next((line for line in enumerate(stream, start=1) if line[1].strip()), None)
            if first is None:
                raise DataError(f"{path} is empty; needed JSON lines with a question and an answer each")
            # Only blank lines precede it, so what follows is the rest of the file.
            if first[1].lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                yield from enumerate(_array(first[1] + stream.read(), path), start=1)
            else:
                numbered: Iterable[tuple[int, bytes]] = chain([first], enumerate(stream, start=first[0] + 1))
                yield from ((number, _parsed(raw)) for number, raw in numbered if raw.strip())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); fetch it again") from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error


def _opened(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _array(raw: bytes, path: Path) -> list[Any]:
    try:
        rows = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no whole JSON array ({error}); fetch it again or write JSON lines") from error
    return cast("list[Any]", rows)


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return _BadRowError("not valid JSON in UTF-8")


def _example(row: Any, line: int) -> Example:
    if isinstance(row, _BadRowError):
        raise row
    if not isinstance(row, dict):
        raise _BadRowError("not an object")
    answers = _answers(row)
    pattern = _pattern(row)
    x = _question(row)
    if not answers and not pattern:
        raise _BadRowError("no answer")
    for text in (x, *answers):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _BadRowError("half a character (a lone surrogate)")
    return Example(_id(row, line), x, answers, _title(row), pattern)


def _question(row: Mapping[str, Any]) -> str:
    found = next((row[name] for name in _QUESTIONS if row.get(name) is not None), None)
    if not isinstance(found, str | None):
        raise _BadRowError(f"its question is a {type(found).__name__}, not text")
    if not found or not found.strip():
        raise _BadRowError("no question")
    category = row.get("category")
    return f"{category}: {found}" if isinstance(category, str) and category and "question" in row else found


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that are not blank, in their order, each once."""
    found = next((row[name] for name in _ANSWERS if row.get(name) is not None), None)
    if found is None:
        found = [output["answer"] for output in _outputs(row) if output.get("answer") is not None]
    listed = found if isinstance(found, list) else [found]
    wrong = next((each for each in listed if not isinstance(each, str)), None)
    if wrong is not None:
        raise _BadRowError(f"an answer is a {type(wrong).__name__}, not text")
    return tuple(dict.fromkeys(each for each in listed if each.strip()))


def _outputs(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """KILT's: answers, and where they were found."""
    found = row.get("output")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _pattern(row: Mapping[str, Any]) -> str:
    pattern = row.get("answer_regex") or ""
    try:
        re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError):
        raise _BadRowError("its answer_regex is no regular expression") from None
    return cast("str", pattern)


def _title(row: Mapping[str, Any]) -> str:
    title = row.get("title")
    if isinstance(title, str):
        return title
    origins = [each for output in _outputs(row) for each in output.get("provenance") or [] if isinstance(each, dict)]
    return next((each["title"] for each in origins if isinstance(each.get("title"), str)), "")


def _id(row: Mapping[str, Any], line: int) -> str:
    found = next((row[name] for name in ("id", "_id") if row.get(name) is not None), line)
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise _BadRowError(f"its id is a {type(found).__name__}, needed text or a whole number")
    return str(found)
