"""Indexes of words for the versions of a memory: a segment for each file of the table, kept beside the other indexes.

    _indexes/words/FILES-CONTENT.words

FILES names the table's data files that hold the rows, CONTENT is a checksum. A commit adds files and marks rows in
older ones as deleted, so versions share the segments of the files that they share, and only new passages are tokenised.
Nothing in the folder is needed to read the memory.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from latentrag import io, postings
from latentrag.errors import MemoryStoreError
from latentrag.memory.indexes.folder import IndexFolder
from latentrag.memory.object_path import Folder
from latentrag.postings import Segment, WordIndex
from latentrag.types import Passage

if TYPE_CHECKING:
    import numpy.typing as npt
    from lance.fragment import LanceFragment

    from latentrag.memory.table import Table

FOLDER, SUFFIX = "words", ".words"
SMALLEST_STORED = 64
"""Rows; of fewer the words are found again as fast as a file is read."""
LARGEST_JOINED = 1_024
"""Rows; smaller segments are joined in RAM, since a search looks every term up in each segment."""
_DIGITS = 16

Files = tuple[str, ...]


class _Part(NamedTuple):
    """Rows of a version that lie in the same files: the ids of those that it has, (n,)."""

    files: Files
    fragment: LanceFragment
    row_ids: npt.NDArray[np.int64]


class BuiltWords(NamedTuple):
    """What a build of an index of words gave; ``disk_bytes`` of all its segments, those of other versions too."""

    version: int
    num_passages: int
    disk_bytes: int
    wall_s: float


class WordSupply:
    """Indexes of words for the versions of one memory; safe to call from several threads.

    The segments that were used last are kept, so that the next version costs what a commit changed.
    """

    def __init__(self) -> None:
        self._kept: dict[Files, Segment] = {}
        self._joined: dict[tuple[Segment, ...], Segment] = {}
        self._lock = threading.Lock()

    def index_for(self, table: Table, folder: IndexFolder, *, progress: bool = False) -> WordIndex:
        """The index of this version. Segments that are not there are built and stored, each as soon as it is whole.

        Where they cannot be stored, they are kept in RAM, with a warning.
        """
        with self._lock:
            parts = list(_parts(table))
            segments = {part.files: self._segment(part, folder.path / FOLDER) for part in parts}
            missing = [part for part in parts if segments[part.files] is None]
            if missing:
                with io.progress("words", sum(len(part.row_ids) for part in missing), wanted=progress) as bar:
                    for part, segment in _built(table, missing, folder):
                        segments[part.files] = segment
                        bar.advance(len(segment))
            self._kept = {files: segment for files, segment in segments.items() if segment is not None}
            return WordIndex(list(self._searched(parts)))

    def _segment(self, part: _Part, folder: Path) -> Segment | None:
        """The one that was used last or is on the disk."""
        kept = self._kept.get(part.files)
        return kept if kept is not None and _has(kept, part) else _stored(part, folder)

    def _searched(self, parts: Iterable[_Part]) -> Iterator[tuple[Segment, npt.NDArray[np.bool_] | None]]:
        """Segments with the rows that are there, small ones beside each other joined."""
        joined: dict[tuple[Segment, ...], Segment] = {}
        for is_small, group in groupby(parts, key=lambda part: len(self._kept[part.files]) < LARGEST_JOINED):
            run = list(group)
            if is_small and len(run) > 1:
                segments = tuple(self._kept[part.files] for part in run)
                found = self._joined.get(segments)
                joined[segments] = found = postings.joined(segments) if found is None else found
                yield found, _mask(found, np.concatenate([part.row_ids for part in run]))
            else:
                for part in run:
                    yield self._kept[part.files], _mask(self._kept[part.files], part.row_ids)
        self._joined = joined


def _parts(table: Table) -> Iterator[_Part]:
    for names, fragment in table.fragments().items():
        files = tuple(sorted(name for name in names if name.startswith("data/")))
        yield _Part(files, fragment, table.row_ids([fragment]))


def _mask(segment: Segment, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
    """Which rows of a segment are among these; None: all."""
    return None if len(segment) == len(row_ids) else np.isin(segment.row_ids, row_ids)


def _has(segment: Segment, part: _Part) -> bool:
    """Whether a segment has all rows of a part: one that was built of a later version lacks those deleted by then."""
    return bool(np.isin(part.row_ids, segment.row_ids).all())


# Files


def _name(files: Files) -> str:
    return hashlib.sha256("\n".join((postings.FORMAT, *files)).encode()).hexdigest()[:_DIGITS]


def _stored(part: _Part, folder: Path) -> Segment | None:
    """A segment from the disk; None if there is none that is whole and has all rows."""
    for path in sorted(folder.glob(f"{_name(part.files)}-*{SUFFIX}")):
        try:
            if _is_whole(path):
                segment = postings.read(path)
                if _has(segment, part):
                    return segment
                continue
        except FileNotFoundError:
            continue  # thrown away at this moment
        except ValueError:
            pass
        warnings.warn(f"{path} is damaged; the words of its passages are indexed again", stacklevel=2)
        path.unlink(missing_ok=True)
    return None


def _is_whole(path: Path) -> bool:
    return io.sha256_of_file(path)[:_DIGITS] == path.stem.rpartition("-")[2]


def _built(table: Table, missing: Sequence[_Part], folder: IndexFolder) -> Iterator[tuple[_Part, Segment]]:
    """The segments of these parts, made and stored one by one."""
    large = [part for part in missing if len(part.row_ids) >= SMALLEST_STORED]
    try:
        if large:
            with folder.building():
                (folder.path / FOLDER).mkdir(exist_ok=True)
                _remove_unneeded(table.path, folder.path / FOLDER)
                for part in large:
                    yield part, _stored(part, folder.path / FOLDER) or _store(table, part, folder.path / FOLDER)
                large = []
    except (MemoryStoreError, OSError) as error:
        if not _are_there(table.path, [name for part in large for name in part.files]):
            raise MemoryStoreError(f"version {table.version} of {table.path} is gone; ask another") from error
        warnings.warn(f"the index of words is not kept: {error}", stacklevel=2)
    small = [part for part in missing if len(part.row_ids) < SMALLEST_STORED]
    for part in (*large, *small):
        yield part, _segment_of(table, part)


def _store(table: Table, part: _Part, folder: Path) -> Segment:
    segment = _segment_of(table, part)
    name = _name(part.files)
    scratch = folder / f".{name}"
    try:
        postings.write(segment, scratch, metadata={"files": "\n".join(part.files)})
        io.sync_file(scratch)
        # Looked for once the scratch is there: a process that removes versions for good removes it afterwards.
        if not _are_there(table.path, part.files):
            raise MemoryStoreError(f"version {table.version} of {table.path} is gone")
        target = folder / f"{name}-{io.sha256_of_file(scratch)[:_DIGITS]}{SUFFIX}"
        for older in folder.glob(f"{name}-*{SUFFIX}"):  # it lacks rows
            older.unlink(missing_ok=True)
        scratch.rename(target)
        io.sync_folder(folder)
    finally:
        scratch.unlink(missing_ok=True)
    return postings.read(target)


def _segment_of(table: Table, part: _Part) -> Segment:
    rows = []

    def passages() -> Iterator[Passage]:
        for batch in table.scan(["title", "text"], fragments=[part.fragment], with_row_id=True):
            rows.append(batch["_rowid"].to_numpy().astype(np.int64))
            for title, text in zip(batch["title"].to_pylist(), batch["text"].to_pylist(), strict=True):
                yield Passage("", text, title)

    segment = postings.segment_of(passages())
    return Segment(np.concatenate([np.empty(0, np.int64), *rows]), segment.words, segment.parts)


def _are_there(memory: Folder, files: Iterable[str]) -> bool:
    return all((memory / name).exists() for name in files)


def _remove_unneeded(memory: Folder, folder: Path) -> None:
    """Segments whose rows no version has any more, and those of other formats."""
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            metadata = postings.metadata_of(path)
        except (ValueError, OSError):
            continue
        if metadata.get("format") != postings.FORMAT or not _are_there(memory, metadata.get("files", "").split("\n")):
            path.unlink(missing_ok=True)


def sizes(folder: IndexFolder) -> Mapping[str, int]:
    """The segments that are stored, by name, with their bytes."""
    return {path.name: path.stat().st_size for path in sorted((folder.path / FOLDER).glob(f"*{SUFFIX}"))}


def damaged(folder: IndexFolder) -> list[Path]:
    """The segments that are not as they were written."""
    return [path for path in sorted((folder.path / FOLDER).glob(f"*{SUFFIX}")) if not _is_whole(path)]
