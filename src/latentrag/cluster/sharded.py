"""A memory whose rows lie with the shards of a cluster, searched as one: exact scores of all shards, merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrag.cluster.calls import Calls
from latentrag.cluster.division import Division
from latentrag.conditions import Condition, Where, both, condition_of, tests_of
from latentrag.errors import InputError, MemoryStoreError
from latentrag.memory import EncoderCard
from latentrag.memory.columns import check_fields, shown_names
from latentrag.memory.memory import checked_query
from latentrag.memory.schema import require_known
from latentrag.types import Passage, SearchResult

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latentrag.cluster.shard import Found
    from latentrag.protocols import QueryEncoder

PASSAGES_PER_READ = 1_024


@dataclass(frozen=True, slots=True, eq=False)
class ShardedVersion:
    """One version of a memory, divided among shards; it never changes. A ``protocols.FilterableMemory``.

    Attributes:
        path: of the memory, as the nodes see it.
    """

    calls: Calls
    division: Division
    path: Path

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"cluster:{self.calls.name}"

    @property
    def version(self) -> int:
        """As ``Memory.version``."""
        return self.division.version

    @property
    def identity(self) -> str:
        """As ``Memory.identity``."""
        return self.division.identity

    @property
    def lineage(self) -> str:
        """As ``Memory.lineage``."""
        return self.division.lineage

    @property
    def card(self) -> EncoderCard:
        """As ``Memory.card``."""
        return EncoderCard.from_json(self.division.card)

    def __len__(self) -> int:
        return self.division.num_rows

    def __repr__(self) -> str:
        return f"ShardedVersion({self.name!r}, version={self.version}, passages={len(self)})"

    def snapshot(self) -> ShardedVersion:
        """Itself."""
        return self

    def check(self, query_encoder: QueryEncoder) -> None:
        """As ``Memory.check``."""
        self.card.check_query_encoder(query_encoder)

    def warm_up(self, *, words: bool = False) -> None:
        """The shards are ready before a version is used."""

    def where(self, where: Where) -> FilteredShards:
        """As ``Memory.where``. Raises: InputError; MemoryStoreError if a shard does not answer."""
        return FilteredShards(self).where(where)

    def search(self, q: npt.NDArray[np.float32], k: int) -> SearchResult:
        """As ``Memory.search``, with the same scores and order.

        Raises: as ``Memory.search``; MemoryStoreError that names a shard that does not answer.
        """
        return self.found(q, k, len(self), where=None)

    def found(self, q: npt.NDArray[np.float32], k: int, num_passages: int, *, where: str | None) -> SearchResult:
        """The K best of those that satisfy a condition, of which there are ``num_passages``."""
        from latentrag.memory.indexes.index import merged

        q = checked_query(q, k, card=self.card, num_passages=num_passages, version=self.version, path=Path(self.name))
        parts: list[Found] = list(self._each("search", q, k, where).values())
        hits = merged([part.hits for part in parts], k)
        by_row = {row: passage for part in parts for row, passage in part.passages.items()}
        passages = [[by_row[row] for row in rows] for rows in hits.row_ids.tolist()]
        return SearchResult(passages, hits.vectors, hits.scores, self.version)

    def passages(self) -> Iterator[Passage]:
        """Every passage in the order of the table, streamed. Raises: MemoryStoreError."""
        for start in range(0, len(self), PASSAGES_PER_READ):
            yield from self.calls.any("read", (self.division.key, start, PASSAGES_PER_READ), self.division)

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """As ``Memory.get``."""
        by_id = self.find(ids)
        require_known(ids, by_id, f"not in {self.name}")
        return [by_id[key] for key in ids]

    def find(self, ids: Sequence[str], *, where: str | None = None) -> dict[str, Passage]:
        """The passages with these ids that satisfy a condition, by id; those that are not there are left out."""
        parts: list[dict[str, Passage]] = list(self._each("find", list(ids), where).values())
        return {key: passage for part in parts for key, passage in part.items()}

    def count(self, where: str) -> int:
        """How many passages satisfy a condition."""
        return sum(self._each("count", where).values())

    def check_fields(self, condition: Condition) -> None:
        """Raises: InputError for a field that no passage has, or a value of a kind that it never has."""
        fields = sorted({test.field for test in tests_of(condition)})
        parts = list(self._each("fields", fields).values())
        kinds: dict[str, set[str]] = {}
        for of_shard, _ in parts:
            for field, found in of_shard.items():
                if found is not None:
                    kinds.setdefault(field, set()).update(found)
        check_fields(condition, kinds.get, lambda: shown_names(set().union(*(names for _, names in parts))))

    def _each(self, method: str, *arguments: Any) -> Mapping[int, Any]:
        """The answer of every shard that has rows."""
        shards = [shard for shard, num_rows in enumerate(self.division.rows) if num_rows]
        return self.calls.each(method, dict.fromkeys(shards, (self.division.key, *arguments)), self.division)


@dataclass(frozen=True, eq=False)
class FilteredShards:
    """The passages of a sharded memory that satisfy a condition. A ``protocols.FilteredMemory``.

    Attributes:
        source: of a memory that is exchanged the version that is there when it is asked.
    """

    source: Any
    condition: Condition | None = None

    def where(self, where: Where) -> FilteredShards:
        """As ``FilteredMemory.where``."""
        condition = condition_of(where)
        self.base.check_fields(condition)
        return FilteredShards(self.source, both(self.condition, condition))

    def snapshot(self) -> FilteredShards:
        """Of the version that is there now."""
        return replace(self, source=self.base)

    @property
    def base(self) -> ShardedVersion:
        """The version that is filtered."""
        found: ShardedVersion = self.source.snapshot()
        return found

    @cached_property
    def _counts(self) -> dict[str, int]:
        return {}

    def _count(self, base: ShardedVersion) -> int:
        key = base.division.key
        if key not in self._counts:
            self._counts[key] = base.count(str(self.condition))
        return self._counts[key]

    @property
    def name(self) -> str:
        """As ``ShardedVersion.name``."""
        return self.base.name

    @property
    def version(self) -> int:
        """As ``Memory.version``."""
        return self.base.version

    @property
    def identity(self) -> str:
        """As ``FilteredMemory.identity``."""
        return f"{self.base.identity} where {self.condition}"

    @property
    def lineage(self) -> str:
        """As ``FilteredMemory.lineage``."""
        return f"{self.base.lineage} where {self.condition}"

    @property
    def card(self) -> EncoderCard:
        """As ``Memory.card``."""
        return self.base.card

    def __len__(self) -> int:
        return self._count(self.base)

    def search(self, q: npt.NDArray[np.float32], k: int) -> SearchResult:
        """As ``FilteredMemory.search``."""
        base = self.base
        num = self._require_some(base)
        return base.found(q, k if k < 1 else min(k, num), num, where=str(self.condition))

    def passages(self) -> Iterator[Passage]:
        """Those that are left, in the order of the table, streamed."""
        base = self.base
        for start in range(0, len(base), PASSAGES_PER_READ):
            page = base.calls.any("read", (base.division.key, start, PASSAGES_PER_READ), base.division)
            ids = [passage.id for passage in page]
            left = base.find(ids, where=str(self.condition))
            yield from (left[key] for key in ids if key in left)

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """As ``Memory.get``."""
        by_id = self.base.find(ids, where=str(self.condition))
        require_known(ids, by_id, "not among the passages that satisfy the condition")
        return [by_id[key] for key in ids]

    def require_some(self) -> None:
        """As ``FilteredMemory.require_some``."""
        self._require_some(self.base)

    def _require_some(self, base: ShardedVersion) -> int:
        num = self._count(base)
        if not num:
            raise InputError(f"0 passages satisfy {self.condition}; widen the condition")
        return num

    def check(self, query_encoder: QueryEncoder) -> None:
        """As ``Memory.check``."""
        self.source.check(query_encoder)


def require_same_rows(division: Division, loaded: Mapping[int, int]) -> None:
    """Before a version is used: the rows that the shards have loaded are those of the version.

    Raises: MemoryStoreError.
    """
    num_rows = sum(loaded.values())
    if num_rows != division.num_rows or any(division.rows[shard] != rows for shard, rows in loaded.items()):
        raise MemoryStoreError(
            f"the shards have {num_rows} of the {division.num_rows} passages of version {division.version}, so it is "
            "not used; verify the memory with `latentrag index verify`"
        )
