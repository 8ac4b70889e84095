"""Which index serves a version: the one that is loaded, one from the disk, or one built now."""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentrag.errors import IndexDamagedError, command
from latentrag.memory.indexes.building import (
    AUTO,
    INDEX_KINDS,
    build,
    is_stored,
    kind_by_size,
    opened,
    plan,
    require_choice,
)
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
from latentrag.memory.indexes.folder import ROW_IDS, IndexFolder, Published, discard
from latentrag.memory.indexes.index import BaseIndex, Index, Rows
from latentrag.memory.indexes.stored import StoredIndex, mapped_numbers
from latentrag.memory.indexes.words import WordSupply

if TYPE_CHECKING:
    from latentrag.memory.table import Table

DRIFT_TO_RENEW = 0.1
"""Share of an index's rows that may have changed before it should be built anew: what was added since is searched
exactly in RAM, and what was deleted is still scanned."""
DRIFT_TO_REFUSE = 0.5
"""Share of changed rows above which an index is not used."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An index in RAM, and what it was made from. name: of its folder; "" if it has none."""

    index: BaseIndex
    fingerprint: str
    fragments: list[Fragment]
    name: str = ""


class IndexSupply:
    """Indexes for the versions of one memory; safe to call from several threads.

    The index loaded last is kept and serves the versions near it, so that a commit costs what it changed.

    Args:
        choice: a kind of index, or "auto".
        folder: where the memory's indexes lie; None: in the memory. No other memory may use it.
    Raises: InputError for a kind that does not exist.
    """

    def __init__(self, choice: str = AUTO, folder: Path | None = None) -> None:
        require_choice(choice)
        self.choice = choice
        self.words = WordSupply()
        self._path = folder
        self._loaded: _Loaded | None = None
        self._warned: set[str] = set()
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def anew(self) -> IndexSupply:
        """One with the same choices and nothing loaded."""
        return IndexSupply(self.choice, self._path)

    def folder(self, table: Table) -> IndexFolder:
        """Where the indexes of the memory with this table lie."""
        return IndexFolder.of(table.storage.local, self._path)

    def index_for(self, table: Table) -> Index:
        """The index of this version; ``table`` is not empty.

        A damaged index is reported in a warning, thrown away and replaced by another one.

        Raises: InputError if there is not enough memory for it; MemoryStoreError if it cannot be built.
        """
        with self._lock:
            return self._from_loaded(table) or self._from_disk(table) or self._built(table)

    def throw_away(self, error: IndexDamagedError) -> None:
        """Do without an index that turned out to be damaged while it was searched."""
        with self._lock:
            self._loaded = None
            self._discard(error)

    def _from_loaded(self, table: Table) -> Index | None:
        loaded = self._loaded
        if loaded is None or loaded.fingerprint != table.card.fingerprint:
            return None
        changes = difference(table, loaded.fragments, loaded.index.row_ids)
        if changes.share(len(loaded.index.row_ids)) > DRIFT_TO_RENEW:
            return None
        try:
            return serving(loaded.index, changes, table)
        except IndexDamagedError as error:
            self._loaded = None
            self._discard(error)
            return None

    def _from_disk(self, table: Table) -> Index | None:
        """The usable published index that has drifted least."""
        for share, published, changes in sorted(self._usable(table), key=itemgetter(0)):
            of = published.description
            try:
                index = self._opened(published)
                served = serving(index, changes, table)
            except FileNotFoundError:
                continue  # thrown away at this moment for a newer one
            except IndexDamagedError as error:
                self._discard(error)
                continue
            self._loaded = _Loaded(index, of.fingerprint, of.fragments, of.name)
            if share > DRIFT_TO_RENEW:
                self._warn_once(
                    of.name,
                    f"{share:.0%} of {table.path} has changed since its index was built at version "
                    f"{of.version}; {command('index', 'build', table.path)} makes searches as fast again as they were",
                )
            return served
        return None

    def _usable(self, table: Table) -> list[tuple[float, Published, Difference]]:
        """Published indexes of the chosen kind and the table's encoder that are not too far from the version: the
        share of rows that changed since one was built, the index, the changes."""
        if self.choice != AUTO and not is_stored(self.choice):
            return []
        indexes, damaged = self.folder(table).indexes()
        for error in damaged:
            self._discard(error)
        usable = []
        for published in indexes:
            of = published.description
            if self.choice not in {AUTO, of.kind} or not is_stored(of.kind) or of.name in self._refused:
                continue
            if of.fingerprint != table.card.fingerprint:
                continue
            try:
                changes = difference(table, of.fragments, mapped_numbers(published.folder / ROW_IDS, of.num_rows))
            except FileNotFoundError:
                continue
            except IndexDamagedError as error:
                self._discard(error)
                continue
            share = changes.share(of.num_rows)
            if share <= DRIFT_TO_REFUSE:
                usable.append((share, published, changes))
        return usable

    def _discard(self, error: IndexDamagedError) -> None:
        """Report it in one line, once, and throw it away, or at least do without it."""
        folder = error.file.parent
        if folder.name in self._refused:
            return
        warnings.warn(f"{error}; this index is thrown away", stacklevel=2)
        discard(folder)
        if folder.exists():  # it may not be removed
            self._refused.add(folder.name)

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(text, stacklevel=2)

    def _opened(self, published: Published) -> BaseIndex:
        if self._loaded is not None and self._loaded.name == published.description.name:
            return self._loaded.index
        return opened(published)

    def _built(self, table: Table) -> Index:
        kind = kind_by_size(self.choice, len(table))
        planned = plan(kind, len(table), table.card.dimension)
        in_ram = INDEX_KINDS[kind].in_ram
        if in_ram is not None:
            self._warn_of_unknown_kinds(table, kind)
            index = in_ram(stream(table), table.card.dimension, len(table))
            self._loaded = _Loaded(index, table.card.fingerprint, fragments(table))
            return index
        if self.choice == AUTO:
            warnings.warn(
                f"{table.path} has {len(table)} passages and no index of use: {kind} is built now, once; "
                f"{command('index', 'build', table.path)} does it beforehand",
                stacklevel=2,
            )
        published = build(table, kind, planned, folder=self.folder(table), progress=lambda *_: None)
        stored, of = opened(published), published.description
        self._loaded = _Loaded(stored, of.fingerprint, of.fragments, of.name)
        return stored

    def _warn_of_unknown_kinds(self, table: Table, used: str) -> None:
        """Indexes of kinds that earlier versions of the library had are not used."""
        if self.choice != AUTO:
            return
        kinds = sorted({published.description.kind for published in self.folder(table).indexes()[0]})
        if unknown := ", ".join(kind for kind in kinds if kind not in INDEX_KINDS):
            self._warn_once(
                unknown,
                f"{table.path} has an index of a kind that is no longer supported ({unknown}); {used} is used instead; "
                f"build an index again with {command('index', 'build', table.path)}, which removes the old one",
            )


def serving(index: BaseIndex, changes: Difference, table: Table) -> Index:
    """An index of one version as that of another. Raises: IndexDamagedError if it is another memory's."""
    from latentrag.memory.indexes.flat import revised

    if len(changes.moved) and isinstance(index, StoredIndex):
        some = some_of(changes.moved)
        require_same_rows(table, index.rows(some), index.passages(some), file=index.vectors.path)
    added = Rows(changes.added, np.empty((0, table.card.dimension), np.float16))
    return revised(index, changes.removed, rows_with(table, changes.added) if len(changes.added) else added)
