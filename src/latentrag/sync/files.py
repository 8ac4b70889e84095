"""The folder's side of a sync: which files there are, whether they changed, what is in them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISREG

from latentrag.corpus import split
from latentrag.corpus.readers import File, documents, find_files
from latentrag.errors import DataError, InputError
from latentrag.io import sha256_of_file
from latentrag.memory.origins import Held, digest
from latentrag.sync.journal import Fact
from latentrag.types import Passage

OnSkip = Callable[[Path, str], None]
CHANGED = "it changed while it was read; sync again"


class SkippedError(Exception):
    """Why a file is left out of this sync."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What was found in a file: the fact, the passages' ids, and the passages themselves unless they are too many."""

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


def settings(words: int) -> str:
    """What else than a file's bytes decides over its passages: the readers and the splitter."""
    from importlib.metadata import version

    return json.dumps({"latentrag": version("latentrag"), "words": words})


def list_files(folder: Path, name: str, *, memory: Path, on_skip: OnSkip) -> list[File]:
    """The files of a folder, each named ``f"{name}/{path in the folder}"``; a memory inside of it is passed over.

    Raises: DataError as ``corpus.read``, and if it is no folder.
    """
    if folder.is_file():
        raise DataError(f"{folder} is a file, needed a folder; add a file with `latentrag index add`")
    own = memory.resolve()

    def skip(path: Path, reason: str) -> None:
        if not path.resolve().is_relative_to(own):
            on_skip(path, reason)

    found = find_files(folder, skip)
    if own.is_relative_to(folder.resolve()):
        found = [file for file in found if not file.path.resolve().is_relative_to(own)]
    return [replace(file, name=f"{name}/{file.name}") for file in found]


def stat_of(file: File) -> os.stat_result:
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


def read(file: File, *, words: int, settings: str, limit: int) -> Contents:
    """Everything in a file, read to its end; its passages too if there are no more than ``limit``.

    Args:
        settings: what ``words`` is a part of, for the fact.
    Raises: SkippedError if it cannot be read, has an id twice, or changes meanwhile.
    """
    read_ns = time.time_ns()
    before = stat_of(file)
    sha256 = sha256_of(file, before)
    held, ids = Held(), set[str]()
    kept: list[Passage] | None = []
    for passage in passages_of(file, words=words):
        if passage.id in ids:
            raise SkippedError(f"passage {passage.id!r} comes twice in it; give each row its own id")
        ids.add(passage.id)
        held = held.with_digest(digest(passage))
        if kept is not None:
            kept.append(passage)
            kept = kept if len(kept) <= limit else None
    after = stat_of(file)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise SkippedError(CHANGED)
    fact = Fact(before.st_size, before.st_mtime_ns, read_ns, sha256, settings, held)
    return Contents(fact, frozenset(ids), None if kept is None else tuple(kept))


def passages_of(file: File, *, words: int) -> Iterator[Passage]:
    """The passages of a file, with the file as their origin. Raises: SkippedError if it cannot be read."""
    reasons: list[str] = []
    for document in documents(file, lambda _, reason: reasons.append(reason)):
        # Where the row names no source: not the path, which another machine or working directory would change.
        source = file.name if document.source == str(file.path) else document.source
        for passage in split(replace(document, source=source), words=words):
            yield replace(passage, origin=file.name)
    if reasons:
        raise SkippedError(reasons[0])
