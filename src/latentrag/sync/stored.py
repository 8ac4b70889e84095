"""What the memory has of the files that a sync reads, looked up some files at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from latentrag.corpus.aligning import Stored
from latentrag.corpus.readers import File
from latentrag.ids import ids_among
from latentrag.memory import Memory, origins
from latentrag.memory.origins import StoredRows
from latentrag.sync.journal import Fact, Journal
from latentrag.types import Passage

_FILES_PER_LOOKUP = 64


class StoredFiles:
    """Asked for one file after the other, in the order in which they are read.

    Args:
        base: the memory as the sync found it.
        to_read: names of the files, in this order.
        missing: names of files that are gone. A new file with the bytes of one of these is that file, renamed.
        reading: says how passages are made now, as facts have it; asked if the memory has passages of a file.
    """

    def __init__(
        self,
        base: Memory | None,
        journal: Journal,
        to_read: Sequence[str],
        missing: Sequence[str],
        reading: Callable[[], str],
    ) -> None:
        self._base, self._reading = base, reading
        self._names, self._places = to_read, {name: i for i, name in enumerate(to_read)}
        self._known = frozenset(journal.in_memory)
        self._facts = {name: journal.facts[name] for name in (*to_read, *missing) if name in journal.facts}
        self._renamed = {self._facts[name].sha256: name for name in missing if name in self._facts}
        self._rows: Mapping[str, StoredRows] = {}
        self._looked_up: Collection[str] = ()

    def rows(self, name: str) -> StoredRows:
        """The passages of a file; none if the memory has none."""
        if self._base is None or name not in self._known:
            return StoredRows()
        if name not in self._looked_up:
            place = self._places.get(name)
            names = [name] if place is None else self._names[place : place + _FILES_PER_LOOKUP]
            self._looked_up = self._known & {*names}
            self._rows = origins.stored_rows(self._base, self._looked_up)
        return self._rows.get(name, StoredRows())

    def of(self, file: File, fact: Fact) -> Stored:
        """What a new reading of the file keeps. Args: fact: about the bytes that are read now."""
        was = file.name
        if was not in self._known:
            was = self._renamed.get(fact.sha256, was)
        rows = self.rows(was)
        return Stored(
            file.name,
            ids_among(sorted(rows.row_ids)),
            lambda ids: self._fetch([rows.row_ids[key] for key in ids]),
            has=lambda passage: rows.digests.get(passage.id) == origins.digest(passage),
            cuts=self._cuts(was),
            was=was,
        )

    def _fetch(self, row_ids: Sequence[int]) -> list[Passage]:
        assert self._base is not None
        return list(self._base.table.take(row_ids).values())

    def _cuts(self, name: str) -> Literal["all", "long", "none"]:
        """No old cut is kept if passages are to have another length, only long passages if the encoder is another."""
        if self._base is None or name not in self._facts:
            return "long"
        now = json.loads(self._reading())
        then = {**now, **json.loads(self._facts[name].reading)}  # at first it did not name the encoder
        if then["words"] != now["words"]:
            return "none"
        return "all" if then["encoder"] == now["encoder"] else "long"
