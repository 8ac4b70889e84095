"""The folder's side of a sync: which files there are, which of them have to be read, what is in these."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Set
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from stat import S_ISREG

from latentrag.corpus import UnreadableError, split
from latentrag.corpus.readers import File, Reading
from latentrag.corpus.reading import find_files, read_each
from latentrag.errors import DataError, InputError
from latentrag.io import sha256_of_file
from latentrag.memory.origins import FileDigest, digest
from latentrag.sync.journal import Fact, Journal
from latentrag.types import Passage

OnSkip = Callable[[Path, str], None]
CHANGED = "it changed while it was read; sync again"


class SkippedError(Exception):
    """Why a file is left out of this sync."""


@dataclass(frozen=True, slots=True)
class Splitting:
    """How files become passages in this sync: ``words`` in each; processes that read; seconds for a document."""

    words: int
    workers: int
    time_limit_s: float

    @property
    def key(self) -> str:
        """What else than a file's bytes decides over its passages: the readers and the splitter."""
        return json.dumps({"latentrag": version("latentrag"), "words": self.words})


@dataclass(slots=True)
class Plan:
    """The folder's files, each in one place.

    Attributes:
        to_read: new ones, changed ones, and those of which too little is known.
        unchanged: names of those whose passages the memory has.
        touched: of these, the facts that have to be noted anew, since size or time are not those noted.
        missing: names of files that the memory has passages of and the folder no more.
        skipped: files that are left out, and why.
    """

    to_read: list[File] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    touched: dict[str, Fact] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a file: the fact, the passages' ids, and the passages themselves unless they are too many."""

    fact: Fact
    ids: frozenset[str]
    passages: tuple[Passage, ...] | None


def folder_name(folder: Path, name: str | None) -> str:
    """What a memory knows a folder as: ``name``, else the last part of its path.

    Raises: InputError for a name that ids cannot be made of.
    """
    own = folder.name if folder.name not in {"", ".."} else folder.resolve().name
    chosen = own if name is None else name
    if not chosen or "/" in chosen or not chosen.isprintable():
        raise InputError(f"a folder cannot be known as {chosen!r}; pass a name of letters, digits, spaces, . - or _")
    return chosen


def list_files(folder: Path, name: str, *, memory: Path, on_skip: OnSkip) -> list[File]:
    """The files of a folder, each named ``f"{name}/{path in the folder}"``; a memory inside of it is passed over.

    Raises: DataError as ``corpus.read``, and if it is no folder.
    """
    if folder.is_file():
        raise DataError(f"{folder} is a file, needed a folder; add a file with `latentrag index add`")
    memory = memory.resolve()

    def skip(path: Path, reason: str) -> None:
        if not path.resolve().is_relative_to(memory):
            on_skip(path, reason)

    files = find_files(folder, skip)
    if memory.is_relative_to(folder.resolve()):
        files = [file for file in files if not file.path.resolve().is_relative_to(memory)]
    return [replace(file, name=f"{name}/{file.name}") for file in files]


# What has to be read: the folder as it is beside what is known of it


def make_plan(
    files: list[File],
    skipped: list[tuple[Path, str]],
    *,
    folder: Path,
    name: str,
    journal: Journal,
    splitting: Splitting,
    checksum: bool,
) -> Plan:
    """Look at every file's size and time; hash those that differ from what is noted, or all with ``checksum``.

    Args:
        files: of the folder, and ``skipped``, what was left out when they were looked for.
        journal: with what the memory has of each file.
    """
    known = journal.in_memory
    plan = Plan(skipped=list(skipped))
    for file in files:
        try:
            fact = _known(file, journal.facts.get(file.name), key=splitting.key, checksum=checksum)
        except SkippedError as error:
            plan.skipped.append((file.path, str(error)))
            continue
        if fact is None or fact.passages != known.get(file.name, FileDigest()):
            plan.to_read.append(file)
            continue
        plan.unchanged.append(file.name)
        if fact is not journal.facts[file.name]:
            plan.touched[file.name] = fact
    present = {file.name for file in files}
    # What lies under a folder that cannot be entered is out of sight, not gone.
    hidden = {PurePosixPath(name, path.relative_to(folder).as_posix()) for path, _ in skipped}
    plan.missing = [
        file_name
        for file_name, of_file in sorted(known.items())
        if of_file.num_passages and file_name not in present and not _is_under(file_name, hidden)
    ]
    return plan


def _known(file: File, fact: Fact | None, *, key: str, checksum: bool) -> Fact | None:
    """What is certainly in the file, if that is known without splitting it. Raises: SkippedError."""
    read_ns = time.time_ns()
    stat = _stat_of(file)
    if fact is None or fact.settings != key:
        return None
    if fact.is_of(stat) and not checksum:
        return fact
    if sha256_of(file, stat) != fact.sha256:
        return None
    return replace(fact, size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, read_ns=read_ns)


def _is_under(name: str, hidden: Set[PurePosixPath]) -> bool:
    path = PurePosixPath(name)
    return path in hidden or not hidden.isdisjoint(path.parents)


def _stat_of(file: File) -> os.stat_result:
    """Raises: SkippedError if the file cannot be looked at."""
    try:
        return file.path.stat()
    except OSError as error:
        raise SkippedError(f"cannot be read ({error.strerror or error}); check it and sync again") from error


def sha256_of(file: File, stat: os.stat_result) -> str:
    """Of the file's bytes; of a pipe or device, which would never end, of none. Raises: SkippedError."""
    if not S_ISREG(stat.st_mode):
        return ""
    try:
        return sha256_of_file(file.path)
    except OSError as error:
        raise SkippedError(f"cannot be read ({error.strerror or error}); check its permissions") from error


# What is in the files


def read_contents(files: Iterable[File], splitting: Splitting, *, limit: int) -> Generator[Contents | SkippedError]:
    """Everything in each file, read to its end; the passages too of one that has no more than ``limit``.

    A file is left out if it cannot be read, has an id twice, or changes meanwhile.
    """
    facts: deque[Fact | SkippedError] = deque()

    def looked_at() -> Iterator[File]:
        # Size, time and hash are taken before a process opens the file: what is written later shows.
        for file in files:
            facts.append(_fact(file, splitting.key))
            yield file

    with closing(read_each(looked_at(), workers=splitting.workers, time_limit_s=splitting.time_limit_s)) as readings:
        for reading in readings:
            fact = facts.popleft()
            yield fact if isinstance(fact, SkippedError) else _contents(reading, fact, splitting.words, limit)


def read_again(file: File, contents: Contents, splitting: Splitting) -> Iterator[Passage]:
    """The passages of a file that has too many to keep, read once more. Raises: SkippedError if they are others now."""
    expected, passages = set(contents.ids), FileDigest()
    workers = min(1, splitting.workers)
    with closing(read_each([file], workers=workers, time_limit_s=splitting.time_limit_s)) as readings:
        for passage in _passages_of(next(readings), splitting.words):
            if passage.id not in expected:
                raise SkippedError(CHANGED)
            expected.discard(passage.id)
            passages = passages.with_digest(digest(passage))
            yield passage
    if passages != contents.fact.passages:
        raise SkippedError(CHANGED)


def _fact(file: File, key: str) -> Fact | SkippedError:
    """What can be said before the file is read; nothing about its passages."""
    read_ns = time.time_ns()
    try:
        stat = _stat_of(file)
        return Fact(stat.st_size, stat.st_mtime_ns, read_ns, sha256_of(file, stat), key, FileDigest())
    except SkippedError as error:
        return error


def _contents(reading: Reading, fact: Fact, words: int, limit: int) -> Contents | SkippedError:
    passages, ids = FileDigest(), set[str]()
    kept: list[Passage] | None = []
    try:
        for passage in _passages_of(reading, words):
            if passage.id in ids:
                return SkippedError(f"passage {passage.id!r} comes twice in it; give each row its own id")
            ids.add(passage.id)
            passages = passages.with_digest(digest(passage))
            if kept is not None:
                kept.append(passage)
                kept = kept if len(kept) <= limit else None
        stat = _stat_of(reading.file)
    except SkippedError as error:
        return error
    if (stat.st_size, stat.st_mtime_ns) != (fact.size_bytes, fact.mtime_ns):
        return SkippedError(CHANGED)
    return Contents(replace(fact, passages=passages), frozenset(ids), None if kept is None else tuple(kept))


def _passages_of(reading: Reading, words: int) -> Iterator[Passage]:
    """The passages of a file, with the file as their origin. Raises: SkippedError if it cannot be read."""
    file = reading.file
    try:
        for document in reading:
            # Where the row names no source: not the path, which another machine or working directory would change.
            source = file.name if document.source == str(file.path) else document.source
            for passage in split(replace(document, source=source), words=words):
                yield replace(passage, origin=file.name)
    except UnreadableError as error:
        raise SkippedError(str(error)) from error
