"""Examples (x, y): files of questions and answers, the target of an epoch, the order of an epoch.

Nothing here depends on the machine, the process or the batch: both choices are functions of the seed and the epoch.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast, get_args

import numpy as np

from latentrag.errors import DataError, InputError
from latentrag.registry import Table
from latentrag.training.options import Answers

_NAMED_IN_ERRORS = 3

JsonRow = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answers.

    Attributes:
        id: unique within its file.
        x: the input.
        answers: any of them is right; none where there is a ``pattern`` instead.
        titles: of the articles that hold the evidence; any of them is right. They measure retrieval and are never
            trained on (§2.4).
        pattern: a regular expression that right answers match, as CuratedTREC has it; good for evaluation only.
    """

    id: str
    x: str
    answers: tuple[str, ...]
    titles: tuple[str, ...] = ()
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


@dataclass(frozen=True, slots=True)
class Fields:
    """What a format has in a row, as it stands there; None: nothing.

    Attributes:
        question: text.
        answers: text or a list of texts.
        title: of the article that holds the evidence: text, or a list of texts, any of which is right.
        pattern: a regular expression that right answers match.
    """

    question: object = None
    answers: object = None
    title: object = None
    pattern: object = None


def _questions_with(answers: str) -> Callable[[JsonRow], Fields]:
    """The format whose answers are in the field of this name."""
    return lambda row: Fields(row.get("question"), row.get(answers), row.get("title"), row.get("answer_regex"))


def _kilt(row: JsonRow) -> Fields:
    listed = row.get("output")
    outputs = [output for output in listed if isinstance(output, dict)] if isinstance(listed, list) else []
    provenance = [output["provenance"] for output in outputs if isinstance(output.get("provenance"), list)]
    origins = [origin for of_output in provenance for origin in of_output if isinstance(origin, dict)]
    titles = [origin["title"] for origin in origins if isinstance(origin.get("title"), str)]
    answers = [output["answer"] for output in outputs if output.get("answer") is not None]
    return Fields(row.get("input"), answers or None, titles or None)


FORMATS: Table[Callable[[JsonRow], Fields]] = Table(
    "row format",
    {
        "plain": _questions_with("answer"),
        "dpr": _questions_with("answers"),
        "flashrag": _questions_with("golden_answers"),
        "score": lambda row: Fields(row.get("x"), row.get("y"), row.get("title")),
        "kilt": _kilt,
    },
    group="latentrag.formats",
)
"""Each takes its fields out of a row. The first format that has a question gives the question, and so on."""

QUESTIONS_AND_ANSWERS = ("plain", "dpr", "flashrag", "score", "kilt")


def read_examples(
    path: str | Path,
    *,
    skip_bad: bool = False,
    prefix_field: str | None = None,
    formats: Sequence[str] = QUESTIONS_AND_ANSWERS,
    say: Callable[[str], None] = lambda _: None,
) -> Examples:
    """The examples of a file of JSON lines, or of a JSON array of objects; also gzipped (``.gz``).

    Each row's fields say which format it has:

    | | x | answers |
    |---|---|---|
    | ours, NQ-open | question | answer: text or a list |
    | CuratedTREC | question | answer_regex |
    | DPR | question | answers |
    | FlashRAG | question | golden_answers |
    | `latentrag score` | x | y |
    | KILT | input | output: [{"answer": …, "provenance": [{"title": …}]}] |

    ``id`` or ``_id`` is the example's id; one that comes twice makes the second row a bad one. A row without gets its
    line number, as "line 7" where "7" is another row's id. ``title``, a text or a list of texts, and every title of
    KILT's provenance are the titles. Other fields are ignored.

    Args:
        skip_bad: leave rows that are no examples out, and list them in ``skipped``.
        prefix_field: a field whose text is put before the question: "category" makes "CATEGORY: clue" of Jeopardy's
            rows. A row without such a text is a bad one.
        formats: which a row may have, names in ``FORMATS``.
        say: gets a warning about rows that are left out, in one line.
    Raises: DataError if the file cannot be read or has no example, or for bad rows: how many, and where the first are.
    """
    readers = [FORMATS[name] for name in formats]
    path = Path(path).expanduser()
    rows: list[Example] = []
    bad: list[BadRow] = []
    seen: dict[str, int] = {}
    without_id: dict[int, int] = {}  # place among the rows → line
    for line, row in _rows(path):
        try:
            example = _example(row, readers, prefix_field)
        except _BadRowError as error:
            bad.append(BadRow(line, str(error)))
            continue
        if not example.id:
            without_id[len(rows)] = line
        elif seen.setdefault(example.id, line) != line:
            bad.append(BadRow(line, f"its id {example.id!r} is that of line {seen[example.id]}"))
            continue
        rows.append(example)
    for place, line in without_id.items():
        rows[place] = replace(rows[place], id=_free_id(line, seen))
    if bad and not skip_bad:
        raise DataError(f"{path}: {described(bad, of=len(rows) + len(bad))}; correct them or pass --skip-bad")
    if not rows:
        why = f"; {described(bad, of=len(bad))}" if bad else ""
        raise DataError(f"{path} holds no example; needed rows with a question and an answer{why}")
    if bad:
        say(f"warning: {path}: {described(bad, of=len(rows) + len(bad))}; they are left out")
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


def _rows(path: Path) -> Iterator[tuple[int, object]]:
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


def _array(raw: bytes, path: Path) -> list[object]:
    try:
        rows: list[object] = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no whole JSON array ({error}); fetch it again or write JSON lines") from error
    return rows


def _parsed(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return _BadRowError("not valid JSON in UTF-8")


def _example(row: object, readers: Sequence[Callable[[JsonRow], Fields]], prefix_field: str | None) -> Example:
    """The row's example; its id is empty where the row has none."""
    if isinstance(row, _BadRowError):
        raise row
    if not isinstance(row, dict):
        raise _BadRowError("not an object")
    fields = [read(row) for read in readers]
    answers = _answers(_first(of_format.answers for of_format in fields))
    pattern = _pattern(_first(of_format.pattern for of_format in fields))
    x = _question(_first(of_format.question for of_format in fields))
    if prefix_field is not None:
        x = f"{_prefix(row, prefix_field)}: {x}"
    if not answers and not pattern:
        raise _BadRowError("no answer")
    for text in (x, *answers):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _BadRowError("half a character (a lone surrogate)")
    return Example(_id(row), x, answers, _titles(_first(of_format.title for of_format in fields)), pattern)


def _first(values: Iterable[object]) -> object:
    return next((value for value in values if value is not None), None)


def _question(value: object) -> str:
    if value is None:
        raise _BadRowError("no question")
    if not isinstance(value, str):
        raise _BadRowError(f"its question is a {type(value).__name__}, not text")
    if not value.strip():
        raise _BadRowError("no question")
    return value


def _prefix(row: JsonRow, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise _BadRowError(f"no text in its field {field!r}")
    return value


def _titles(value: object) -> tuple[str, ...]:
    """Those that are texts, each once."""
    titles = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(title for title in titles if isinstance(title, str) and title))


def _answers(value: object) -> tuple[str, ...]:
    """Those that are not blank, in their order, each once."""
    if value is None:
        return ()
    answers: dict[str, None] = {}
    for answer in value if isinstance(value, list) else [value]:
        if not isinstance(answer, str):
            raise _BadRowError(f"an answer is a {type(answer).__name__}, not text")
        if answer.strip():
            answers[answer] = None
    return tuple(answers)


def _pattern(value: object) -> str:
    if not value:
        return ""
    try:
        if isinstance(value, str):
            re.compile(value)
            return value
    except (re.error, RecursionError, OverflowError):
        pass
    raise _BadRowError("its answer_regex is no regular expression")


def _id(row: JsonRow) -> str:
    value = _first((row.get("id"), row.get("_id"), ""))
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _BadRowError(f"its id is a {type(value).__name__}, needed text or a whole number")
    return str(value)


def _free_id(line: int, taken: Collection[str]) -> str:
    name = str(line)
    while name in taken:
        name = f"line {name}"
    return name
