"""Examples (x, y): files of questions and answers, the target of an epoch, the order of an epoch.

Nothing here depends on the machine, the process or the batch: both choices are functions of the seed and the epoch.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from latentrag.errors import DataError, InputError
from latentrag.training.formats import (
    FORMATS,
    QUESTIONS_AND_ANSWERS,
    Fields,
    Format,
    JsonRow,
    first_of,
    value_at,
    with_answers_from,
)
from latentrag.training.given import IDS, NoPassagesError, given_ids, given_passages
from latentrag.training.json_rows import NOT_JSON, json_rows
from latentrag.training.labels import Label, label_of
from latentrag.training.options import Answers
from latentrag.types import Asked, Passage, Question, Turn, turns_of

_NAMED_IN_ERRORS = 3


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
        choices: texts of which one is to be chosen, the answers among them; none where the answer is free.
        passages: ids of the passages or documents that hold the evidence; they measure retrieval.
        title_sets, passage_sets: the same as sets each of which is enough by itself (KILT's evidence sets); empty where
            the row has none.
        history: the turns before x, where it is the last question of a conversation.
        given: passages that come with the question, in place of a memory.
        given_ids: the same by their ids in a memory, before they are read there.
    """

    id: str
    x: str
    answers: tuple[str, ...]
    titles: tuple[str, ...] = ()
    pattern: str = ""
    choices: tuple[str, ...] = ()
    passages: tuple[str, ...] = ()
    title_sets: tuple[tuple[str, ...], ...] = ()
    passage_sets: tuple[tuple[str, ...], ...] = ()
    given: tuple[Passage, ...] = ()
    given_ids: tuple[str, ...] = ()
    history: tuple[Turn, ...] = ()

    @property
    def question(self) -> Asked:
        """x, with the turns before it and the passages that come with it."""
        if not self.given and not self.history:
            return self.x
        return Question((*self.history, Turn("user", self.x)), self.given)


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


def read_examples(
    path: str | Path,
    *,
    skip_bad: bool = False,
    prefix_field: str | None = None,
    formats: Sequence[str] = QUESTIONS_AND_ANSWERS,
    labels: Sequence[Label] = (),
    left_out: Sequence[str] = (),
    answers_from: str | None = None,
    passages_from: str | None = None,
    answered: bool = True,
    task: str | None = None,
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
    | conversations | messages or turns: [{"role": …, "content": …}] | answer, or the last message, if an assistant's |
    | `latentrag score` | x | y |
    | KILT | input | output: [{"answer": …, "provenance": [{"title": …}]}] |

    ``id`` or ``_id`` is the example's id; one that comes twice makes the second row a bad one. A row without gets its
    line number, as "line 7" where "7" is another row's id. ``title``, a text or a list of texts, and every title of
    KILT's provenance are the titles; ``titles`` of hotpotqa's rows are, too, and before them the pages in ``evidence``
    of FEVER's rows, or sets of titles there.
    ``passage_ids``, ``relevant``, ``evidence_docs`` and KILT's ``wikipedia_id`` are ids of passages. Other fields are
    ignored. ``training.formats`` has the formats of other tasks, which ``training.tasks`` names.

    Args:
        skip_bad: leave rows that are no examples out, and list them in ``skipped``.
        prefix_field: a field whose text is put before the question: "category" makes "CATEGORY: clue" of Jeopardy's
            rows. A row without such a text is a bad one.
        formats: which a row may have, names in ``FORMATS``.
        labels: of a classification: answers are names of these; the example gets the wording, and all as choices.
        left_out: names of labels whose rows are passed over.
        answers_from: the field with the answers, in place of the format's; "answer.2020" is within an object.
        passages_from: the field with the passages that come with a question, or after "id:" with their ids in a
            memory; those that are marked as holding the answer are relevant.
        answered: whether a row needs an answer.
        task: for messages.
        say: gets a warning about rows that are left out, in one line.
    Raises: DataError if the file cannot be read or has no example, or for bad rows: how many, and where the first are.
    """
    readers = [FORMATS[name] for name in formats]
    taking = _Taking(readers, prefix_field, labels, left_out, answers_from, passages_from, answered)
    path = Path(path).expanduser()
    found = _collected(path, taking)
    rows, bad = found.rows, found.bad
    problem = described(bad, of=len(rows) + len(bad))
    if len(bad) > 1 and not rows and task is not None:
        raise DataError(f"{path} does not fit the task {task}: {problem}; name with --task what its rows are for")
    if bad and not skip_bad:
        raise DataError(f"{path}: {problem}; correct them or pass --skip-bad")
    if not rows:
        why = f"; {problem}" if bad else ""
        raise DataError(f"{path} holds no example; needed rows with a question and an answer{why}")
    if bad:
        say(f"warning: {path}: {problem}; they are left out")
    if found.num_rejected:
        say(f"{path}: {found.num_rejected} rows say that an answer is wrong, and none that is right; they are left out")
    for name, number in found.passed_over.items():
        say(f"{path}: {number} rows with the label {name} are no part of the task {task}; they are left out")
    _check_labels(path, rows, labels, task)
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


class _PassedOverError(Exception):
    """The label of a row that is no part of the task."""


@dataclass(frozen=True, slots=True)
class _Taking:
    """How an example is taken out of a row, as ``read_examples`` says."""

    readers: Sequence[Format]
    prefix_field: str | None
    labels: Sequence[Label]
    left_out: Sequence[str]
    answers_from: str | None
    passages_from: str | None
    answered: bool

    def example(self, row: object) -> Example:
        """The row's example; its id is empty where the row has none. Raises: _BadRowError, _PassedOverError."""
        if row is NOT_JSON:
            raise _BadRowError("not valid JSON in UTF-8")
        if not isinstance(row, dict):
            raise _BadRowError("not an object")
        fields = first_of(read(row) for read in self.readers)
        if self.answers_from is not None:
            fields = with_answers_from(fields, row, self.answers_from)
        fields, history = _conversation(fields)
        x = _question(fields.question)
        if self.prefix_field is not None:
            x = f"{_prefix(row, self.prefix_field)}: {x}"
        answers, choices = self._labelled(fields) if self.labels else (_answers(fields.answers), ())
        pattern = _pattern(fields.pattern)
        if fields.choices is not None:
            choices = _choices(fields.choices)
        if self.answered and not answers and not pattern:
            raise _BadRowError("no answer")
        if choices and (others := set(answers).difference(choices)):
            raise _BadRowError(f"its answer {min(others)!r} is not among its choices")
        for text in (x, *answers, *choices, *(turn.text for turn in history)):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise _BadRowError("half a character (a lone surrogate)")
        titles, title_sets = _evidence(fields.title)
        passages, passage_sets = _evidence(fields.passages)
        example = Example(
            _id(row),
            x,
            answers,
            titles,
            pattern,
            choices,
            passages,
            title_sets=title_sets,
            passage_sets=passage_sets,
            history=history,
        )
        return example if self.passages_from is None else self._with_passages(example, row, self.passages_from)

    def _with_passages(self, example: Example, row: JsonRow, field: str) -> Example:
        """The example with the passages that come with it."""
        try:
            if field.startswith(IDS):
                return replace(example, given_ids=given_ids(value_at(row, field.removeprefix(IDS))))
            given, marked = given_passages(value_at(row, field), name=example.id or "passage")
        except NoPassagesError as error:
            raise _BadRowError(f"no passages in its field {field.removeprefix(IDS)!r}: {error}") from error
        return replace(example, given=given, passages=marked or example.passages)

    def _labelled(self, fields: Fields) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The wordings of the row's labels, and of all."""
        listed = fields.answers if isinstance(fields.answers, list) else [fields.answers]
        names = [str(name) for name in listed if isinstance(name, str | int) and name != ""]
        if not names:
            raise _BadRowError("no label")
        for name in names:
            if label_of(name, [Label(other, other) for other in self.left_out]):
                raise _PassedOverError(name)
            if label_of(name, self.labels) is None:
                known = ", ".join(label.name for label in self.labels)
                raise _BadRowError(f"its label {name!r} is not among {known}")
        found = [label for name in names if (label := label_of(name, self.labels))]
        return tuple(dict.fromkeys(label.wording for label in found)), tuple(label.wording for label in self.labels)


def is_rejection(row: object) -> bool:
    """Whether a row is a server's feedback that says of an answer that it is wrong, and of none that it is right."""
    return isinstance(row, dict) and "rejected" in row and "answer" not in row


@dataclass(slots=True)
class _Collected:
    """What became of the rows of a file; those that are passed over by label; answers that a user rejected."""

    rows: list[Example]
    bad: list[BadRow]
    passed_over: Counter[str]
    num_rejected: int = 0


def _collected(path: Path, taking: _Taking) -> _Collected:
    found = _Collected([], [], Counter())
    seen: dict[str, int] = {}
    without_id: dict[int, int] = {}  # place among the rows → line
    for line, row in json_rows(path):
        if is_rejection(row):
            found.num_rejected += 1
            continue
        try:
            example = taking.example(row)
        except _PassedOverError as error:
            found.passed_over[str(error)] += 1
            continue
        except _BadRowError as error:
            found.bad.append(BadRow(line, str(error)))
            continue
        if not example.id:
            without_id[len(found.rows)] = line
        elif seen.setdefault(example.id, line) != line:
            found.bad.append(BadRow(line, f"its id {example.id!r} is that of line {seen[example.id]}"))
            continue
        found.rows.append(example)
    for place, line in without_id.items():
        found.rows[place] = replace(found.rows[place], id=_free_id(line, seen))
    return found


def _check_labels(path: Path, rows: Sequence[Example], labels: Sequence[Label], task: str | None) -> None:
    """Raises: DataError for a label that no row has."""
    found = Counter(answer for row in rows for answer in row.answers)
    missing = next((label for label in labels if not found[label.wording]), None)
    if missing is not None:
        seen = ", ".join(f"{label.name} {found[label.wording]}" for label in labels if found[label.wording])
        raise DataError(
            f"{path} has no row with the label {missing.name} (found {seen}); name another --task than {task}, or "
            "other labels with --label"
        )


def _conversation(fields: Fields) -> tuple[Fields, tuple[Turn, ...]]:
    """The fields with the last question of a conversation, and with its answer if that is the last message; the turns
    before it."""
    if fields.messages is None:
        return fields, ()
    listed: Any = fields.messages
    if not isinstance(listed, list) or not listed:
        raise _BadRowError("its messages are no list of messages")
    if fields.question is not None:
        listed = [*listed, {"role": "user", "content": fields.question}]
    elif fields.answers is None and isinstance(listed[-1], dict) and listed[-1].get("role") == "assistant":
        fields = replace(fields, answers=listed[-1].get("content"))
        listed = listed[:-1]
    try:
        turns = turns_of(listed)
    except InputError as error:
        raise _BadRowError(str(error)) from error
    return replace(fields, question=turns[-1].text), turns[:-1]


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


def _evidence(value: object) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Titles or ids, each once, and sets of them where the row has sets."""
    listed = value if isinstance(value, list) else [value]
    if not any(isinstance(each, list) for each in listed):
        return _texts(listed), ()
    sets = [_texts(each) for each in listed if isinstance(each, list)]
    sets = list(dict.fromkeys(each for each in sets if each))
    return tuple(dict.fromkeys(each for of_set in sets for each in of_set)), tuple(sets)


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    """Those that are texts, each once."""
    return tuple(dict.fromkeys(value for value in values if isinstance(value, str) and value))


def _choices(value: object) -> tuple[str, ...]:
    choices = _answers(value)
    if len(choices) < 2:
        raise _BadRowError(f"{len(choices)} choices, needed two or more that differ")
    return choices


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
    value = next(value for value in (row.get("id"), row.get("_id"), "") if value is not None)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _BadRowError(f"its id is a {type(value).__name__}, needed text or a whole number")
    return str(value)


def _free_id(line: int, taken: Collection[str]) -> str:
    name = str(line)
    while name in taken:
        name = f"line {name}"
    return name
