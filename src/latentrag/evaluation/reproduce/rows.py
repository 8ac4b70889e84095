"""The rows: for each table or figure of the paper the commands that make it, and what must come out (rows.toml)."""

from __future__ import annotations

import difflib
import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from typing import Any, Literal, TypeAlias

from latentrag.errors import DataError, InputError

Size: TypeAlias = Literal["full", "quick"]
"""full: the sizes of the recorded figures; quick: a few questions of made data, to see that every command works."""
Needs: TypeAlias = Literal["", "hub", "gpu"]
"""What a row needs besides its data: a model hub, a GPU."""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_MADE = re.compile(r"\{work\}/([\w-]+)")
PLACES = ("data", "work")
"""Placeholders of commands that are folders: of the data, and of what the commands make."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that rows share: a trained model, a memory, or a file that is derived from the data.

    Attributes:
        command: of latentrag, with placeholders; empty for a derived file.
        resumes: a file; once it exists the command goes on with ``--resume``. Empty: the same command goes on.
        derives: how a file is derived, a name in ``derived.DERIVED``: it is {work}/NAME.jsonl.
        data: files of the data folder that are read.
        steps: names of the steps that come before.
    """

    name: str
    command: str = ""
    resumes: str = ""
    derives: str = ""
    data: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Must:
    """What must come out of a row: the mean of a measure between ``low`` and ``high``, or above that of other arms with
    the whole interval of the paired difference, and by at least ``by``.

    Attributes:
        arms: one, or several whose mean counts, question by question.
        above: the others, in the same way.
    """

    arms: tuple[str, ...]
    measure: str
    low: float | None = None
    high: float | None = None
    above: tuple[str, ...] = ()
    by: float = 0.0

    def __str__(self) -> str:
        arms = " and ".join(self.arms)
        if self.above:
            by = f"{self.by:g} " if self.by else ""
            return f"{arms}: {self.measure} {by}above that of {' and '.join(self.above)}"
        bounds = [f"at least {self.low:g}"] if self.low is not None else []
        bounds += [f"at most {self.high:g}"] if self.high is not None else []
        return f"{arms}: {self.measure} {' and '.join(bounds)}"


@dataclass(frozen=True, slots=True)
class Row:
    """A table or figure, or a part of one.

    Attributes:
        of: where in the paper.
        shows: in a sentence.
        paper: the paper's own figures, as text.
        arms: name → command of latentrag, with placeholders; all ``eval`` the same questions, or ``ask`` one.
        measures: of an arm, by the names of ``eval --json``, the main one first; recorded question by question.
        data: files of the data folder that the commands read.
        steps: names of the steps that come before, in order.
        must: what must come out.
        minutes: about, of one core, all arms together and without the steps; ``list`` has those of records.
        needs: where it is not "", the row is not run unless it is named.
        examples: how many of each arm's answers are shown.
        figure: how it is drawn, a name in ``drawing.FIGURES``; empty: as a table.
        note: about this run of it.
    """

    name: str
    of: str
    shows: str
    arms: Mapping[str, str]
    measures: tuple[str, ...]
    paper: str = ""
    data: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    must: tuple[Must, ...] = ()
    minutes: int | None = None
    needs: Needs = ""
    examples: int = 0
    figure: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """The whole file.

    Attributes:
        variables: size → placeholder → value.
    """

    rows: Mapping[str, Row]
    steps: Mapping[str, Step]
    variables: Mapping[Size, Mapping[str, str]] = field(default_factory=dict)

    def steps_of(self, row: Row) -> list[Step]:
        """Everything that comes before a row, in order."""
        return self.steps_before(row.steps)

    def steps_before(self, names: Iterable[str]) -> list[Step]:
        """These steps with those that come before them, in order."""
        found: dict[str, Step] = {}

        def add(names: Iterable[str]) -> None:
            for name in names:
                add(self.steps[name].steps)
                found.setdefault(name, self.steps[name])

        add(names)
        return list(found.values())

    def steps_of_arm(self, row: Row, arm: str) -> list[Step]:
        """Those of a row's steps that an arm depends on, in order: what a step makes is {work}/NAME, with an ending."""
        found: list[Step] = []
        named = self.made_for(row.arms[arm])
        for step in reversed(self.steps_of(row)):
            if step.name in named:
                found.insert(0, step)
                named |= self.made_for(step.command)
        return found

    def made_for(self, command: str) -> set[str]:
        """Names of what a command finds in {work}."""
        return set(_MADE.findall(self.kept(command, "full")))

    def data_of(self, row: Row) -> set[str]:
        """The files of the data folder that a row and its steps read."""
        return {*row.data, *(name for step in self.steps_of(row) for name in step.data)}

    def named(self, name: str) -> Row:
        """Raises: InputError."""
        if name not in self.rows:
            close = difflib.get_close_matches(name, self.rows, n=3) or list(self.rows)[:3]
            raise InputError(f"{name!r} is no row; needed one of `reproduce list`, such as {', '.join(close)}, or all")
        return self.rows[name]

    def kept(self, template: str, size: Size) -> str:
        """A command as it is recorded: the folders stay placeholders, so that it is the same on every machine."""
        return self.command(template, size, data="{data}", work="{work}")

    def command(self, template: str, size: Size, **places: object) -> str:
        """A command with values in place of its placeholders.

        Args:
            places: the folders ``data`` and ``work``.
        """
        values = {**self.variables[size], **{name: str(place) for name, place in places.items()}}
        for _ in range(2):  # variables may name folders
            template = _PLACEHOLDER.sub(lambda found: values[found[1]], template)
        return template


def read_rows(text: str | None = None) -> Rows:
    """The rows of the package, or of another text in TOML. Raises: DataError for one that is not as it must be."""
    text = files(__package__).joinpath("rows.toml").read_text("utf-8") if text is None else text
    try:
        found = tomllib.loads(text)
        rows = Rows(
            {name: _row(name, row) for name, row in found["rows"].items()},
            {name: Step(name, **_tuples(step)) for name, step in found.get("steps", {}).items()},
            {"full": found["variables"]["full"], "quick": found["variables"]["quick"]},
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the file of rows cannot be read ({error!r})") from error
    for problem in itertools.chain(_problems(rows), _unmade(rows)):
        raise DataError(f"the file of rows: {problem}")
    return rows


def _row(name: str, row: Mapping[str, Any]) -> Row:
    values = _tuples(row)
    values["must"] = tuple(Must(**_tuples(each)) for each in row.get("must", ()))
    unknown = values.keys() - {each.name for each in fields(Row)}
    if unknown:
        raise TypeError(f"{name} has {', '.join(sorted(unknown))}")
    return Row(name, **values)


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _problems(rows: Rows) -> Iterable[str]:
    for size, variables in rows.variables.items():
        if missing := set().union(*rows.variables.values()) - variables.keys():
            yield f"the size {size} has no {', '.join(sorted(missing))}"
    known = {*PLACES, *rows.variables["full"]}
    for name, command in _commands(rows):
        if unknown := set(_PLACEHOLDER.findall(command)) - known:
            yield f"{name} has the placeholder {', '.join(sorted(unknown))}"
    needs: list[Row | Step] = [*rows.rows.values(), *rows.steps.values()]
    for needing in needs:
        for step in sorted(set(needing.steps) - rows.steps.keys()):
            yield f"{needing.name} needs the step {step}, which is not there"
    for row in rows.rows.values():
        yield from (f"{row.name} must have {must}, which it does not measure" for must in _unmeasured(row))


def _unmade(rows: Rows) -> Iterable[str]:
    for row in rows.rows.values():
        of_row = {step.name for step in rows.steps_of(row)}
        for arm, command in row.arms.items():
            if unmade := rows.made_for(command) - of_row:
                yield f"{row.name}, {arm} reads {', '.join(sorted(unmade))} of the work, which no step of the row makes"


def _unmeasured(row: Row) -> Iterable[Must]:
    for must in row.must:
        if {*must.arms, *must.above} - row.arms.keys() or must.measure not in row.measures:
            yield must


def _commands(rows: Rows) -> Iterable[tuple[str, str]]:
    yield from ((step.name, step.command) for step in rows.steps.values())
    for row in rows.rows.values():
        yield from ((f"{row.name}, {arm}", command) for arm, command in row.arms.items())
