"""Name → factory: the tables by which kinds of generators, retrievers, readers, tasks, … are found.

A table maps each name to a place "module:attribute", imported when it is asked for, so that listing names costs
nothing and no room imports a room above it. Other packages add rows by entry points of the table's group:

    [project.entry-points."latentrag.retrievers"]
    colbert = "my_package:colbert_retriever"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

from latentrag.errors import InputError

T = TypeVar("T")


class Table(Generic[T]):
    """Names and what they stand for.

    Args:
        what: what a row is, for error messages: "retriever".
        rows: name → "module:attribute", or the value itself.
        group: the entry points' group; None: only rows given here or by ``add``.
    """

    def __init__(self, what: str, rows: Mapping[str, T | str], *, group: str | None = None) -> None:
        self._what, self._rows, self._group = what, dict(rows), group
        self._found: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        """The names: own rows first, in the order given, then those of other packages."""
        yield from self._rows
        yield from sorted(set(self._others()) - set(self._rows))

    def __contains__(self, name: object) -> bool:
        return name in self._rows or name in self._others()

    def __getitem__(self, name: str) -> T:
        """What the name stands for. Raises: InputError for an unknown name, or one whose package does not import."""
        if name not in self._found:
            self._found[name] = self._loaded(name)
        return self._found[name]

    def add(self, name: str, row: T | str) -> None:
        """One more row, or another in place of the one with this name."""
        self._rows[name] = row
        self._found.pop(name, None)

    def remove(self, name: str) -> None:
        """Take a row out again."""
        del self._rows[name]
        self._found.pop(name, None)

    def _loaded(self, name: str) -> T:
        row: Any = self._rows.get(name)
        if row is None:
            entry = self._others().get(name)
            if entry is None:
                raise InputError(f"{self._what} {name!r} is unknown; needed one of {', '.join(self)}")
            try:
                loaded: T = entry.load()
            except (ImportError, AttributeError) as error:
                raise InputError(f"{self._what} {name!r} of {entry.value} cannot be imported ({error})") from error
            return loaded
        if isinstance(row, str):
            module, _, attribute = row.partition(":")
            row = getattr(import_module(module), attribute)
        found: T = row
        return found

    def _others(self) -> Mapping[str, Any]:
        if self._group is None:
            return {}
        from importlib.metadata import entry_points

        return {entry.name: entry for entry in entry_points(group=self._group)}
