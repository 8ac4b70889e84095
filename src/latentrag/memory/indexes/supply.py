"""Which index serves a version: the one in hand, one from the disk, or one built now."""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from latentrag.errors import IndexDamagedError
from latentrag.memory.indexes import files
from latentrag.memory.indexes.building import build, kind_by_size, opened, plan, shown
from latentrag.memory.indexes.changes import (
    Difference,
    Fragment,
    difference,
    fragments,
    require_same_rows,
    rows_with,
    some_of,
    stream,
)
from latentrag.memory.indexes.files import Published
from latentrag.memory.indexes.flat import FlatIndex
from latentrag.memory.indexes.protocol import BaseIndex, Index, Rows
from latentrag.memory.indexes.renewal import Renewal
from latentrag.memory.indexes.revised import revised
from latentrag.memory.indexes.stored import StoredIndex
from latentrag.types import IndexChoice

if TYPE_CHECKING:
    from latentrag.memory.table import Table

DRIFT_TO_RENEW = 0.1
"""Share of an index's rows that may have changed before it should be built anew: what was added since is searched
exactly in RAM, and what was deleted is still scanned."""
DRIFT_TO_REFUSE = 0.5
"""Beyond this it is as if there were none."""


@dataclass(frozen=True, slots=True)
class _InHand:
    """An index that is loaded, and what it was made of. name: of its folder; "" for one that has none."""

    index: BaseIndex
    fingerprint: str
    fragments: list[Fragment]
    name: str = ""


class _Candidate(NamedTuple):
    """A published index, how much has changed since, and as a share."""

    published: Published
    changes: Difference
    share: float


class IndexSupply:
    """Indexes for the versions of one memory; safe to call from several threads.

    Whatever was loaded last is kept and serves the versions near it, so that a commit costs what it changed.

    Args:
        renew: build in the background an index that has drifted, where otherwise a warning says so.
    """

    def __init__(self, choice: IndexChoice, *, renew: bool = False) -> None:
        self.choice = choice
        self.renewal = Renewal() if renew else None
        self._in_hand: _InHand | None = None
        self._said: set[str] = set()
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def anew(self) -> IndexSupply:
        """One with the same choices and nothing in hand."""
        return IndexSupply(self.choice, renew=self.renewal is not None)

    def index_for(self, table: Table) -> Index:
        """The index of this version; ``table`` is not empty.

        A file that is damaged is said in a warning, thrown away, and done without.

        Raises: InputError if there is not enough memory for it; MemoryStoreError if it cannot be built.
        """
        with self._lock:
            return self._from_hand(table) or self._from_disk(table) or self._built(table)

    def throw_away(self, error: IndexDamagedError) -> None:
        """Do without an index that was found damaged while it was searched."""
        with self._lock:
            self._in_hand = None
            self._discard(error)

    def _from_hand(self, table: Table) -> Index | None:
        held = self._in_hand
        if held is None or held.fingerprint != table.manifest.fingerprint:
            return None
        changes = difference(table, held.fragments, held.index.row_ids)
        if changes.share(len(held.index.row_ids)) > DRIFT_TO_RENEW:
            return None
        try:
            return serving(held.index, changes, table)
        except IndexDamagedError as error:
            self._in_hand = None
            self._discard(error)
            return None

    def _from_disk(self, table: Table) -> Index | None:
        """The published index that has drifted least, if any will do."""
        for found in sorted(self._candidates(table), key=lambda each: each.share):
            try:
                index = self._loaded(found.published)
                served = serving(index, found.changes, table)
            except FileNotFoundError:
                continue  # thrown away at this moment for a newer one
            except IndexDamagedError as error:
                self._discard(error)
                continue
            of = found.published.description
            self._in_hand = _InHand(index, of.fingerprint, of.fragments, of.name)
            if found.share > DRIFT_TO_RENEW:
                self._drifted(table, found)
            return served
        return None

    def _candidates(self, table: Table) -> list[_Candidate]:
        """Of the kind chosen, of the table's encoder, and not too far from the version."""
        if self.choice == "flat":
            return []
        found, damaged = files.find(table.path)
        for error in damaged:
            self._discard(error)
        usable: list[_Candidate] = []
        for published in found:
            of = published.description
            if self.choice not in {"auto", of.kind} or of.fingerprint != table.manifest.fingerprint:
                continue
            if of.name in self._refused:
                continue
            try:
                changes = difference(table, of.fragments, files.row_ids(published))
            except FileNotFoundError:
                continue
            except IndexDamagedError as error:
                self._discard(error)
                continue
            share = changes.share(of.num_rows)
            if share <= DRIFT_TO_REFUSE:
                usable.append(_Candidate(published, changes, share))
        return usable

    def _discard(self, error: IndexDamagedError) -> None:
        """Say it in one line, once, and throw it away, or at least do without it."""
        folder = error.file.parent
        if folder.name in self._refused:
            return
        warnings.warn(f"{error}; this index is thrown away", stacklevel=2)
        files.discard(folder)
        if folder.exists():  # it may not be removed
            self._refused.add(folder.name)

    def _loaded(self, published: Published) -> BaseIndex:
        if self._in_hand is not None and self._in_hand.name == published.description.name:
            return self._in_hand.index
        return opened(published)

    def _drifted(self, table: Table, found: _Candidate) -> None:
        of = found.published.description
        if self.renewal is not None:
            self.renewal.start(table, of.kind)
        elif of.name not in self._said:
            self._said.add(of.name)
            warnings.warn(
                f"{found.share:.0%} of {table.path} has changed since its index was built at version {of.version}; "
                f"`latentrag index build {table.path}` makes searches as fast again as they were",
                stacklevel=2,
            )

    def _built(self, table: Table) -> Index:
        kind = kind_by_size(self.choice, len(table))
        planned = plan(kind, len(table), table.manifest.dimension)
        if kind == "flat":
            flat = FlatIndex.build(stream(table), table.manifest.dimension)
            self._in_hand = _InHand(flat, table.manifest.fingerprint, fragments(table))
            return flat
        if self.choice == "auto":
            warnings.warn(
                f"{table.path} has {len(table)} passages and no index of use: {kind} is built now, once; "
                f"`latentrag index build {table.path}` does it beforehand",
                stacklevel=2,
            )
        with shown(False) as progress:
            published = build(table, planned, progress=progress)
        index, of = opened(published), published.description
        self._in_hand = _InHand(index, of.fingerprint, of.fragments, of.name)
        return index


def serving(index: BaseIndex, changes: Difference, table: Table) -> Index:
    """An index of one version as that of another. Raises: IndexDamagedError if it is another memory's."""
    if len(changes.moved) and isinstance(index, StoredIndex):
        some = some_of(changes.moved)
        require_same_rows(table, index.rows(some), index.passages(some), file=index.vectors.path)
    added = Rows(changes.added, np.empty((0, table.manifest.dimension), np.float16))
    return revised(index, changes.removed, rows_with(table, changes.added) if len(changes.added) else added)
