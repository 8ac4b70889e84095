"""The memory's side of a sync: which passages have to be written, and their commits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latentrag.corpus import UnreadableError
from latentrag.corpus.readers import File
from latentrag.memory import Memory, Writer, origins
from latentrag.memory.origins import FileDigest
from latentrag.memory.writer import KnownVectors
from latentrag.sync.folder import Contents, Cutting, Plan, read_again
from latentrag.sync.journal import Fact, Journal
from latentrag.sync.report import Progress, Report
from latentrag.sync.stored import StoredFiles
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
        num_replaced: how many of ``passages`` take the place of others.
        facts: about the files that are complete with this commit.
    """

    passages: list[Passage] = field(default_factory=list)
    row_ids: dict[int, int] = field(default_factory=dict)
    removed_ids: dict[str, None] = field(default_factory=dict)
    num_replaced: int = 0
    facts: dict[str, Fact] = field(default_factory=dict)


class FolderWriter:
    """Gathers passages and commits them in chunks. With ``dry_run`` it does all but that.

    Args:
        base: the memory as the sync found it; None: it is made with the first commit.
        journal: knows what the base has of each file, is told after each commit.
        report: its counts, its version and its number of passages are kept up to date.
        encoder: loads the passage encoder; called if something has to be encoded.
        cutting, stored: how files became passages, and what the memory has of them.
        writing: others may write again when it is closed.
        on_progress: called after each file, and as passages are made ready.
    """

    def __init__(
        self,
        base: Memory | None,
        journal: Journal,
        report: Report,
        plan: Plan,
        encoder: Callable[[], PassageEncoder],
        *,
        cutting: Cutting,
        stored: StoredFiles,
        writing: ExitStack,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._base = base
        self._journal = journal
        self._report = report
        self._load_encoder = encoder
        self._cutting, self._stored, self._options = cutting, stored, cutting.options
        self._writing = writing
        self._on_progress = on_progress
        self._progress = Progress(len(plan.unchanged), len(plan.unchanged) + len(plan.to_read), 0)
        # Files that may lose a passage to another: those that are gone, and those that are still to be written.
        self._losable = {*plan.missing, *(file.name for file in plan.to_read)}
        self._reusable = self._losable & journal.in_memory.keys()
        # Files of which the memory holds something else than the journal says.
        self._unsure: set[str] = set()
        self._memory: Writer | None = None
        self._owners: dict[str, str] | None = None
        self._vector_rows: dict[bytes, int] | None = None
        self._known_vectors = None if base is None else KnownVectors(base.table)
        self._chunk = _Chunk()

    def write(self, file: File, contents: Contents | UnreadableError, old: Mapping[str, int]) -> None:
        """Have the memory hold what is in a file, or report why it is skipped.

        Args:
            old: id → digest of the passages that the memory had of the file.
        """
        self._losable.discard(file.name)
        try:
            if isinstance(contents, UnreadableError):
                raise contents
            if contents.ledger.left_out or contents.ledger.is_guess:
                self._report.ledgers.append(contents.ledger)
            self._replace(file, contents, old)
        except UnreadableError as error:
            self._report.skipped.append((file.path, str(error)))
        self._advance(num_files=1)

    def _replace(self, file: File, contents: Contents, old: Mapping[str, int]) -> None:
        """Write those passages of a file that are new or differ; those that it has no more go.

        Raises: UnreadableError if an id is that of a file which keeps it, or a file that is read again has changed.
        """
        name, files, known = file.name, self._report.files, self._journal.in_memory.get(file.name, FileDigest())
        if contents.fact.passages == known and name not in self._unsure:
            files.unchanged += 1
            self._report.passages.unchanged += known.num_passages
            self._note(name, contents.fact)
            return
        self._claim(name, contents.ids)
        differing: Iterable[Passage]
        if contents.passages is None:
            self._unsure.add(name)
            differing = self._differing(read_again(file, contents, self._cutting, self._stored), old)
        else:
            differing = few = list(self._differing(contents.passages, old))
            if len(self._chunk.passages) + len(few) > self._options.passages_per_commit:
                self.flush()  # a file is in one commit if it fits
        for passage in differing:
            self._add(passage)
        owners = self._all_owners()
        self._remove([key for key in old if key not in contents.ids and owners.get(key) == name])
        self._note(name, contents.fact)
        files.changed += known.num_passages > 0
        files.added += known.num_passages == 0

    def settle_missing(self, names: Collection[str]) -> None:
        """Remove the passages of files that are gone, if asked to; those that stay are reported."""
        left: Mapping[str, int]
        if self._owners is None:  # nothing was written, so the journal is right
            left = {name: self._journal.in_memory[name].num_passages for name in names}
        else:
            left = Counter(self._owners.values())
        stay = [] if self._options.delete_missing else [name for name in names if left[name]]
        gone = set(names).difference(stay)
        ids = [key for key, owner in self._all_owners().items() if owner in gone] if gone else []
        for start in range(0, len(ids), self._options.passages_per_commit):
            self._remove(ids[start : start + self._options.passages_per_commit])
            self.flush()
        for name in gone:
            self._journal.in_memory.pop(name, None)
        self._unsure -= gone
        self._report.files.removed, self._report.files.missing = len(gone), len(stay)
        self._report.passages.missing = sum(left[name] for name in stay)
        self._report.missing += stay

    def flush(self) -> None:
        """Commit what has been gathered, if anything has to be written, and tell the journal."""
        chunk, self._chunk = self._chunk, _Chunk()
        if self._options.dry_run:
            return
        if chunk.passages or chunk.removed_ids:
            known = {}
            if chunk.row_ids and self._known_vectors is not None:
                known = dict(zip(chunk.row_ids, self._known_vectors.of(list(chunk.row_ids.values())), strict=True))
            writer = self._started()
            writer.put(chunk.passages, known)
            added, changed = len(chunk.passages) - chunk.num_replaced, chunk.num_replaced
            removed = len(chunk.removed_ids) - changed
            change = f"synced {self._report.name}: added {added}, changed {changed}, removed {removed}"
            writer.commit(removed_ids=chunk.removed_ids, change=change)
            self._report.version = writer.table.version
        if chunk.facts and self._report.version is not None:  # otherwise there is no memory yet to put notes into
            self._journal.append(chunk.facts, self.version_key())

    def version_key(self) -> str | None:
        """Of the version that the journal's ``in_memory`` describes; None while it does not describe one."""
        if self._unsure or self._report.version is None:
            return None
        return origins.version_key(Memory.open(self._report.memory, version=self._report.version))

    def _claim(self, name: str, ids: Iterable[str]) -> None:
        """Make sure that a file may have these ids: free ones, its own, and those that others may lose to it."""
        owners = self._all_owners()
        losing = set()
        for key in ids:
            owner = owners.get(key)
            if owner is None or owner == name:
                continue
            if owner not in self._losable:
                whose = f"from {owner}" if owner else "added by hand"
                raise UnreadableError(
                    f"passage {key!r} is in the memory already, {whose}; rename it or delete that one"
                )
            losing.add(owner)
        self._unsure |= losing

    def _note(self, name: str, fact: Fact) -> None:
        """Remember what is in a file, and with the next flush in the memory."""
        self._unsure.discard(name)
        self._chunk.facts[name] = fact
        self._journal.in_memory[name] = fact.passages

    def _differing(self, passages: Iterable[Passage], old: Mapping[str, int]) -> Iterator[Passage]:
        for passage in passages:
            if old.get(passage.id) == origins.digest(passage):
                self._report.passages.unchanged += 1
            else:
                yield passage

    def _add(self, passage: Passage) -> None:
        """Gather a passage, after a commit if the chunk is full."""
        if len(self._chunk.passages) >= self._options.passages_per_commit:
            self.flush()
        owners, chunk, report = self._all_owners(), self._chunk, self._report
        if passage.id in owners:
            chunk.num_replaced += 1
            chunk.removed_ids[passage.id] = None
            report.passages.changed += 1
        else:
            report.passages.added += 1
            report.num_passages += 1
        owners[passage.id] = passage.origin
        if self._vector_rows is None:
            self._vector_rows = origins.vector_rows(self._base, self._reusable) if self._base else {}
        row_id = self._vector_rows.get(origins.vector_key(passage))
        if row_id is None:
            report.num_encoded += 1
        else:
            chunk.row_ids[len(chunk.passages)] = row_id
        chunk.passages.append(passage)

    def _remove(self, ids: Collection[str]) -> None:
        for key in ids:
            self._chunk.removed_ids[key] = None
            del self._all_owners()[key]
        self._report.passages.removed += len(ids)
        self._report.num_passages -= len(ids)

    def _started(self) -> Writer:
        """What writes to the memory, which is made if it is not there; nobody else writes until this sync ends."""
        if self._memory is None:
            memory, encoder = self._base, self._load_encoder
            if memory is None:
                loaded = encoder()
                memory, encoder = Memory.create(self._report.memory, loaded), lambda: loaded
            self._memory = self._writing.enter_context(memory.writing(encoder, on_passages=self._advance))
        return self._memory

    def _advance(self, num_passages: int = 0, *, num_files: int = 0) -> None:
        self._progress.num_passages += num_passages
        self._progress.num_files_done += num_files
        if self._on_progress is not None:
            self._on_progress(self._progress)

    def _all_owners(self) -> dict[str, str]:
        if self._owners is None:
            self._owners = {} if self._base is None else origins.owners(self._base)
        return self._owners
