"""A memory made equal to a folder.

What the memory has of each file, the table itself tells (``memory.origins``). So a sync that was killed is gone on
with by the next one: whatever was committed is found there, equal to the files, and is not encoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from latentrag.errors import InputError
from latentrag.memory import Memory, origins, upkeep
from latentrag.memory.object_path import Folder
from latentrag.memory.origins import FileDigest
from latentrag.memory.storage import storage_of
from latentrag.memory.version_files import is_free
from latentrag.options import SyncOptions
from latentrag.sync.folder import WORDS, Cutting, folder_name, list_files, make_plan, read_contents
from latentrag.sync.journal import Journal
from latentrag.sync.report import Progress, Report
from latentrag.sync.stored import StoredFiles
from latentrag.sync.writer import FolderWriter

if TYPE_CHECKING:
    from latentrag.protocols import PassageEncoder


def sync(
    memory: str | Folder,
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
        memory: its path or address; it is made if it is not there and there is something to put into it.
        encoder: loads the passage encoder; called once, if a file has to be read: no passage is longer than it reads.
    Raises: InputError; DataError if the folder cannot be read; MemoryStoreError; EncoderMismatchError.
    """
    options = options or SyncOptions()
    name = folder_name(folder, options.name)
    storage = storage_of(memory)
    base = None if is_free(storage.folder) else Memory.open(storage)
    journal = Journal.load(storage.local, name)
    if options.name is None:
        _check_place(journal, folder, storage.folder, name)
    noted = (journal.folder, journal.words, journal.version_key)
    options = replace(options, words=options.words or journal.words or WORDS)
    journal.folder, journal.words = str(folder.resolve()), options.words
    _see_memory(journal, base, name)
    version, num_passages = (None, 0) if base is None else (base.version, len(base))
    report = Report(storage.folder, folder, name, options.dry_run, version, num_passages)
    files = list_files(
        folder,
        name,
        options,
        memory=storage.local,
        known=journal.in_memory,
        on_skip=lambda *skipped: report.skipped.append(skipped),
    )
    loaded = cache(lambda: _checked(encoder(), base))
    cutting = Cutting(options, None if base is None else base.card.fingerprint, loaded)
    plan = make_plan(files, report, journal, cutting)
    if options.delete_missing and not files and plan.missing:
        raise InputError(
            f"{folder} has no file that is read, and the memory has {len(plan.missing)} from there, which would all "
            "be deleted; check that it is the right folder and mounted, or put a text file into it"
        )
    report.files.unchanged = len(plan.unchanged)
    report.passages.unchanged = sum(journal.in_memory.get(name, FileDigest()).num_passages for name in plan.unchanged)
    journal.facts.update(plan.touched)
    if plan.to_read and base is not None and not options.dry_run:
        # Where nothing can be written the first commit says so, and where only this cannot, its notes do.
        journal.rewrite(journal.facts, warn=False)
    to_read = [file.name for file in plan.to_read]
    stored = StoredFiles(base, journal, to_read, plan.missing, lambda: cutting.reading)
    with ExitStack() as writing:
        writer = FolderWriter(
            base,
            journal,
            report,
            plan,
            loaded,
            cutting=cutting,
            stored=stored,
            writing=writing,
            on_progress=on_progress,
        )
        with closing(read_contents(plan.to_read, cutting, stored)) as all_contents:
            for file, contents in zip(plan.to_read, all_contents, strict=True):
                writer.write(file, contents, stored.rows(file.name).digests)
        writer.flush()
        writer.settle_missing(plan.missing)
    if not options.dry_run and report.version is not None:
        journal.version_key = writer.version_key()
        if plan.to_read or plan.touched or noted != (journal.folder, journal.words, journal.version_key):
            journal.rewrite(file.name for file in files)
        if options.keep is not None:
            report.pruned = upkeep.prune(storage, keep=options.keep).removed
    return report


def _checked(encoder: PassageEncoder, base: Memory | None) -> PassageEncoder:
    """Raises: EncoderMismatchError if the memory's vectors are of another."""
    if base is not None:
        base.card.check_passage_encoder(encoder)
    return encoder


def _see_memory(journal: Journal, base: Memory | None, name: str) -> None:
    """Have ``journal.in_memory`` say what the memory has, as noted if the notes are of this very version."""
    version_key = None if base is None else origins.version_key(base)
    if version_key is None or version_key != journal.version_key:
        journal.in_memory = {} if base is None else origins.file_digests(base, name)
        journal.version_key = version_key


def _check_place(journal: Journal, folder: Path, memory: Folder, name: str) -> None:
    """Raises: InputError if the memory has another folder of this name; one that has moved is no other."""
    place = str(folder.resolve())
    if journal.folder and journal.folder != place and Path(journal.folder).is_dir():
        raise InputError(
            f"{memory} knows {journal.folder} as {name!r}, got {place}; "
            f"pass another --name for another folder, or --name {name} to go on with this one in its place"
        )
