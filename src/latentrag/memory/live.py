"""A memory that is exchanged while it is searched."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from latentrag.memory.filtered import Filterable, FilteredMemory, FilteredTable, Source, Version
from latentrag.memory.memory import Memory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latentrag import protocols
    from latentrag.conditions import Condition, Where
    from latentrag.memory.object_path import Folder
    from latentrag.protocols import QueryEncoder
    from latentrag.types import Passage, SearchResult


class Searching:
    """The query encoders that search a memory which is exchanged; a model that is exchanged goes."""

    def __init__(self) -> None:
        self._encoders: list[weakref.ref[QueryEncoder]] = []

    def __len__(self) -> int:
        return len(self._present())

    def add(self, query_encoder: QueryEncoder) -> None:
        """One more, if it is not among them."""
        present = self._present()
        if not any(encoder is query_encoder for encoder in present):
            present.append(query_encoder)
        self._encoders = [weakref.ref(encoder) for encoder in present]

    def check(self, memory: protocols.Memory) -> None:
        """Raises: EncoderMismatchError if the memory does not fit one of them."""
        for encoder in self._present():
            memory.check(encoder)

    def _present(self) -> list[QueryEncoder]:
        return [encoder for each in self._encoders if (encoder := each()) is not None]


class ServedVersion(Version, Protocol):
    """A version that a server answers from, wherever its rows lie; see ``Memory``."""

    @property
    def path(self) -> Folder: ...
    @property
    def stored(self) -> Memory:
        """The same version in its folder: for its table, other versions and their names.

        Raises: MemoryStoreError where this machine does not see the folder.
        """
        ...

    @property
    def chosen(self) -> int | None: ...
    def __len__(self) -> int: ...
    def snapshot(self) -> ServedVersion: ...
    def get(self, ids: Sequence[str]) -> list[Passage]: ...
    def number_of(self, which: int | str | None) -> int | None: ...
    def at(self, version: int | str | None) -> ServedVersion: ...
    def serve(self, version: int | None) -> None: ...
    def only(self, scope: Where) -> FilteredMemory: ...
    def beside(self, untold: Condition) -> FilteredMemory: ...


class ServedMemory(Source, Protocol):
    """What a server answers from: it holds one version at a time, and others can take its place; see ``LiveMemory``.

    Its properties say what it holds as far as this process knows, at once.
    """

    @property
    def path(self) -> Folder: ...
    def __len__(self) -> int: ...
    def snapshot(self) -> ServedVersion: ...
    def use(self, which: Any) -> ServedVersion: ...
    def where(self, where: Where) -> FilteredMemory: ...
    def only(self, scope: Where) -> FilteredMemory: ...
    def search(self, q: npt.NDArray[np.float32], k: int) -> SearchResult: ...
    def passages(self) -> Iterator[Passage]: ...
    def get(self, ids: Sequence[str]) -> list[Passage]: ...
    def watched(self) -> AbstractContextManager[None]:
        """Within: ``health`` is kept up to date."""
        ...

    def health(self) -> Health:
        """Known at once, whatever does not answer."""
        ...


class ShardHealth(NamedTuple):
    """A shard of a memory that lies with several machines.

    Attributes:
        shard: counted from 1.
        rows: that it has of the version that is served.
        replicas: that it should have.
        there, ready: how many of them answer, and hold that version.
        failed_tries: calls of this process to its replicas that failed.
        search_seconds: its last search for this process, without what the call takes; None: there was none.
    """

    shard: int
    rows: int
    replicas: int
    there: int
    ready: int
    failed_tries: int
    search_seconds: float | None


class Health(NamedTuple):
    """How a served memory is.

    Attributes:
        problem: why questions cannot be answered now; None: they can.
        shards: where it lies with several machines.
    """

    problem: str | None = None
    shards: tuple[ShardHealth, ...] = ()


class LiveMemory(Filterable[FilteredTable]):
    """A place that holds one ``Memory`` at a time: what a server gives its retriever, to serve another version later.

    Each call goes to the memory that is there when it begins and never sees another. Callers that need several reads of
    one version should take a ``snapshot`` first, as the retrievers do for every question: an answer comes from one
    version, however many searches it takes. Memories themselves never change, so nobody waits for anybody.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._encoders = Searching()
        self._exchange = threading.Lock()

    def snapshot(self) -> Memory:
        """The memory that is there now; it stays what it is whatever is used later."""
        return self._memory

    def use(self, which: Memory | int | str | None) -> Memory:
        """Answer from another version, or from another memory, from now on.

        It is opened and its index built before the exchange; until then, and if anything fails, the old one serves.

        Args:
            which: a memory, or a version of the one that is there, as for ``Memory.open``, searched as that one is.
        Returns: the memory that was there before, to go back to.
        Raises: MemoryStoreError; EncoderMismatchError if it does not fit a query encoder that searches here.
        """
        with self._exchange:
            before = self._memory
            memory = which if isinstance(which, Memory) else before.at(which)
            self._encoders.check(memory)
            memory.warm_up(words=before.has_words)
            self._memory = memory
            return before

    def check(self, query_encoder: QueryEncoder) -> None:
        """As ``Memory.check``, also for every memory that is used later."""
        with self._exchange:
            self._memory.check(query_encoder)
            self._encoders.add(query_encoder)

    def filtered(self) -> FilteredTable:
        """As ``Filterable.filtered``, of whichever memory is there."""
        return FilteredTable(self)

    def watched(self) -> AbstractContextManager[None]:
        """It is in this process: there is nothing to watch."""
        return nullcontext()

    def health(self) -> Health:
        """Well."""
        return Health()

    # As a memory

    @property
    def name(self) -> str:
        """As ``Memory.name``."""
        return self._memory.name

    @property
    def path(self) -> Folder:
        """Of the memory that is there now."""
        return self._memory.path

    @property
    def version(self) -> int:
        """Of the memory that is there now."""
        return self._memory.version

    @property
    def identity(self) -> str:
        """As ``Memory.identity``."""
        return self._memory.identity

    @property
    def lineage(self) -> str:
        """As ``Memory.lineage``."""
        return self._memory.lineage

    def __len__(self) -> int:
        return len(self._memory)

    def __repr__(self) -> str:
        return f"LiveMemory({self._memory!r})"

    def passages(self) -> Iterator[Passage]:
        """As ``Memory.passages``."""
        return self._memory.passages()

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """As ``Memory.get``."""
        return self._memory.get(ids)

    def around(self, ids: Sequence[str], num: int) -> list[tuple[list[Passage], list[Passage]]]:
        """As ``Memory.around``."""
        return self._memory.around(ids, num)

    def search(self, q: npt.NDArray[np.float32], k: int) -> SearchResult:
        """As ``Memory.search``."""
        return self._memory.search(q, k)
