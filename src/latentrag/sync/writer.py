"""The memory's side of a sync: which passages have to be written, and their commits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from latentrag.memory import Memory, Writer, origins
from latentrag.sync.folder import Contents, SkippedError
from latentrag.sync.journal import Fact, Journal
from latentrag.sync.report import Counts
from latentrag.types import Passage

if TYPE_CHECKING:
    from latentrag.protocols import PassageEncoder


@dataclass(slots=True)
class _Chunk:
    """What the next commit will hold.

    Attributes:
        passages: new, or in the place of others.
        row_ids: for those whose vector the memory has already: place in ``passages`` → row id of the base.
        removed_ids: of passages that go, replaced ones included.
        facts: about the files that are complete with this commit.
    """

    passages: list[Passage] = field(default_factory=list)
    row_ids: dict[int, int] = field(default_factory=dict)
    removed_ids: dict[str, None] = field(default_factory=dict)
    facts: dict[str, Fact] = field(default_factory=dict)
    added: int = 0
    changed: int = 0
    removed: int = 0


class FolderWriter:
    """Gathers passages and commits them in chunks. With ``dry_run`` it does all but that.

    Args:
        path: of the memory, which is made with the first commit if ``base`` is None.
        base: the memory as the sync found it. Vectors that can be kept are read from there.
        name: of the folder.
        journal: knows what the base has of each file, is told after each commit.
        reusable: files whose passages may go or change, so that others may have their vectors.
        limit: passages in a commit.
        on_passages: called with the number of passages made ready since the last call.
    """

    def __init__(
        self,
        path: Path,
        base: Memory | None,
        *,
        name: str,
        journal: Journal,
        encoder: Callable[[], PassageEncoder],
        reusable: Set[str],
        counts: Counts,
        limit: int,
        dry_run: bool,
        on_passages: Callable[[int], None],
    ) -> None:
        self.version = None if base is None else base.version
        self.num_passages = 0 if base is None else len(base)
        self._path = path
        self._base = base
        self._name = name
        self._journal = journal
        self._load_encoder = encoder
        self._reusable = reusable
        self._counts = counts
        self._limit = limit
        self._dry_run = dry_run
        self._on_passages = on_passages
        self._memory: Writer | None = None
        self._writing = ExitStack()
        self._owners: dict[str, str] | None = None
        self._vector_rows: dict[bytes, int] | None = None
        # Files of which the memory holds something else than the journal says.
        self._unsure: set[str] = set()
        self._known_vectors = None if base is None else origins.KnownVectors(base)
        self._chunk = _Chunk()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Others may write from now on."""
        self._writing.__exit__(kind, error, traceback)

    def is_sure_of(self, name: str) -> bool:
        """Whether the journal says what the memory has of a file: not if a part of it is written, or taken over."""
        return name not in self._unsure

    def num_passages_of(self, names: Iterable[str]) -> dict[str, int]:
        """How many passages the memory has of each of these files."""
        found = {name: self._journal.in_memory.get(name, origins.FileDigest()).num_passages for name in names}
        if self._unsure & set(found):
            found = dict.fromkeys(found, 0)
            for owner in self._all_owners().values():
                if owner in found:
                    found[owner] += 1
        return found

    def claim(self, name: str, ids: Iterable[str], *, from_files: Set[str]) -> None:
        """Make sure that a file may have these ids: free ones, its own, and those of ``from_files``.

        Raises: SkippedError if an id is another's. Nothing has been changed then.
        """
        owners = self._all_owners()
        losing = set()
        for key in ids:
            owner = owners.get(key)
            if owner is None or owner == name:
                continue
            if owner not in from_files:
                whose = f"from {owner}" if owner else "added by hand"
                raise SkippedError(f"passage {key!r} is in the memory already, {whose}; rename it or delete that one")
            losing.add(owner)
        self._unsure |= losing

    def put(self, name: str, old: Mapping[str, int], passages: Iterable[Passage]) -> None:
        """Write those passages of a file that are new or differ from what the memory had of it.

        Args:
            old: id → digest of the passages that the memory had of the file.
            passages: a tuple goes into one commit; of a stream, parts are committed while it goes on.
        """
        differing = (passage for passage in passages if not self._is_unchanged(passage, old))
        if isinstance(passages, tuple):
            differing_ones = list(differing)
            if len(self._chunk.passages) + len(differing_ones) > self._limit:
                self.flush()
            for passage in differing_ones:
                self._add(passage)
            return
        self._unsure.add(name)
        for passage in differing:
            if len(self._chunk.passages) >= self._limit:
                self.flush()
            self._add(passage)

    def finish(self, name: str, old: Mapping[str, int], contents: Contents) -> None:
        """A file is complete: what it had and has no more goes."""
        owners = self._all_owners()
        self.remove([key for key in old if key not in contents.ids and owners.get(key) == name])
        self.note(name, contents.fact)

    def note(self, name: str, fact: Fact) -> None:
        """Remember what is in a file, and with the next flush in the memory."""
        self._unsure.discard(name)
        self._chunk.facts[name] = fact
        self._journal.in_memory[name] = fact.passages

    def remove_files(self, names: Set[str]) -> None:
        """All passages of these files go, if they have any."""
        if not names:
            return
        owned = [key for key, owner in self._all_owners().items() if owner in names]
        for start in range(0, len(owned), self._limit):
            self.remove(owned[start : start + self._limit])
            self.flush()
        for name in names:
            self._journal.in_memory.pop(name, None)
        self._unsure -= names

    def remove(self, ids: Iterable[str]) -> None:
        """These passages go."""
        for key in ids:
            self._chunk.removed_ids[key] = None
            del self._all_owners()[key]
            self._chunk.removed += 1
            self.num_passages -= 1

    def flush(self) -> None:
        """Commit what has been gathered, if anything has to be written, and tell the journal."""
        chunk, self._chunk = self._chunk, _Chunk()
        self._counts.passages.added += chunk.added
        self._counts.passages.changed += chunk.changed
        self._counts.passages.removed += chunk.removed
        self._counts.num_encoded += len(chunk.passages) - len(chunk.row_ids)
        if self._dry_run:
            return
        if chunk.passages or chunk.removed_ids:
            self._commit(chunk)
        if chunk.facts:
            self._journal.append(chunk.facts, self.version_key())

    def _is_unchanged(self, passage: Passage, old: Mapping[str, int]) -> bool:
        is_unchanged = old.get(passage.id) == origins.digest(passage)
        self._counts.passages.unchanged += is_unchanged
        return is_unchanged

    def _add(self, passage: Passage) -> None:
        owners, chunk = self._all_owners(), self._chunk
        if passage.id in owners:
            chunk.changed += 1
            chunk.removed_ids[passage.id] = None
        else:
            chunk.added += 1
            self.num_passages += 1
        owners[passage.id] = passage.origin
        if self._vector_rows is None:
            self._vector_rows = origins.vector_rows(self._base, self._reusable) if self._base else {}
        row_id = self._vector_rows.get(origins.vector_key(passage))
        if row_id is not None:
            chunk.row_ids[len(chunk.passages)] = row_id
        chunk.passages.append(passage)

    def _commit(self, chunk: _Chunk) -> None:
        known = {}
        if chunk.row_ids and self._known_vectors is not None:
            known = dict(zip(chunk.row_ids, self._known_vectors.of(list(chunk.row_ids.values())), strict=True))
        writer = self._started()
        writer.put(chunk.passages, known)
        change = f"synced {self._name}: added {chunk.added}, changed {chunk.changed}, removed {chunk.removed}"
        writer.commit(removed_ids=chunk.removed_ids, change=change)
        self.version = writer.table.version

    def _started(self) -> Writer:
        """What writes to the memory, which is made if it is not there; nobody else writes until this sync ends."""
        if self._memory is None:
            encoder = self._load_encoder
            if self._base is None:
                loaded = encoder()
                memory, encoder = Memory.create(self._path, loaded), lambda: loaded
            else:
                memory = self._base
            self._memory = self._writing.enter_context(memory.writing(encoder, on_passages=self._on_passages))
        return self._memory

    def version_key(self) -> str | None:
        """Of the version that the journal's ``held`` describes; None while it does not describe one."""
        if self._unsure or self.version is None:
            return None
        return origins.version_key(Memory.open(self._path, version=self.version))

    def _all_owners(self) -> dict[str, str]:
        if self._owners is None:
            self._owners = {} if self._base is None else origins.owners(self._base)
        return self._owners
