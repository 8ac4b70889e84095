"""Conditions on the fields of passages: from text to a tree, and back. Nothing is evaluated here.

    date >= '2024-01-01' and source like 'manual/%' and not (language in ('de', 'fr') or author is null)

A test names a field, then what holds of it: ``= != < <= > >=`` and a value; ``[not] between`` two values;
``[not] like`` a pattern, in which ``%`` stands for any text, ``_`` for one character and ``\\`` makes the next one
literal; ``[not] in (…)``; ``is [not] null``. Tests are joined by ``and``, ``or``, ``not`` and parentheses. A value is a
'text' (a quote within it is doubled), a number, ``true`` or ``false``; a field's name that is no word is in double
quotes. Key words may be in any case.

As in SQL a test of a field that a passage does not have, or has with another kind of value, is neither true nor false,
and its negation is neither; a passage satisfies a condition that is true. Differs from SQL: where a date in ISO 8601 is
compared with ``< <= > >=`` or ``between``, texts are compared as moments; a text that is no date is unknown then.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from latentrag.errors import ConditionError

MAX_CHARS = 4_000
MAX_DEPTH = 50
"""Of parentheses and negations within each other."""
MAX_TESTS = 100
Kind = Literal["text", "number", "boolean"]
Operator = Literal["=", "!=", "<", "<=", ">", ">="]

_TOKEN = re.compile(
    r"(?P<text>'(?:[^']|'')*')|(?P<name>\"(?:[^\"]|\"\")+\")|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?(?!\w))"
    r"|(?P<operator><=|>=|<>|!=|==|=|<|>)|(?P<mark>[(),])|(?P<word>[^\W\d][\w.]*)",
    re.IGNORECASE,
)
_SPACE = re.compile(r"\s*")
_OPERATORS: dict[str, Operator] = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">"}
_OPERATORS[">="] = ">="
_KEY_WORDS = frozenset({"and", "or", "not", "like", "in", "is", "null", "between", "true", "false"})
_PART_OF_DATE = re.compile(r"\d{4}(?:-\d\d)?")
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ][\d:.,]+(?:Z|[-+]\d\d:?\d\d)?)?")


@dataclass(frozen=True, slots=True)
class Value:
    """A constant. ``kind`` keeps ``true`` and ``1`` apart, which Python holds to be equal."""

    kind: Kind
    value: str | int | float

    @classmethod
    def of(cls, value: str | float) -> Value:
        """Of a text, a number or a bool."""
        kind: Kind = "text" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "number"
        return cls(kind, value)

    @property
    def moment(self) -> datetime | None:
        """What a text in ISO 8601 with a whole date stands for; None for all else."""
        return moment_of(self.value) if isinstance(self.value, str) and _DATE.fullmatch(self.value) else None

    def __str__(self) -> str:
        if isinstance(self.value, str):
            return "'" + self.value.replace("'", "''") + "'"
        return str(self.value).lower()


@dataclass(frozen=True, slots=True)
class Compare:
    """``field operator value``."""

    field: str
    operator: Operator
    value: Value

    def __str__(self) -> str:
        return f"{_spelt(self.field)} {self.operator} {self.value}"


@dataclass(frozen=True, slots=True)
class Like:
    """``field like pattern``."""

    field: str
    pattern: str

    def __str__(self) -> str:
        return f"{_spelt(self.field)} like {Value.of(self.pattern)}"

    @property
    def regex(self) -> str:
        """The same as a regular expression, in what RE2 and Python have in common."""
        parts = re.findall(r"\\.|[^\\]|\\", self.pattern, re.DOTALL)
        meant = {"%": ".*", "_": "."}
        return r"(?s)\A" + "".join(meant.get(part) or re.escape(part[-1]) for part in parts) + r"\z"


@dataclass(frozen=True, slots=True)
class In:
    """``field in (values)``."""

    field: str
    values: tuple[Value, ...]

    def __str__(self) -> str:
        return f"{_spelt(self.field)} in ({', '.join(map(str, self.values))})"


@dataclass(frozen=True, slots=True)
class IsNull:
    """``field is null``: the passage does not have it."""

    field: str

    def __str__(self) -> str:
        return f"{_spelt(self.field)} is null"


@dataclass(frozen=True, slots=True)
class Not:
    """``not (part)``."""

    part: Condition

    def __str__(self) -> str:
        return f"not ({self.part})"


@dataclass(frozen=True, slots=True)
class And:
    """All parts, two or more."""

    parts: tuple[Condition, ...]

    def __str__(self) -> str:
        return " and ".join(f"({part})" if isinstance(part, Or) else str(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Or:
    """Any part, of two or more."""

    parts: tuple[Condition, ...]

    def __str__(self) -> str:
        return " or ".join(map(str, self.parts))


Test: TypeAlias = Compare | Like | In | IsNull
Condition: TypeAlias = Test | Not | And | Or
Where: TypeAlias = str | Condition
"""A condition as callers may give it."""


def condition_of(where: Where) -> Condition:
    """The tree of a condition. Raises: ConditionError, in one line, for a text that is none."""
    if isinstance(where, Compare | Like | In | IsNull | Not | And | Or):
        return where
    return _Parser(where).whole()


def both(first: Condition | None, second: Condition | None) -> Condition | None:
    """What satisfies both; None: everything does."""
    if first is None or second is None:
        return first or second
    return And((first, second))


def tests_of(condition: Condition) -> Iterator[Test]:
    """The tests that it is made of."""
    if isinstance(condition, Not):
        yield from tests_of(condition.part)
    elif isinstance(condition, And | Or):
        for part in condition.parts:
            yield from tests_of(part)
    else:
        yield condition


def renamed(condition: Condition, names: dict[str, str]) -> Condition:
    """The same about other fields. Args: names: from → to."""
    if isinstance(condition, Not):
        return Not(renamed(condition.part, names))
    if isinstance(condition, And | Or):
        return replace(condition, parts=tuple(renamed(part, names) for part in condition.parts))
    return replace(condition, field=names.get(condition.field, condition.field))


def moment_of(text: str) -> datetime | None:
    """When a date in ISO 8601 begins, also one of a year or a month alone; without a zone it is UTC. None: no date."""
    if _PART_OF_DATE.fullmatch(text):
        text = f"{text}-01-01"[:10]
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _spelt(field: str) -> str:
    is_word = re.fullmatch(r"[^\W\d][\w.]*", field) and field.lower() not in _KEY_WORDS
    return field if is_word else '"' + field.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class _Token:
    """kind: a group of ``_TOKEN``, "key word", or "end"; ``text`` as it stands, key words in lower case."""

    kind: str
    text: str
    start: int


def _tokens(text: str) -> list[_Token]:
    tokens, place = [], _match(_SPACE, text, 0).end()
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            what = "a quote that does not end" if text[place] in "'\"" else "this"
            raise _refused(f"cannot be read from {_shown(text[place:])} on: {what} has no meaning")
        kind, said = str(found.lastgroup), found[0]
        if kind == "word" and said.lower() in _KEY_WORDS:
            kind, said = "key word", said.lower()
        tokens.append(_Token(kind, said, place))
        place = _match(_SPACE, text, found.end()).end()
    return [*tokens, _Token("end", "", len(text))]


def _match(pattern: re.Pattern[str], text: str, place: int) -> re.Match[str]:
    found = pattern.match(text, place)
    assert found is not None  # it matches nothing, too
    return found


class _Parser:
    """Recursive descent: or, and, not, test."""

    def __init__(self, text: object) -> None:
        if not isinstance(text, str):
            raise _refused(f"is a {type(text).__name__}; needed a text such as date >= '2024-01-01'")
        if len(text) > MAX_CHARS:
            raise _refused(f"has {len(text)} characters; needed {MAX_CHARS} at most")
        if text.encode("utf-8", "replace").decode() != text:
            raise _refused("is not valid Unicode text; remove its lone surrogates")
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0

    def whole(self) -> Condition:
        if self._tokens[0].kind == "end":
            raise _refused("is empty; write one such as date >= '2024-01-01', or leave it out")
        found = self._any()
        if self._token.kind != "end":
            raise self._wanted("'and', 'or' or the end")
        if sum(1 for _ in tests_of(found)) > MAX_TESTS:
            raise _refused(f"has more than {MAX_TESTS} tests; use in (…) for several values of a field")
        return found

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _taken(self, *words: str) -> bool:
        """Whether these key words or marks come next; then they are behind."""
        coming = self._tokens[self._next : self._next + len(words)]
        found = [each.text for each in coming if each.kind in {"key word", "mark"}] == list(words)
        self._next += len(words) if found else 0
        return found

    def _any(self) -> Condition:
        return self._joined(lambda: self._joined(self._negated, "and", And), "or", Or)

    def _joined(self, part: Callable[[], Condition], word: str, kind: type[And | Or]) -> Condition:
        parts = [part()]
        while self._taken(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else kind(tuple(parts))

    def _negated(self) -> Condition:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refused(f"is nested more than {MAX_DEPTH} deep; write it flatter")
        if self._taken("not"):
            found: Condition = Not(self._negated())
        elif self._taken("("):
            found = self._any()
            if not self._taken(")"):
                raise self._wanted("')'")
        else:
            found = self._test()
        self._depth -= 1
        return found

    def _test(self) -> Condition:
        token = self._token
        if token.kind not in {"word", "name"}:
            raise self._wanted("the name of a field")
        field = token.text if token.kind == "word" else token.text[1:-1].replace('""', '"')
        self._next += 1
        if self._taken("is", "not", "null"):
            return Not(IsNull(field))
        if self._taken("is", "null"):
            return IsNull(field)
        if self._token.kind == "operator":
            operator = _OPERATORS[self._token.text]
            self._next += 1
            return Compare(field, operator, self._value())
        negated = self._taken("not")
        found = self._of_several(field)
        return Not(found) if negated else found

    def _of_several(self, field: str) -> Condition:
        """What may have ``not`` before it."""
        if self._taken("like"):
            pattern = self._value()
            if not isinstance(pattern.value, str):
                raise _refused(f"has {pattern} after like; needed a pattern in single quotes, such as 'manual/%'")
            return Like(field, pattern.value)
        if self._taken("between"):
            low = self._value()
            if not self._taken("and"):
                raise self._wanted("'and' and the upper value")
            return And((Compare(field, ">=", low), Compare(field, "<=", self._value())))
        if self._taken("in", "("):
            values = [self._value()]
            while self._taken(","):
                values.append(self._value())
            if not self._taken(")"):
                raise self._wanted("',' or ')'")
            return In(field, tuple(values))
        raise self._wanted("=, !=, <, <=, >, >=, like, in (…), between or is null")

    def _value(self) -> Value:
        token = self._token
        if token.kind not in {"text", "number"} and token.text not in {"true", "false"}:
            remedy = "; texts are in single quotes" if token.kind in {"word", "name"} else ""
            raise self._wanted(f"a 'text', a number, true or false{remedy}")
        self._next += 1
        if token.kind == "text":
            return Value.of(token.text[1:-1].replace("''", "'"))
        if token.kind == "number":
            return Value.of(_number(token.text))
        return Value.of(token.text == "true")

    def _wanted(self, what: str) -> ConditionError:
        token = self._token
        got = "ends" if token.kind == "end" else f"has {_shown(token.text)}"
        before = self._tokens[self._next - 1].text if self._next else ""
        return _refused(f"{got}{f' after {_shown(before)}' if before else ''}; needed {what}")


def _number(text: str) -> int | float:
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise _refused(f"has the number {text}, which is too large")
    return number


def _refused(what: str) -> ConditionError:
    return ConditionError(f"the condition {what}")


def _shown(text: str) -> str:
    """In double quotes, on one line, not long."""
    return json.dumps(text if len(text) <= 40 else f"{text[:39]}…", ensure_ascii=False)
