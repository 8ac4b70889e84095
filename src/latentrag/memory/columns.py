"""The fields of all passages of one version as columns in RAM, and which passages satisfy a condition on them.

A column keeps each different value once, and for each passage which one it has. Tests are made of the values.
"""

from __future__ import annotations

import json
import operator
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from latentrag.conditions import And, Compare, Condition, In, IsNull, Like, Not, Or, Test, Value, moment_of, tests_of
from latentrag.errors import ConditionError
from latentrag.memory.places import place_of

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from latentrag.memory.table import Table
    from latentrag.types import Scalar

OWN = ("id", "title", "source", "page")
"""Fields that every passage has without stating them."""
PLACE = "place"
"""The source as clients of a server see it."""
_OPERATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ARROW = {"=": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal"}
_SHOWN = 20


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A field of N passages.

    Attributes:
        codes: (N,) int32, which of the values each has; −1: none.
        texts: (V,) strings, null where a value is none.
        others: numbers and bools by their place among the values.
    """

    codes: npt.NDArray[np.int32]
    texts: pa.Array
    others: dict[int, int | float | bool]

    def kinds(self, present: npt.NDArray[np.bool_]) -> set[str]:
        """Of the values that are ``present`` (V,)."""
        found = {Value.of(value).kind for place, value in self.others.items() if present[place]}
        is_text = np.asarray(self.texts.is_valid())
        return {*found, "text"} if (present & is_text).any() else {*found}

    def present(self, mask: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
        """(V,) which values passages (of the mask) have."""
        codes = self.codes if mask is None else self.codes[mask]
        found = np.zeros(len(self.texts) + 1, np.bool_)
        found[codes] = True  # −1 is the last
        return found[:-1]

    def truth(self, test: Test) -> pa.Array:
        """(N,) bools, null where it is unknown."""
        import pyarrow as pa

        if isinstance(test, IsNull):
            return pa.array(self.codes < 0)
        of_values = self._of_values(test)
        return of_values.take(pa.array(self.codes, mask=self.codes < 0))

    def _of_values(self, test: Compare | Like | In) -> pa.Array:
        """(V,) the same of each value."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if isinstance(test, Like):
            return pc.match_substring_regex(self.texts, test.regex)
        if isinstance(test, In):
            return self._among(test.values)
        value = test.value
        if value.kind != "text":
            compare = _OPERATIONS[test.operator]
            return self._where_others(value.kind, lambda other: compare(other, value.value))
        moment = None if test.operator in {"=", "!="} else value.moment
        if moment is not None:
            compare, moments = _OPERATIONS[test.operator], map(_moment, self.texts.to_pylist())
            return pa.array([None if each is None else compare(each, moment) for each in moments], pa.bool_())
        return pc.call_function(_ARROW[test.operator], [self.texts, pa.scalar(value.value)])

    def _among(self, values: Sequence[Value]) -> pa.Array:
        """Unknown where no value is of the kind."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = pa.nulls(len(self.texts), pa.bool_())
        texts = [value.value for value in values if value.kind == "text"]
        if texts:
            found = pc.if_else(self.texts.is_valid(), pc.is_in(self.texts, pa.array(texts)), None)
        for kind in ("number", "boolean"):
            wanted = {value.value for value in values if value.kind == kind}
            if wanted:
                found = pc.coalesce(found, self._where_others(kind, wanted.__contains__))
        return found

    def _where_others(self, kind: str, holds: Callable[[Any], bool]) -> pa.Array:
        import pyarrow as pa

        found: list[bool | None] = [None] * len(self.texts)
        for place, value in self.others.items():
            if Value.of(value).kind == kind:
                found[place] = holds(value)
        return pa.array(found, pa.bool_())


def _moment(text: str | None) -> Any:
    return None if text is None else moment_of(text)


@dataclass(slots=True)
class Columns:
    """Those of one version of a table, read when they are first asked for. Safe to use from several threads.

    In RAM: four bytes for each passage and field, and each different value once.
    """

    table: Table
    _row_ids: npt.NDArray[np.int64] | None = None
    _stated: dict[str, Column] | None = None
    _own: dict[str, Column] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def mask(self, condition: Condition) -> npt.NDArray[np.bool_]:
        """(N,) which passages satisfy it, in the order of the table; a field that none has is null in all."""
        import pyarrow.compute as pc

        found: npt.NDArray[np.bool_] = np.asarray(pc.fill_null(self._truth(condition), False))
        return found

    @property
    def row_ids(self) -> npt.NDArray[np.int64]:
        """(N,) in the order of the table."""
        with self._lock:
            if self._row_ids is None:
                self._row_ids = self.table.row_ids(list(self.table.fragments().values()))
            return self._row_ids

    def _truth(self, condition: Condition) -> pa.Array:
        """Kleene's three values."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if isinstance(condition, Not):
            return pc.invert(self._truth(condition.part))
        if isinstance(condition, And | Or):
            join = pc.and_kleene if isinstance(condition, And) else pc.or_kleene
            first, *others = condition.parts
            found = self._truth(first)
            for part in others:
                found = join(found, self._truth(part))
            return found
        column = self._column(condition.field)
        if column is None:
            is_null, size = isinstance(condition, IsNull), len(self.row_ids)
            return pa.repeat(True, size) if is_null else pa.nulls(size, pa.bool_())
        return column.truth(condition)

    def check(self, condition: Condition, mask: npt.NDArray[np.bool_] | None) -> None:
        """Refuse a field that no passage has, and a value of a kind that it never has.

        Args:
            mask: (N,) the passages that may be known of; None: all.
        Raises: ConditionError.
        """
        check_fields(condition, lambda name: self.kinds(name, mask), lambda: self.names(mask))

    def kinds(self, name: str, mask: npt.NDArray[np.bool_] | None = None) -> set[str] | None:
        """Of the values that passages (of the mask) have in a field; None: none of them has the field."""
        column = self._column(name)
        if column is None:
            return None
        present = column.present(mask)
        return column.kinds(present) if present.any() or name in OWN or name == PLACE else None

    def names(self, mask: npt.NDArray[np.bool_] | None = None) -> list[str]:
        """Fields that passages (of the mask) have, and those that all have; the first of them if there are many."""
        return shown_names(self.stated_names(mask))

    def stated_names(self, mask: npt.NDArray[np.bool_] | None = None) -> set[str]:
        """Fields that passages (of the mask) state."""
        stated = self._read()
        return {name for name in stated if name not in OWN and stated[name].present(mask).any()}

    def _column(self, name: str) -> Column | None:
        with self._lock:
            if name not in self._own:
                if name == PLACE:
                    self._own[name] = self._places()
                elif name in OWN:
                    self._own[name] = self._scanned(name)
                else:
                    return self._read().get(name)
            return self._own[name]

    def _scanned(self, name: str) -> Column:
        """A column of the table; an empty text counts as none."""
        import pyarrow as pa
        import pyarrow.compute as pc

        values = pa.chunked_array([batch[name] for batch in self.table.scan([name])], self._type(name))
        if name == "page":
            numbers = values.dictionary_encode().unify_dictionaries().combine_chunks()
            numbers = pa.concat_arrays(numbers.chunks) if isinstance(numbers, pa.ChunkedArray) else numbers
            distinct = numbers.dictionary.to_pylist()
            return Column(_codes(numbers.indices), pa.nulls(len(distinct), pa.string()), dict(enumerate(distinct)))
        return _of_texts(pc.if_else(pc.equal(values, ""), None, values))

    def _type(self, name: str) -> pa.DataType:
        return self.table.dataset.schema.field(name).type

    def _places(self) -> Column:
        import pyarrow as pa

        rows = (pair for batch in self.table.scan(["id", "source"]) for pair in _pairs(batch))
        return _of_texts(pa.chunked_array([pa.array([place_of(*pair) or None for pair in rows], pa.string())]))

    def _read(self) -> dict[str, Column]:
        """What passages state, each a column."""
        with self._lock:
            if self._stated is None:
                self._stated = _stated(self.table)
            return self._stated


def check_fields(
    condition: Condition, kinds: Callable[[str], Collection[str] | None], names: Callable[[], Sequence[str]]
) -> None:
    """As ``Columns.check``. Args: kinds, names: as of ``Columns``."""
    for test in tests_of(condition):
        found = kinds(test.field)
        if found is None:
            raise ConditionError(f"no passage has a field {test.field!r}; there are: {', '.join(names())}")
        _check_kinds(test, found)


def shown_names(stated: Iterable[str]) -> list[str]:
    """The fields that every passage has, and those stated; the first of them if there are many."""
    found = sorted(stated)
    return [*OWN, *found[:_SHOWN], *(["…"] if len(found) > _SHOWN else [])]


def _pairs(batch: pa.RecordBatch) -> Iterator[tuple[str, str]]:
    return zip(batch["id"].to_pylist(), batch["source"].to_pylist(), strict=True)


def _of_texts(values: pa.ChunkedArray) -> Column:
    import pyarrow as pa

    encoded = values.dictionary_encode().unify_dictionaries()
    indices = [chunk.indices for chunk in encoded.chunks]
    codes = np.concatenate([np.empty(0, np.int32), *map(_codes, indices)])
    texts = encoded.chunk(0).dictionary if encoded.num_chunks else pa.array([], pa.string())
    return Column(codes, texts, {})


def _codes(indices: pa.Array) -> npt.NDArray[np.int32]:
    return np.asarray(indices.fill_null(-1), np.int32)


def _stated(table: Table) -> dict[str, Column]:
    """Reads the column of fields, in which many passages have the same text."""
    import pyarrow as pa

    if "fields" not in table.passage_columns:
        return {}
    size, row = len(table), 0
    codes: dict[str, npt.NDArray[np.int32]] = {}
    values: dict[str, dict[tuple[type, Scalar], int]] = {}
    for batch in table.scan(["fields"]):
        encoded = batch["fields"].dictionary_encode()
        of_rows = _codes(encoded.indices)
        found: dict[str, npt.NDArray[np.int32]] = {}
        for number, text in enumerate(encoded.dictionary.to_pylist()):
            for name, value in json.loads(text).items():
                known = values.setdefault(name, {})
                of_texts = found.setdefault(name, np.full(len(encoded.dictionary) + 1, -1, np.int32))
                of_texts[number] = known.setdefault((type(value), value), len(known))
        for name, of_texts in found.items():
            whole = codes.setdefault(name, np.full(size, -1, np.int32))
            whole[row : row + len(batch)] = of_texts[of_rows]
        row += len(batch)
    columns = {}
    for name, of_field in values.items():
        distinct = [value for _, value in of_field]
        texts = pa.array([value if isinstance(value, str) else None for value in distinct], pa.string())
        others = {place: value for place, value in enumerate(distinct) if not isinstance(value, str)}
        columns[name] = Column(codes[name], texts, others)
    return columns


def _check_kinds(test: Test, kinds: Collection[str]) -> None:
    if not kinds or isinstance(test, IsNull):
        return
    wanted = [Value.of(test.pattern)] if isinstance(test, Like) else None
    for value in wanted or (test.values if isinstance(test, In) else [test.value]):  # type: ignore[union-attr]
        if value.kind not in kinds:
            remedy = "write the value in single quotes" if kinds == {"text"} else "write the value without quotes"
            has = " and ".join(sorted(f"{kind}s" for kind in kinds))
            raise ConditionError(f"the field {test.field!r} has {has}, got the {value.kind} {value}; {remedy}")
