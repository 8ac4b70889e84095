"""Conditions the slow way: one passage at a time in plain Python; and conditions drawn at random."""

import random
import re
from datetime import UTC, datetime

from latentrag.conditions import And, Compare, Condition, In, IsNull, Like, Not, Or, Value
from latentrag.types import Passage, Scalar


def holds(condition: Condition, passage: Passage) -> bool:
    """Whether the passage satisfies it."""
    return truth(condition, passage) is True


def truth(condition: Condition, passage: Passage) -> bool | None:
    """Of Kleene's three values."""
    if isinstance(condition, Not):
        inner = truth(condition.part, passage)
        return None if inner is None else not inner
    if isinstance(condition, And | Or):
        found, decides = [truth(part, passage) for part in condition.parts], isinstance(condition, Or)
        return decides if decides in found else None if None in found else not decides
    own = {name: getattr(passage, name) or None for name in ("id", "title", "source", "page")}
    value: Scalar | None = {**passage.fields, **own}.get(condition.field)
    if isinstance(condition, IsNull):
        return value is None
    if isinstance(condition, Like):
        return bool(re.fullmatch(pattern(condition.pattern), value, re.DOTALL)) if isinstance(value, str) else None
    if isinstance(condition, In):
        alike = [each.value for each in condition.values if kind(each.value) == kind(value)]
        return value in alike if alike else None
    return compared(condition, value)


def kind(value: object) -> str:
    return {str: "text", bool: "bool", int: "number", float: "number"}.get(type(value), "nothing")


def pattern(like: str) -> str:
    found, i = "", 0
    while i < len(like):
        if like[i] == "\\" and i + 1 < len(like):
            i += 1
            found += re.escape(like[i])
        else:
            found += {"%": ".*", "_": "."}.get(like[i]) or re.escape(like[i])
        i += 1
    return found


def compared(test: Compare, value: Scalar | None) -> bool | None:
    left, right = value, test.value.value
    if kind(left) != kind(right):
        return None
    if test.operator not in {"=", "!="} and test.value.moment is not None:
        assert isinstance(left, str)
        assert isinstance(right, str)
        moments = [moment(text) for text in (left, right)]
        if None in moments:
            return None
        left, right = (each.timestamp() for each in moments if each is not None)
    return {
        "=": lambda: left == right,
        "!=": lambda: left != right,
        "<": lambda: left < right,  # type: ignore[operator]
        "<=": lambda: left <= right,  # type: ignore[operator]
        ">": lambda: left > right,  # type: ignore[operator]
        ">=": lambda: left >= right,  # type: ignore[operator]
    }[test.operator]()


def moment(text: str) -> datetime | None:
    for form in ("%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"):
        try:
            found = datetime.strptime(text, form)
        except ValueError:
            continue
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None


LANGUAGES = ("de", "en", "fr", "pt_BR")
DATES = ("2023", "2023-06", "2024-01-01", "2024-02-29T10:00:00", "2024-02-29T10:00:00+02:00", "last May", "2025-12-31")
VALUES: dict[str, list[Scalar]] = {
    "language": [*LANGUAGES],
    "date": [*DATES],
    "year": [1984, 1984.5, 2000, 2**60, 2**60 + 1, -3],
    "draft": [True, False],
    "mixed": ["1", 1, True, "true", 2.5],
    "a b": ["x'y", "100%", "a_b", "\\", "line\nbreak"],
    "source": ["manual/a.md", "manual/b.md", "notes/a.md"],
    "title": ["One", "Two", "Ünï"],
    "page": [1, 2, 17],
}


def drawn_passages(number: int, draw: random.Random) -> list[Passage]:
    """Each field is there in two of three."""
    words = "paris rome seine river capital france italy prince denmark letter".split()
    found = []
    for i in range(number):
        fields = {name: draw.choice(values) for name, values in VALUES.items() if draw.random() < 2 / 3}
        own = {name: fields.pop(name) for name in ("source", "title", "page") if name in fields}
        text = " ".join(draw.choices(words, k=draw.randint(3, 12)))
        found.append(Passage(f"p{i}", f"{text} {i}", fields=fields, **own))  # type: ignore[arg-type]
    return found


def drawn(draw: random.Random, depth: int = 3) -> Condition:
    """Any condition whose values are of kinds that their fields have."""
    shape = draw.random()
    if depth and shape < 0.45:
        parts = tuple(drawn(draw, depth - 1) for _ in range(draw.randint(2, 3)))
        return And(parts) if draw.random() < 0.5 else Or(parts)
    if depth and shape < 0.6:
        return Not(drawn(draw, depth - 1))
    field = draw.choice(list(VALUES))
    value = Value.of(draw.choice(VALUES[field]))
    test = draw.choice(["compare", "compare", "in", "null", "like"])
    if test == "null":
        return IsNull(field)
    if test == "in":
        return In(field, tuple(Value.of(draw.choice(VALUES[field])) for _ in range(draw.randint(1, 3))))
    if test == "like" and isinstance(value.value, str):
        text = value.value
        start, end = sorted(draw.randint(0, len(text)) for _ in range(2))
        middle = "_" if end > start and draw.random() < 0.5 else "%"
        return Like(field, f"{text[:start]}{middle}{text[end:]}")
    return Compare(field, draw.choice(("=", "!=", "<", "<=", ">", ">=")), value)
