"""What a shard does: hold some rows of versions of a memory, with an index of its own, and search them.

It runs in an actor, whose methods are these. It is born knowing only where the memory lies: every request names the
version that it is about, and one that the shard does not hold is answered ``NotLoaded``, so that an actor that was
restarted never answers from another version than was asked.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from importlib.metadata import version as version_of_package
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np

from latentrag.addresses import home
from latentrag.cluster.connection import Register
from latentrag.cluster.division import Division
from latentrag.errors import (
    DataError,
    EncoderMismatchError,
    InputError,
    LatentRagError,
    MemoryStoreError,
    ModelError,
    UnknownVersionError,
)
from latentrag.types import Passage

if TYPE_CHECKING:
    import numpy.typing as npt

    from latentrag.conditions import Condition
    from latentrag.memory import Memory
    from latentrag.memory.documents import DocumentParts
    from latentrag.memory.filtered import Within
    from latentrag.memory.indexes import Hits

P = ParamSpec("P")
T = TypeVar("T")

KEPT_VERSIONS = 3
"""That a shard holds at a time: what is served, which it keeps whatever else is loaded, what was before, and what
another client asks, say a training run."""
PACKAGES = ("latentrag", "faiss-cpu", "numpy", "pylance")
"""What has to be the same on all nodes: results depend on it."""


class NotLoaded(NamedTuple):
    """The answer to a request about a version that the shard does not hold."""

    key: str


class Refused(NamedTuple):
    """The answer to a request that failed: an error of ``latentrag.errors`` by name, and its message."""

    error: str
    message: str

    def exception(self) -> LatentRagError:
        """To be raised where the request came from."""
        kinds = (DataError, EncoderMismatchError, InputError, ModelError, UnknownVersionError)
        return {kind.__name__: kind for kind in kinds}.get(self.error, MemoryStoreError)(self.message)


class Found(NamedTuple):
    """What a shard found: hits of B queries, the passages of their rows by row id, and how long it took."""

    hits: Hits
    passages: dict[int, Passage]
    seconds: float


class About(NamedTuple):
    """Where a shard runs, and what it holds: key → rows."""

    node: str
    host: str
    pid: int
    packages: dict[str, str]
    sees_memory: bool
    loaded: dict[str, int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a shard's rows and index come from.

    Attributes:
        name: of the memory in the cluster.
        path: of the memory, as the nodes see it.
        shard, num_shards: which of how many.
        index: its kind, or "auto".
        index_folder: on the node's disk; None: where latentrag keeps what it makes.
    """

    name: str
    path: str
    shard: int
    num_shards: int
    index: str
    index_folder: str | None


def packages() -> dict[str, str]:
    """The versions of ``PACKAGES`` here."""
    return {name: version_of_package(name) for name in PACKAGES}


def answers(method: Callable[P, T]) -> Callable[P, T | Refused]:
    """An error of ours is an answer, since it has to travel."""

    @wraps(method)
    def run(*args: P.args, **values: P.kwargs) -> T | Refused:
        try:
            return method(*args, **values)
        except LatentRagError as error:
            return Refused(type(error).__name__, str(error))

    return run


def of_version(
    method: Callable[Concatenate[Shard, Memory, P], T],
) -> Callable[Concatenate[Shard, str, P], T | NotLoaded | Refused]:
    """A request about the version that a key names: the method gets the shard's rows of it."""

    @answers
    @wraps(method)
    def run(shard: Shard, key: str, /, *args: P.args, **values: P.kwargs) -> T | NotLoaded:
        memory = shard.memory(key)
        return NotLoaded(key) if memory is None else method(shard, memory, *args, **values)

    return run


class Shard:
    """Rows of a memory, by version. Safe to call from several threads; a version is loaded while others are asked."""

    def __init__(self, place: Place) -> None:
        from latentrag.memory.indexes import IndexSupply

        self._place = place
        folder = home().path / "cluster" if place.index_folder is None else Path(place.index_folder).expanduser()
        self._folder = folder / place.name / f"{place.shard + 1}-of-{place.num_shards}"
        self._supply = IndexSupply(place.index, self._folder)
        self._memories: OrderedDict[str, Memory] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    @answers
    def about(self, key: str | None = None) -> About:
        """Needs no version. Args: key: of the one that is served, which counts as used last."""
        import ray.util

        if key is not None:
            self.memory(key)

        node = ray.get_runtime_context().get_node_id()
        with self._lock:
            loaded = {key: len(memory) for key, memory in self._memories.items()}
        sees = (Path(self._place.path) / "_versions").is_dir()
        return About(node, ray.util.get_node_ip_address(), os.getpid(), packages(), sees, loaded)

    @answers
    def divide(self, version: int | str | None, before: Division | None) -> Division:
        """Divide a version among the shards. Args: version: as for ``Memory.open``."""
        return Division.of(self._opened(version), self._place.num_shards, before)

    @answers
    def load(self, division: Division) -> int:
        """Hold a version from now on, its index ready. Returns: how many rows of it the shard has.

        Raises: MemoryStoreError if the memory cannot be read here, or is another one here.
        """
        with self._loading:
            known = self.memory(division.key)
            if known is None:
                known, served = self._loaded(division), _served(self._place.name)
                with self._lock:
                    self._memories[division.key] = known
                    others = [key for key in self._memories if key != served]
                    for key in others[: max(0, len(self._memories) - KEPT_VERSIONS)]:
                        del self._memories[key]
            return len(known)

    def _loaded(self, division: Division) -> Memory:
        from latentrag.memory import Memory
        from latentrag.memory.indexes.building import is_stored, kind_by_size

        whole = self._opened(division.version)
        if whole.identity != division.identity:
            raise MemoryStoreError(
                f"{self._place.path} holds another memory on this node than where it was divided; mount the same "
                "folder on every node"
            )
        rows = whole.table.some(division.units[self._place.shard])
        if is_stored(kind_by_size(self._place.index, len(rows))):
            with contextlib.suppress(OSError):  # which the build reports
                self._folder.mkdir(parents=True, exist_ok=True)
        memory = Memory(rows, self._supply)
        memory.warm_up()
        return memory

    def _opened(self, version: int | str | None) -> Memory:
        from latentrag.memory import Memory

        return Memory.open(self._place.path, version=version)

    def memory(self, key: str) -> Memory | None:
        """The rows of a version; None: it is not loaded."""
        with self._lock:
            if key in self._memories:
                self._memories.move_to_end(key)
            return self._memories.get(key)

    # About a version

    @of_version
    def search(self, memory: Memory, q: npt.NDArray[np.float32], k: int, within: Within | None) -> Found:
        """The K best rows of the shard, or all that are left if there are fewer."""
        began = time.perf_counter()
        num = len(memory) if within is None else memory.count(within.left)
        hits, passages = memory.hits(q, min(k, num), within=within) if num else (_no_hits(q), {})
        return Found(hits, passages, time.perf_counter() - began)

    @of_version
    def count(self, memory: Memory, where: Condition) -> int:
        """How many rows satisfy a condition; its fields may be here or not, since other shards may have them."""
        return memory.count(where)

    @of_version
    def find(self, memory: Memory, ids: Sequence[str], where: Condition | None) -> dict[str, Passage]:
        """The passages with these ids that the shard has, and that satisfy the condition."""
        return memory.find(ids, where=where)

    @of_version
    def of_documents(self, memory: Memory, names: Sequence[str], within: Within | None) -> DocumentParts:
        """The shard's passages of these documents, as ``Memory.of_documents``."""
        return memory.of_documents(names, within=within)

    @of_version
    def fields(
        self, memory: Memory, names: Sequence[str], scope: Condition | None
    ) -> tuple[dict[str, set[str] | None], set[str]]:
        """The kinds of values that fields have here (see ``Columns.kinds``), and the names of all fields, as far as
        passages of the scope have them."""
        mask = None if scope is None else memory.selection(scope).mask
        return {name: memory.columns.kinds(name, mask) for name in names}, memory.columns.stated_names(mask)

    @of_version
    def read(self, memory: Memory, start: int, num: int) -> list[Passage]:
        """Passages of the whole version in the table's order, so many from one place on. Any shard has them."""
        return list(replace(memory.table, part=None).passages_from(start, num))


def _served(name: str) -> str | None:
    """The key of the version that a memory's record names, which users ask; None before it names one."""
    division = (Register(name).read() or {}).get("division")
    return None if division is None else Division.of_record(division).key


def _no_hits(q: npt.NDArray[np.float32]) -> Hits:
    from latentrag.memory.indexes import Hits

    none = (len(q), 0)
    return Hits(np.empty(none, np.int64), np.empty((*none, q.shape[1]), np.float32), np.empty(none, np.float32))
