"""Some passages of a memory as a memory of their own: those that satisfy a condition on their fields."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, Self, TypeVar, cast

import numpy as np

from latentrag.conditions import Condition, Where, both, condition_of
from latentrag.errors import ConditionError, MemoryStoreError
from latentrag.memory.schema import require_known
from latentrag.types import Passage, SearchResult

if TYPE_CHECKING:
    import numpy.typing as npt

    from latentrag.memory.history import Diff
    from latentrag.memory.indexes import Index
    from latentrag.memory.memory import Memory
    from latentrag.memory.schema import EncoderCard
    from latentrag.memory.table import Table
    from latentrag.postings import WordIndex
    from latentrag.protocols import QueryEncoder
    from latentrag.types import Candidates, WordResult

KEPT_SELECTIONS = 8
"""Of a version, those used last; 10 bytes of RAM a passage of the memory each."""
ROWS_AT_ONCE = 4_096
"""Passages in RAM while versions are compared."""


@dataclass(slots=True, eq=False)
class Selection:
    """The passages of a version that satisfy a condition, N in all, n of them.

    Attributes:
        mask: (N,) in the order of the table.
        row_ids: (n,) in the same order.
    """

    mask: npt.NDArray[np.bool_]
    row_ids: npt.NDArray[np.int64]
    _index: tuple[Index, Index] | None = None
    _places: tuple[WordIndex, npt.NDArray[np.bool_]] | None = None
    _words: tuple[WordIndex, WordIndex] | None = None
    _sorted: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self._sorted = np.sort(self.row_ids)

    def __len__(self) -> int:
        return len(self.row_ids)

    def index(self, whole: Index) -> Index:
        """An index of all passages, restricted to these, of which there is one or more."""
        known = self._index
        if known is None or known[0] is not whole:
            known = self._index = whole, whole.only(self._sorted)
        return known[1]

    def places(self, whole: WordIndex) -> npt.NDArray[np.bool_]:
        """(places,) which places of an index of words have these passages."""
        known = self._places
        if known is None or known[0] is not whole:
            known = self._places = whole, np.isin(whole.row_ids, self._sorted)
        return known[1]

    def words(self, whole: WordIndex) -> WordIndex:
        """An index of the words of these passages, as if there were no others."""
        known = self._words
        if known is None or known[0] is not whole:
            known = self._words = whole, whole.among(self.places(whole))
        return known[1]

    def has(self, row_id: int) -> bool:
        """Whether it is one of these rows."""
        place = int(np.searchsorted(self._sorted, row_id))
        return place < len(self._sorted) and int(self._sorted[place]) == row_id


class Within(NamedTuple):
    """What is searched of a version.

    Attributes:
        left: which passages may be found.
        among: which may be known of, all that are left among them; None: all.
    """

    left: Condition
    among: Condition | None


class Source(Protocol):
    """A version, or what holds one."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def identity(self) -> str: ...
    @property
    def lineage(self) -> str: ...

    def snapshot(self) -> Version: ...
    def check(self, query_encoder: QueryEncoder) -> None: ...


class Version(Source, Protocol):
    """A version of a memory as ``FilteredMemory`` needs it, wherever its rows lie; see ``Memory``."""

    @property
    def card(self) -> EncoderCard: ...

    @property
    def stored(self) -> Memory: ...

    def at(self, version: int | str | None) -> Version: ...
    def count(self, where: Condition) -> int: ...
    def check_fields(self, condition: Condition, *, scope: Condition | None) -> None: ...
    def passages(self, *, where: Condition | None = None) -> Iterator[Passage]: ...
    def find(self, ids: Sequence[str], *, where: Condition | None = None) -> dict[str, Passage]: ...
    def around(
        self, ids: Sequence[str], num: int, *, within: Within | None = None
    ) -> list[tuple[list[Passage], list[Passage]]]: ...
    def search(self, q: npt.NDArray[np.float32], k: int, *, within: Within | None = None) -> SearchResult: ...
    def warm_up(self, *, words: bool = False) -> None: ...


F_co = TypeVar("F_co", bound="FilteredMemory", covariant=True)


class Filterable(ABC, Generic[F_co]):
    """What has passages of which some can be asked alone: a version, or what holds one."""

    @abstractmethod
    def filtered(self) -> F_co:
        """All of them, before any condition."""

    def where(self, where: Where) -> F_co:
        """The passages that satisfy a condition on their fields (``latentrag.conditions``), as a memory.

        Raises: as ``FilteredMemory.where``.
        """
        return self.filtered().where(where)

    def only(self, scope: Where) -> F_co:
        """As if there were no passages but those that satisfy a condition: see ``FilteredMemory.scope``."""
        return self.filtered().only(scope)

    def beside(self, untold: Condition) -> F_co:
        """The passages that satisfy a condition that no error names: see ``FilteredMemory.untold``."""
        return self.filtered().beside(untold)


@dataclass(frozen=True, slots=True, eq=False)
class FilteredMemory:
    """The passages of ``source`` that satisfy ``scope`` and ``condition``, as a memory. Where the source holds a
    version, those of the version that is there when it is asked.

    Attributes:
        scope: what may be known of: nothing here depends on any other passage, not even a count or an error.
        condition: which of these are searched. What else is among them still counts for how a passage is scored: the
            prior is p_η(z|x) given that z satisfies the condition.
        untold: as ``condition``, and no error names it.
    """

    source: Source
    scope: Condition | None = None
    condition: Condition | None = None
    untold: Condition | None = None

    def where(self, where: Where) -> Self:
        """Those that satisfy another condition, too.

        Raises: ConditionError for a text that is no condition, a field that no passage of the scope has, or a value of
            a kind that the field never has.
        """
        condition = condition_of(where)
        self.base.check_fields(condition, scope=self.scope)
        return replace(self, condition=both(self.condition, condition))

    def only(self, scope: Where) -> Self:
        """As if there were no passages but those that satisfy a condition, too; its fields may be there or not."""
        return replace(self, scope=both(self.scope, condition_of(scope)))

    def beside(self, untold: Condition) -> Self:
        """Those that satisfy another condition, too, whose fields may be there or not."""
        return replace(self, untold=both(self.untold, untold))

    def snapshot(self) -> Self:
        """Of the version that is there now."""
        return replace(self, source=self.base)

    @property
    def base(self) -> Version:
        """The version that is filtered."""
        return self.source.snapshot()

    def at(self, version: int | str | None) -> Self:
        """The same of another version."""
        return replace(self, source=self.base.at(version))

    @property
    def stored(self) -> Memory:
        """As ``ServedVersion.stored``, with all its passages."""
        return self.base.stored

    @property
    def left(self) -> Condition:
        """What a passage satisfies that is left."""
        wanted = both(both(self.scope, self.untold), self.condition)
        assert wanted is not None
        return wanted

    @property
    def within(self) -> Within:
        """What is searched of a version."""
        return Within(self.left, self.scope)

    # As a memory

    @property
    def name(self) -> str:
        """As ``Memory.name``."""
        return self.source.name

    @property
    def version(self) -> int:
        """As ``Memory.version``."""
        return self.source.version

    @property
    def identity(self) -> str:
        """Names what is left of what: that of another memory, version or condition differs."""
        return f"{self.source.identity} where {self.left}"

    @property
    def lineage(self) -> str:
        """Names what is left of what, through all versions."""
        return f"{self.source.lineage} where {self.left}"

    @property
    def card(self) -> EncoderCard:
        """As ``Memory.card``."""
        return self.base.card

    def __len__(self) -> int:
        return self.base.count(self.left)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, where={str(self.left)!r})"

    def passages(self) -> Iterator[Passage]:
        """Those that are left, in the order of the table, streamed."""
        return self.base.passages(where=self.left)

    def find(self, ids: Sequence[str]) -> dict[str, Passage]:
        """As ``Memory.find``."""
        return self.base.find(ids, where=self.left)

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """As ``Memory.get``."""
        by_id = self.find(ids)
        require_known(ids, by_id, "not among the passages that satisfy the condition")
        return [by_id[key] for key in ids]

    def around(self, ids: Sequence[str], num: int) -> list[tuple[list[Passage], list[Passage]]]:
        """As ``Memory.around``: those that are left, up to the first that is not, as if there were only those of the
        scope."""
        return self.base.around(ids, num, within=self.within)

    def search(self, q: npt.NDArray[np.float32], k: int) -> SearchResult:
        """As ``Memory.search``: the K best of those that are left, or all of them if there are fewer.

        Raises: as ``Memory.search``; ConditionError if none is left.
        """
        base = self.base
        num = self._num_left(base)
        return base.search(q, k if k < 1 else min(k, num), within=self.within)

    def require_some(self) -> None:
        """Raises: ConditionError if no passage is left; MemoryStoreError if there was none."""
        self._num_left(self.base)

    def _num_left(self, base: Version) -> int:
        """One or more. Raises: as ``require_some``."""
        num = base.count(self.left)
        if num:
            return num
        if self.condition is None:
            raise MemoryStoreError(f"the memory has no passages at version {base.version}")
        raise ConditionError(f"0 passages satisfy {self.condition}; widen the condition")

    def check(self, query_encoder: QueryEncoder) -> None:
        """As ``Memory.check``."""
        self.source.check(query_encoder)

    def warm_up(self, *, words: bool = False) -> None:
        """As ``Memory.warm_up``."""
        self.base.warm_up(words=words)
        _ = len(self)


class FilteredTable(FilteredMemory):
    """Those of a memory in a folder, whose words are searched, too."""

    __slots__ = ()

    @property
    def base(self) -> Memory:
        """The version that is filtered."""
        return cast("Memory", self.source.snapshot())

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(N,) which passages of the version are left, in the order of the table."""
        return self.base.selection(self.left).mask

    def search_words(self, x: Sequence[str], k: int, *, scale: float = 1.0) -> WordResult:
        """As ``Memory.search_words``, of those that are left, or all of them if there are fewer than k."""
        base = self.base
        num = self._num_left(base)
        return base.search_words(x, min(k, num), scale=scale, within=self.within)

    def word_scores(self, x: Sequence[str], rows: Sequence[npt.NDArray[np.int64]]) -> list[npt.NDArray[np.float64]]:
        """As ``Memory.word_scores``."""
        return self.base.word_scores(x, rows, within=self.within)

    def candidates(self, q: npt.NDArray[np.float32], x: Sequence[str], num: int) -> Candidates:
        """As ``Memory.candidates``, of those that are left."""
        base = self.base
        num_left = self._num_left(base)
        return base.candidates(q, x, num if num < 1 else min(num, num_left), within=self.within)


def num_seen_apart(before: FilteredTable, after: FilteredTable) -> int:
    """How many passages ``seen_diff`` reads: those whose rows are left in one version and are not in the other. It does
    not depend on any other passage, nor on which files the rows are in (a repair gives rows new ids)."""
    return sum(len(row_ids) for row_ids in _rows_apart(before, after))


def seen_diff(before: FilteredTable, after: FilteredTable) -> Diff:
    """As ``Memory.diff``, as if the passages that are left were all there are. Only those of ``num_seen_apart`` are
    read."""
    from latentrag.memory.history import diff_of

    rows = zip((before, after), _rows_apart(before, after), strict=True)
    old, new = (_read(each.base.table, row_ids.tolist()) for each, row_ids in rows)
    return diff_of(before.base.table, after.base.table, old, new)


def _rows_apart(before: FilteredTable, after: FilteredTable) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row ids of each that the other has not, in the order of the table. A row id has one passage in all versions."""
    old, new = (each.base.selection(each.left).row_ids for each in (before, after))
    return old[~np.isin(old, new)], new[~np.isin(new, old)]


def _read(table: Table, row_ids: list[int]) -> Iterator[Passage]:
    for start in range(0, len(row_ids), ROWS_AT_ONCE):
        wanted = row_ids[start : start + ROWS_AT_ONCE]
        found = table.take(wanted)
        yield from (found[row] for row in wanted)
