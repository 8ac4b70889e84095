"""What an option is, and what dataclasses of options have in common."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from functools import cache
from inspect import cleandoc
from types import UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from latentrag.errors import InputError, OptionError

T = TypeVar("T")

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Option:
    """What is to be known about a field of options.

    Attributes:
        name: in commands and in the API, where it differs from the field's.
        flags: in commands; default: the name after two dashes.
        metavar: what stands for the value in the help of commands.
        default: words for the default, where the value itself says too little.
        ge, gt, le, lt: the value is ≥, >, ≤, < this.
        public: whether commands and the API have it; otherwise Python alone.
    """

    _: KW_ONLY
    name: str | None = None
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    default: str | None = None
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    public: bool = True

    @property
    def limits(self) -> str:
        """The limits in words; empty where there are none."""
        words = (("{:g} or more", self.ge), ("more than {:g}", self.gt), ("at most {:g}", self.le))
        parts = [text.format(limit) for text, limit in (*words, ("less than {:g}", self.lt)) if limit is not None]
        return " and ".join(parts)

    def allows(self, value: float) -> bool:
        """Whether a number is within the limits; NaN and infinities never are."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
            and math.isfinite(value)
        )


@dataclass(frozen=True, slots=True)
class OptionField:
    """A field of a dataclass of options.

    Attributes:
        field: its own name.
        type: without the ``Option``.
        help: what it does, with its unit, as the docstring of the class says under "Attributes".
    """

    field: str
    type: Any
    default: Any
    option: Option
    help: str

    @property
    def name(self) -> str:
        """In commands and in the API."""
        return self.option.name or self.field

    @property
    def flags(self) -> tuple[str, ...]:
        """In commands."""
        return self.option.flags or (f"--{self.name.replace('_', '-')}",)

    @property
    def choices(self) -> tuple[object, ...]:
        """The values of a Literal; empty for other types."""
        of_union = get_args(self.type) if get_origin(self.type) in {Union, UnionType} else (self.type,)
        return tuple(value for part in of_union if get_origin(part) is Literal for value in get_args(part))

    def check(self, value: object, *, called: str = "") -> None:
        """Raises: InputError, which calls the option ``called``, for a value that it does not take."""
        if value is None:
            return
        called = called or f"{{{self.field}}}"
        if self.choices and isinstance(value, str) and value not in self.choices:
            known = ", ".join(map(str, self.choices))
            raise OptionError(f"{called}={{value!r}} is unknown; needed one of {{known}}", value=value, known=known)
        if value == "":
            raise OptionError(f"{called} is empty; give it a value or leave it out")
        if isinstance(value, int | float) and not self.option.allows(value):
            wanted = self.option.limits if math.isfinite(value) else "a finite number"
            raise OptionError(f"{called}={{value}}; needed {{wanted}}", value=value, wanted=wanted)


def options_of(options: type) -> Mapping[str, OptionField]:
    """The annotated fields of a dataclass of options, by field name."""
    return _options_of(options)


@cache
def _options_of(cls: Any) -> Mapping[str, OptionField]:
    hints, helps = get_type_hints(cls, include_extras=True), _attributes(cls)
    options = {}
    for field in fields(cls):
        if get_origin(hints[field.name]) is Annotated:
            type_, option = get_args(hints[field.name])
            options[field.name] = OptionField(field.name, type_, field.default, option, helps.get(field.name, ""))
    return options


def _attributes(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each attribute."""
    sections = (cleandoc(base.__doc__ or "").partition("Attributes:\n")[2] for base in reversed(cls.__mro__))
    return {name: " ".join(text.split()) for section in sections for name, text in _ATTRIBUTE.findall(section)}


def check_options(options: object) -> None:
    """For ``__post_init__``. Raises: InputError for a value out of its option's limits or choices."""
    for name, field in options_of(type(options)).items():
        field.check(getattr(options, name))


class Given(dict[str, Any], Generic[T]):
    """Those options of a dataclass T that the user has given, by field name.

    T may say in ``DEFAULT`` what takes the place of the others: words around "{}", the default of the field.
    """

    @classmethod
    def of(cls, options: type[T], values: Mapping[str, object]) -> Given[T]:
        """Values that are None are not given.

        Raises: InputError for an unknown name, or a value out of its option's limits.
        """
        known = options_of(options)
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"unknown option {unknown[0]}; needed one of {', '.join(sorted(known))}")
        given: Given[T] = cls({name: value for name, value in values.items() if value is not None})
        for name, value in given.items():
            known[name].check(value)
        return given
