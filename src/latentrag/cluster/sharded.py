"""A memory whose rows lie with the shards of a cluster, searched as one: exact scores of all shards, merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrag.cluster.calls import Calls, Replies
from latentrag.cluster.division import Division
from latentrag.cluster.shard import Refused
from latentrag.conditions import Condition, tests_of
from latentrag.errors import InputError, MemoryStoreError, UnavailableError, command
from latentrag.ids import document_of
from latentrag.memory import EncoderCard, FilteredMemory, Memory
from latentrag.memory.columns import check_fields, shown_names
from latentrag.memory.documents import DocumentParts, around
from latentrag.memory.filtered import Filterable, Within
from latentrag.memory.history import SERVED
from latentrag.memory.memory import PASSAGES_PER_READ, checked_query
from latentrag.memory.schema import require_known
from latentrag.types import Passage, SearchResult

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latentrag.cluster.shard import Found
    from latentrag.protocols import QueryEncoder

START_S = 180.0
"""How long actors may take to start."""
KEPT_COUNTS = 64
"""Of conditions, that a version remembers."""


@dataclass(frozen=True, eq=False)
class ShardedVersion(Filterable[FilteredMemory]):
    """One version of a memory, divided among shards; it never changes. A ``memory.ServedVersion``.

    Passages are the shards'. Other versions and their names are read in the memory's folder (``stored``).

    Attributes:
        path: of the memory, as the nodes see it.
        partial: whether a search is done without shards that do not answer, and says so. All else needs all shards.
    """

    calls: Calls
    division: Division
    path: Path
    partial: bool = False
    _counts: dict[str, int] = field(default_factory=dict)

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

    def filtered(self) -> FilteredMemory:
        """As ``Filterable.filtered``."""
        return FilteredMemory(self)

    def check(self, query_encoder: QueryEncoder) -> None:
        """As ``Memory.check``."""
        self.card.check_query_encoder(query_encoder)

    def warm_up(self, *, words: bool = False) -> None:
        """The shards are ready before a version is used."""

    # Versions

    @cached_property
    def stored(self) -> Memory:
        """The same version as a memory in its folder, whose passages and indexes nobody has read yet.

        Raises: MemoryStoreError where this machine does not see the folder, or another memory in its place.
        """
        if not (self.path / "_versions").is_dir():
            raise MemoryStoreError(
                f"this machine does not see {self.path}, the folder of {self.name}, where its versions and documents "
                "are read; mount it here under the same path"
            )
        found = Memory.open(self.path, version=self.version)
        if found.identity != self.identity:
            raise MemoryStoreError(
                f"{self.path} holds another memory on this machine than {self.name}; mount the same folder here"
            )
        return found

    @property
    def chosen(self) -> None:
        """None: a cluster serves one version, and it is not known why."""

    def serve(self, version: int | None) -> None:
        """Nothing: the cluster keeps what ``ShardedMemory.use`` has chosen."""

    def number_of(self, which: int | str | None) -> int | None:
        """As ``Memory.number_of``; "served" is this version. Raises: as ``stored``, for all but numbers."""
        if isinstance(which, int) or (which is not None and which.isascii() and which.isdigit()):
            return int(which)
        return self.version if which == SERVED else self.stored.number_of(which)

    def at(self, version: int | str | None) -> ShardedVersion:
        """Another version, loaded by the shards beside this one. Args: version: as for ``Memory.open``.

        Raises: MemoryStoreError.
        """
        division = divided(self.calls, version, self.division)
        if division.key == self.division.key:
            return self
        load(self.calls, division)
        return ShardedVersion(self.calls, division, self.path, self.partial)

    # Passages

    def search(self, q: npt.NDArray[np.float32], k: int, *, within: Within | None = None) -> SearchResult:
        """As ``Memory.search``, with the same scores and order. A partial one that has fewer than K passages left finds
        these.

        Raises: as ``Memory.search``; UnavailableError that names a shard that does not answer, where none may be
            missing or nothing is found.
        """
        from latentrag.memory.indexes.index import merged

        path = Path(self.name)
        q = checked_query(q, k, card=self.card, num_passages=len(self), version=self.version, path=path)
        found: dict[int, Found]
        found, why_missing = self._some("search", q, k, within)
        self.calls.search_s.update({shard: part.seconds for shard, part in found.items()})
        parts = list(found.values())
        left = sum(part.hits.row_ids.shape[1] for part in parts)
        if not left:
            self.calls.require(why_missing)
        hits = merged([part.hits for part in parts], min(k, left))
        by_row = {row: passage for part in parts for row, passage in part.passages.items()}
        passages = [[by_row[row] for row in rows] for rows in hits.row_ids.tolist()]
        missing = tuple(map(self.calls.named, why_missing))
        return SearchResult(passages, hits.vectors, hits.scores, self.version, missing)

    def passages(self, *, where: Condition | None = None) -> Iterator[Passage]:
        """As ``Memory.passages``. Raises: MemoryStoreError."""
        for start in range(0, len(self), PASSAGES_PER_READ):
            page = self.calls.any("read", (self.division.key, start, PASSAGES_PER_READ), self.division)
            left = None if where is None else self.find([passage.id for passage in page], where=where)
            yield from (passage for passage in page if left is None or passage.id in left)

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """As ``Memory.get``."""
        by_id = self.find(ids)
        require_known(ids, by_id, f"not in {self.name}")
        return [by_id[key] for key in ids]

    def find(self, ids: Sequence[str], *, where: Condition | None = None) -> dict[str, Passage]:
        """As ``Memory.find``."""
        parts: list[dict[str, Passage]] = list(self._each("find", list(ids), where).values())
        return {key: passage for part in parts for key, passage in part.items()}

    def around(
        self, ids: Sequence[str], num: int, *, within: Within | None = None
    ) -> list[tuple[list[Passage], list[Passage]]]:
        """As ``Memory.around``. The passages of a document may lie with several shards."""
        names = list(dict.fromkeys(map(document_of, ids)))
        parts: list[DocumentParts] = list(self._each("of_documents", names, within).values())
        return around(ids, num, {name: [each for part in parts for each in part[name]] for name in names})

    def count(self, where: Condition) -> int:
        """As ``Memory.count``; of a partial one those of the shards that answer, if there are any."""
        name = str(where)
        known = self._counts.get(name)
        if known is not None:
            return known
        counts, why_missing = self._some("count", where)
        num: int = sum(counts.values())
        if not num:
            self.calls.require(why_missing)
        if not why_missing:
            if len(self._counts) >= KEPT_COUNTS:
                self._counts.clear()
            self._counts[name] = num
        return num

    def check_fields(self, condition: Condition, *, scope: Condition | None = None) -> None:
        """As ``Memory.check_fields``."""
        fields = sorted({test.field for test in tests_of(condition)})
        answers, why_missing = self._some("fields", fields, scope)
        parts = list(answers.values())
        kinds: dict[str, set[str]] = {}
        for of_shard, _ in parts:
            for name, found in of_shard.items():
                if found is not None:
                    kinds.setdefault(name, set()).update(found)
        try:
            check_fields(condition, kinds.get, lambda: shown_names(set().union(*(names for _, names in parts))))
        except InputError:
            self.calls.require(why_missing)  # which may have the field
            raise

    def _each(self, method: str, *arguments: Any) -> dict[int, Any]:
        """The answer of every shard that has rows."""
        return self.calls.each(method, self._to_each(*arguments), self.division)

    def _some(self, method: str, *arguments: Any) -> Replies:
        """The same, without those that do not answer where some may be missing."""
        if not self.partial:
            return Replies(self._each(method, *arguments), {})
        replies = self.calls.some(method, self._to_each(*arguments), self.division)
        if not replies.answers:
            self.calls.require(replies.why_missing)
        return replies

    def _to_each(self, *arguments: Any) -> dict[int, tuple[Any, ...]]:
        shards = [shard for shard, num_rows in enumerate(self.division.rows) if num_rows]
        return dict.fromkeys(shards, (self.division.key, *arguments))


def divided(calls: Calls, version: int | str | None, before: Division | None) -> Division:
    """A version divided among the shards, by a node, since this process need not see the memory.

    Raises: MemoryStoreError.
    """
    replies = calls.every("divide", (version, before), timeout_s=START_S)
    for reply in replies.values():
        if isinstance(reply, Division):
            return reply
    refused = next((reply for reply in replies.values() if isinstance(reply, Refused)), None)
    if refused is not None:
        raise refused.exception()
    raise UnavailableError(f"no shard of cluster:{calls.name} answers; {command('cluster', 'status', calls.name)}")


def load(calls: Calls, division: Division) -> None:
    """Every replica that is there loads the version. Raises: MemoryStoreError unless all rows are there."""
    loaded: dict[int, int] = {}
    why: dict[int, str] = {}
    for (shard, _), reply in calls.load(division, timeout_s=START_S).items():
        if isinstance(reply, int):
            loaded[shard] = reply
        else:
            why[shard] = reply.message if isinstance(reply, Refused) else "its actor is not there or restarts"
    for shard in range(calls.num_shards):
        if shard not in loaded:
            raise MemoryStoreError(f"{calls.named(shard)} cannot load version {division.version}: {why[shard]}")
    require_same_rows(division, loaded)


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
