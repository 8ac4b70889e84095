"""A memory made equal to a folder.

What the memory has of each file, the table itself tells (``memory.origins``). So a sync that was killed is gone on
with by the next one: whatever was committed is found there, equal to the files, and is not encoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from latentrag.corpus.readers import File
from latentrag.errors import InputError
from latentrag.memory import Memory, origins
from latentrag.memory.origins import FileDigest
from latentrag.memory.version_files import is_free
from latentrag.options import SyncOptions
from latentrag.sync.folder import (
    Contents,
    Plan,
    SkippedError,
    Splitting,
    folder_name,
    list_files,
    make_plan,
    read_again,
    read_contents,
)
from latentrag.sync.journal import Journal
from latentrag.sync.report import Counts, Progress, Report
from latentrag.sync.writer import FolderWriter

if TYPE_CHECKING:
    from latentrag.protocols import PassageEncoder

WORDS = 100
_FILES_PER_LOOKUP = 64


def sync(
    memory: Path,
    folder: Path,
    encoder: Callable[[], PassageEncoder],
    *,
    options: SyncOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Make a memory hold what the files of a folder hold now.

    New files are added, changed ones updated: only passages whose text or title is new are encoded. A passage that
    has gone from a file is removed. A file that has gone stays in the memory, unless ``delete_missing``; one that
    cannot be read is reported, and what the memory has of it stays. Passages that were added by hand, or come from
    another folder, are never touched. Killed at any moment, the memory is at the last commit, and the next sync
    goes on from there.

    Args:
        memory: its path; it is made if it is not there and there is something to put into it.
        encoder: loads the passage encoder; called if something has to be encoded.
    Raises: InputError; DataError if the folder cannot be read; MemoryStoreError; EncoderMismatchError.
    """
    options = options or SyncOptions()
    name = folder_name(folder, options.name)
    base = None if is_free(memory) else Memory.open(memory)
    journal = Journal.load(memory, name)
    if options.name is None:
        _check_place(journal, folder, memory, name)
    noted = (journal.folder, journal.words, journal.version_key)
    journal.folder, journal.words = str(folder.resolve()), options.words or journal.words or WORDS
    splitting = Splitting(journal.words, options.workers, options.time_limit_s)
    _see_memory(journal, base, name)
    skipped: list[tuple[Path, str]] = []
    files = list_files(folder, name, memory=memory, on_skip=lambda path, reason: skipped.append((path, reason)))
    plan = make_plan(
        files,
        skipped,
        folder=folder,
        name=name,
        journal=journal,
        splitting=splitting,
        checksum=options.checksum,
    )
    if options.delete_missing and not files:
        _check_empty(folder, plan)
    run = _Run(memory, base, plan, journal, encoder, splitting, name=name, options=options, on_progress=on_progress)
    with run.writer:
        missing = run.go()
    if not options.dry_run and run.writer.version is not None:
        journal.version_key = run.writer.version_key()
        if plan.to_read or plan.touched or noted != (journal.folder, journal.words, journal.version_key):
            journal.rewrite(file.name for file in files)
    return Report(
        memory=memory,
        folder=folder,
        name=name,
        dry_run=options.dry_run,
        version=run.writer.version,
        files=run.counts.files,
        passages=run.counts.passages,
        num_encoded=run.counts.num_encoded,
        num_passages=run.writer.num_passages,
        skipped=tuple(plan.skipped),
        missing=tuple(missing),
    )


def _see_memory(journal: Journal, base: Memory | None, name: str) -> None:
    """Have ``journal.in_memory`` say what the memory has, as noted if the notes are of this very version."""
    version_key = None if base is None else origins.version_key(base)
    if version_key is None or version_key != journal.version_key:
        journal.in_memory = {} if base is None else origins.file_digests(base, name)
        journal.version_key = version_key


def _check_place(journal: Journal, folder: Path, memory: Path, name: str) -> None:
    """Raises: InputError if the memory has another folder of this name; one that has moved is no other."""
    place = str(folder.resolve())
    if journal.folder and journal.folder != place and Path(journal.folder).is_dir():
        raise InputError(
            f"{memory} knows {journal.folder} as {name!r}, got {place}; "
            f"pass another --name for another folder, or --name {name} to go on with this one in its place"
        )


def _check_empty(folder: Path, plan: Plan) -> None:
    if plan.missing:
        raise InputError(
            f"{folder} has no file that is read, and the memory has {len(plan.missing)} from there, which would all "
            "be deleted; check that it is the right folder and mounted, or put a text file into it"
        )


class _Run:
    """One sync, from the plan to the last commit. Its dry run differs in that the writer commits nothing."""

    def __init__(
        self,
        memory: Path,
        base: Memory | None,
        plan: Plan,
        journal: Journal,
        encoder: Callable[[], PassageEncoder],
        splitting: Splitting,
        *,
        name: str,
        options: SyncOptions,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.counts = Counts()
        changing = {file.name for file in plan.to_read if file.name in journal.in_memory}
        self.writer = FolderWriter(
            memory,
            base,
            name=name,
            journal=journal,
            encoder=encoder,
            reusable=changing.union(plan.missing),
            counts=self.counts,
            limit=options.passages_per_commit,
            dry_run=options.dry_run,
            on_passages=self._on_passages,
        )
        self._base = base
        self._plan = plan
        self._journal = journal
        self._options = options
        self._splitting = splitting
        self._on_progress = on_progress
        self._num_ready = 0
        self._num_done = len(plan.unchanged)
        # Files that may lose a passage to another: those that are gone, and those that are still to be read.
        self._losable = {*plan.missing, *(file.name for file in plan.to_read)}

    def go(self) -> list[str]:
        """Read what has to be read and commit it; returns the missing files whose passages stay."""
        plan, counts = self._plan, self.counts
        counts.files.unchanged = len(plan.unchanged)
        counts.passages.unchanged = sum(self.writer.num_passages_of(plan.unchanged).values())
        self._journal.facts.update(plan.touched)
        if plan.to_read and self._base is not None and not self._options.dry_run:
            # Where nothing can be written the first commit says so, and where only this cannot, its notes do.
            self._journal.rewrite(self._journal.facts, warn=False)
        limit = self._options.passages_per_commit
        with closing(read_contents(plan.to_read, self._splitting, limit=limit)) as all_contents:
            for i, (file, contents) in enumerate(zip(plan.to_read, all_contents, strict=True)):
                if i % _FILES_PER_LOOKUP == 0:
                    digests = self._digests(plan.to_read[i : i + _FILES_PER_LOOKUP])
                self._losable.discard(file.name)
                try:
                    if isinstance(contents, SkippedError):
                        raise contents
                    self._sync_file(file, contents, digests.get(file.name, {}))
                except SkippedError as error:
                    plan.skipped.append((file.path, str(error)))
                self._num_done += 1
                self._tell()
        self.writer.flush()
        return self._settle_missing()

    def _digests(self, files: list[File]) -> dict[str, dict[str, int]]:
        """What the memory has of these files: name → id → digest."""
        known = [file.name for file in files if file.name in self._journal.in_memory]
        return {} if self._base is None else origins.digests(self._base, known)

    def _sync_file(self, file: File, contents: Contents, old: dict[str, int]) -> None:
        """Args: old: id → digest of what the memory has of it. Raises: SkippedError."""
        known = self._journal.in_memory.get(file.name, FileDigest())
        if contents.fact.passages == known and self.writer.is_sure_of(file.name):
            self.counts.files.unchanged += 1
            self.counts.passages.unchanged += known.num_passages
            self.writer.note(file.name, contents.fact)
            return
        self.writer.claim(file.name, contents.ids, from_files=self._losable)
        passages = contents.passages
        self.writer.put(file.name, old, read_again(file, contents, self._splitting) if passages is None else passages)
        self.writer.finish(file.name, old, contents)
        if known.num_passages:
            self.counts.files.changed += 1
        else:
            self.counts.files.added += 1

    def _settle_missing(self) -> list[str]:
        """Remove the passages of files that are gone, if asked to; returns those that stay."""
        left = self.writer.num_passages_of(self._plan.missing)
        moved = [name for name, num_passages in left.items() if not num_passages]
        rest = [name for name, num_passages in left.items() if num_passages]
        self.counts.files.removed = len(moved)
        if self._options.delete_missing:
            self.counts.files.removed += len(rest)
            self.writer.remove_files({*moved, *rest})
            return []
        self.writer.remove_files(set(moved))
        self.counts.files.missing = len(rest)
        self.counts.passages.missing = sum(left.values())
        return rest

    def _on_passages(self, number: int) -> None:
        self._num_ready += number
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            num_files = len(self._plan.unchanged) + len(self._plan.to_read)
            self._on_progress(Progress(self._num_done, num_files, self._num_ready))
