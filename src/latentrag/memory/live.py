"""A memory that is exchanged while it is searched."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from latentrag.conditions import Where
from latentrag.memory.filtered import FilteredMemory
from latentrag.memory.memory import Memory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latentrag import protocols
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


class LiveMemory:
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

    def where(self, where: Where) -> FilteredMemory:
        """As ``Memory.where``, of whichever memory is there."""
        return FilteredMemory(self).where(where)

    def only(self, scope: Where) -> FilteredMemory:
        """As ``Memory.only``, of whichever memory is there."""
        return FilteredMemory(self).only(scope)

    # As a memory

    @property
    def name(self) -> str:
        """As ``Memory.name``."""
        return self._memory.name

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
