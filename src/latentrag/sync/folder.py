"""The folder's side of a sync: which files there are, which of them have to be read, what is in these."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from latentrag.corpus import UnreadableError, bounds_of, split
from latentrag.corpus.aligning import Stored
from latentrag.corpus.finding import OnSkip, find_files, in_nfc, name_of
from latentrag.corpus.readers import File, Ledger, Reading, refusal
from latentrag.corpus.reading import read_each
from latentrag.corpus.splitting import Bounds, LeaveOut
from latentrag.errors import DataError, InputError
from latentrag.io import sha256_of_file
from latentrag.memory.origins import FileDigest, digest
from latentrag.options import SyncOptions
from latentrag.sync.journal import Fact, Journal
from latentrag.sync.report import Report
from latentrag.sync.stored import StoredFiles
from latentrag.types import Passage

if TYPE_CHECKING:
    from latentrag.protocols import PassageEncoder

CHANGED = "it changed while it was read; sync again"
WORDS = 100


@dataclass(frozen=True, slots=True)
class Plan:
    """The folder's files, each in one place, but for those that are skipped.

    Attributes:
        to_read: new ones, changed ones, and those of which too little is known.
        unchanged: names of those whose passages the memory has.
        touched: of these, the facts that have to be noted anew, since size or time are not those noted.
        missing: names of files that the memory has passages of and the folder no more.
    """

    to_read: list[File] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    touched: dict[str, Fact] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a file: the fact, the passages' ids, and the passages themselves unless they are too many; and what
    became of the rest of it."""

    fact: Fact
    ids: frozenset[str]
    passages: list[Passage] | None
    ledger: Ledger


class Cutting:
    """How files become passages: of so many words, none longer than the memory's encoder reads.

    Args:
        options: with the number of words.
        fingerprint: of the memory's encoder; None: it is the one that is loaded.
        encoder: loads it; called when a file is read.
    """

    def __init__(self, options: SyncOptions, fingerprint: str | None, encoder: Callable[[], PassageEncoder]) -> None:
        self.options = options
        self._fingerprint = fingerprint
        self._encoder = encoder

    @cached_property
    def reading(self) -> str:
        """What else than a file's bytes decides over its passages: the readers, the splitter, the encoder's tokens."""
        options = self.options
        encoding = {"encoding": options.encoding} if options.encoding else {}
        encoder = self._fingerprint or self._encoder().fingerprint
        return json.dumps({"latentrag": version("latentrag"), "words": options.words, "encoder": encoder, **encoding})

    def passages(self, reading: Reading, stored: Stored, leave_out: LeaveOut | None = None) -> Iterator[Passage]:
        """Those of a file, with the file as their origin. Raises: UnreadableError.

        Args: stored: what the memory has of it.
        """
        file = reading.file
        for document in reading:
            # Where the row names no source: not the path, which another machine or working directory would change.
            source = file.name if document.source == file.source else document.source
            known = replace(document, source=source)
            words = self.options.words or WORDS
            for passage in split(known, words=words, leave_out=leave_out, stored=stored, **self._bounds):
                yield replace(passage, origin=file.name)

    @cached_property
    def _bounds(self) -> Bounds:
        return bounds_of(self._encoder())


def folder_name(folder: Path, name: str | None) -> str:
    """What a memory knows a folder as: ``name``, else the last part of its path.

    Raises: InputError for a name that ids cannot be made of.
    """
    if name is None:
        name = name_of(folder.name if folder.name not in {"", ".."} else folder.resolve().name)
    if not name or "/" in name or not name.isprintable():
        raise InputError(f"a folder cannot be known as {name!r}; pass a name of letters, digits, spaces, . - or _")
    return name


def list_files(
    folder: Path, name: str, options: SyncOptions, *, memory: Path, known: Iterable[str], on_skip: OnSkip
) -> list[File]:
    """The files of a folder, each named ``f"{name}/{path in the folder}"``; a memory inside of it is passed over.

    Args: known: names that the memory has, some perhaps in the form NFD from before names were NFC; they stay.
    Raises: DataError as ``corpus.read``, and if it is no folder.
    """
    if folder.is_file():
        raise DataError(f"{folder} is a file, needed a folder; add a file with `latentrag index add`")
    memory = memory.resolve()

    def skip(path: Path, reason: str) -> None:
        if not path.resolve().is_relative_to(memory):
            on_skip(path, reason)

    files = find_files(folder, options, skip)
    if memory.is_relative_to(folder.resolve()):
        files = [file for file in files if not file.path.resolve().is_relative_to(memory)]
    of_names = {in_nfc(each): each for each in known if not each.isascii()}
    names = (f"{name}/{file.name}" for file in files)
    return [replace(file, name=of_names.get(name, name)) for file, name in zip(files, names, strict=True)]


# What has to be read: the folder as it is beside what is known of it


def make_plan(files: list[File], report: Report, journal: Journal, cutting: Cutting) -> Plan:
    """Look at every file's size and time; hash those that differ from what is noted, or all with ``checksum``.

    Args:
        files: of the folder.
        report: with the files that were skipped while these were looked for; gets those that cannot be looked at.
        journal: with what the memory has of each file.
    """
    plan = Plan()
    # What lies under a folder that cannot be entered is out of sight, not gone.
    hidden = {PurePosixPath(report.name, name_of(path.relative_to(report.folder))) for path, _ in report.skipped}
    unclear = [PurePosixPath(file.name) for file in files if not _is_text(file.name)]
    closed = [path for path in hidden if not _is_text(str(path))]
    for file in files:
        noted = journal.facts.get(file.name)
        try:
            fact = _known(file, noted, cutting)
        except UnreadableError as error:
            report.skipped.append((file.path, str(error)))
            continue
        if fact is None or fact.passages != journal.in_memory.get(file.name, FileDigest()):
            plan.to_read.append(file)
            continue
        plan.unchanged.append(file.name)
        if fact is not noted:
            plan.touched[file.name] = fact
    present = {file.name for file in files}
    for name, of_file in sorted(journal.in_memory.items()):
        path = PurePosixPath(in_nfc(name))
        is_gone = name not in present and hidden.isdisjoint((path, *path.parents))
        may_be_there = any(_may_be(each, path) for each in unclear)
        may_be_closed = any(_may_be(each, around) for each in closed for around in (path, *path.parents))
        if of_file.num_passages and is_gone and not may_be_there and not may_be_closed:
            plan.missing.append(name)
    return plan


def _is_text(name: str) -> bool:
    return name.isascii() or name.encode(errors="replace").decode() == name


def _may_be(unclear: PurePosixPath, path: PurePosixPath) -> bool:
    """Whether a path with names that are not UTF-8 may be this one."""
    same_depth = len(unclear.parts) == len(path.parts)
    return same_depth and all(a == b or not _is_text(a) for a, b in zip(unclear.parts, path.parts, strict=True))


def _known(file: File, fact: Fact | None, cutting: Cutting) -> Fact | None:
    """What is certainly in the file, if that is known without splitting it. Raises: UnreadableError."""
    stat = _stat(file)
    if fact is None or fact.reading != cutting.reading:
        return None
    if fact.is_of(stat) and not cutting.options.checksum:
        return fact
    now = _fact(file, cutting)
    return replace(now, passages=fact.passages) if now.sha256 == fact.sha256 else None


def _stat(file: File) -> os.stat_result:
    """Raises: UnreadableError if the file cannot be looked at."""
    try:
        return file.path.stat()
    except OSError as error:
        raise UnreadableError(refusal(error)) from error


def _fact(file: File, cutting: Cutting) -> Fact:
    """What can be said before the file is read; nothing about its passages. Raises: UnreadableError."""
    read_ns = time.time_ns()
    stat = _stat(file)
    file.check()
    try:
        sha256 = sha256_of_file(file.path)
    except OSError as error:
        raise UnreadableError(refusal(error)) from error
    return Fact(stat.st_size, stat.st_mtime_ns, read_ns, sha256, cutting.reading, FileDigest())


# What is in the files


def read_contents(
    files: Iterable[File], cutting: Cutting, stored: StoredFiles
) -> Generator[Contents | UnreadableError]:
    """Everything in each file, read to its end; the passages too of one that has no more than a commit holds.

    A file is left out if it cannot be read, has an id twice, or changes meanwhile.
    """
    facts: deque[Fact | UnreadableError] = deque()

    def hashed() -> Iterator[File]:
        # Size, time and hash are taken before a process opens the file: what is written later shows.
        for file in files:
            try:
                facts.append(_fact(file, cutting))
            except UnreadableError as error:
                facts.append(error)
            yield file

    with closing(read_each(hashed(), cutting.options)) as readings:
        for reading in readings:
            fact = facts.popleft()
            try:
                yield fact if isinstance(fact, UnreadableError) else _contents(reading, fact, cutting, stored)
            except UnreadableError as error:
                yield error


def read_again(file: File, contents: Contents, cutting: Cutting, stored: StoredFiles) -> Iterator[Passage]:
    """The passages of a file that has too many to keep, read once more.

    Raises: UnreadableError if they are others now.
    """
    expected, passages = set(contents.ids), FileDigest()
    with closing(read_each([file], cutting.options)) as readings:
        for passage in cutting.passages(next(readings), stored.of(file, contents.fact)):
            if passage.id not in expected:
                raise UnreadableError(CHANGED)
            expected.discard(passage.id)
            passages = passages.with_digest(digest(passage))
            yield passage
    if passages != contents.fact.passages:
        raise UnreadableError(CHANGED)


def _contents(reading: Reading, fact: Fact, cutting: Cutting, stored: StoredFiles) -> Contents:
    passages, ids = FileDigest(), set[str]()
    kept: list[Passage] | None = []
    for passage in cutting.passages(reading, stored.of(reading.file, fact), reading.ledger.leave_out):
        if passage.id in ids:
            raise UnreadableError(f"passage {passage.id!r} comes twice in it; give each row its own id")
        ids.add(passage.id)
        passages = passages.with_digest(digest(passage))
        if kept is not None:
            kept.append(passage)
            kept = kept if len(kept) <= cutting.options.passages_per_commit else None
    stat = _stat(reading.file)
    if (stat.st_size, stat.st_mtime_ns) != (fact.size_bytes, fact.mtime_ns):
        raise UnreadableError(CHANGED)
    return Contents(replace(fact, passages=passages), frozenset(ids), kept, reading.ledger)
