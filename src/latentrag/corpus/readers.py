"""Which files are read, and what happens to those that cannot be."""

from __future__ import annotations

import bz2
import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import BinaryIO, TypeAlias, cast

from latentrag.corpus.formats import UnreadableError
from latentrag.corpus.kinds import READABLE, Kind, kind_of
from latentrag.errors import DataError
from latentrag.types import Document

StrPath: TypeAlias = str | os.PathLike[str]
OnSkip: TypeAlias = Callable[[Path, str], None]
"""Called with a file that is left out, wholly or from some row on, and the reason."""

_PICKLES = (".pkl", ".pickle", ".pt", ".bin")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a known format.

    Attributes:
        path: where it is, as the user gave it.
        name: what ids are made of: its path relative to the given folder; its own name if it was given itself.
        kind: its format.
        in_folder: found in a folder, so that it is left out if it cannot be read; otherwise that is an error.
    """

    path: Path
    name: str
    kind: Kind
    in_folder: bool

    @property
    def one_document(self) -> bool:
        return self.kind.one_document

    def documents(self) -> Iterator[Document]:
        """What is in it. Raises: UnreadableError."""
        packing = "bzip2" if self.path.suffix.lower() == ".bz2" else "gzip"
        try:
            self._check()
            with _open(self.path) as stream:
                yield from self.kind.read(stream, self.name, str(self.path))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UnreadableError(f"not a whole {packing} file ({error}); fetch it again") from error
        except OSError as error:
            if error.errno is None and packing == "bzip2":
                raise UnreadableError(f"not a whole bzip2 file ({error}); fetch it again") from error
            raise UnreadableError(_refusal(error)) from error

    def refuse(self, error: UnreadableError, on_skip: OnSkip | None) -> None:
        """Tells ``on_skip`` that the file, or the rest of it, is left out, if it was found in a folder.

        Raises: DataError if it was given directly, or if there is nobody to tell.
        """
        _refuse(self.path, error, on_skip if self.in_folder else None)

    def _check(self) -> None:
        try:
            self.name.encode()
        except UnicodeEncodeError as error:
            raise UnreadableError("its name is not UTF-8, and ids are made of it; rename it") from error
        if self.in_folder and not self.path.is_file():
            raise UnreadableError("a broken link, a pipe or a device, not a file; remove it or pass what it stands for")


def find_files(path: StrPath, on_skip: OnSkip | None = None) -> list[File]:
    """The files that ``read`` reads, sorted by name. Arguments and errors are those of ``read``."""
    path = Path(path)
    try:
        is_folder = S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise DataError(f"{path}: {_refusal(error)}") from error
    if is_folder:
        return sorted(_walk(path, on_skip), key=lambda file: file.name)
    kind = kind_of(path.name)
    if kind is None:
        raise DataError(f"{path}: {_unknown(path)}")
    if kind.missing:
        raise DataError(f"{path}: {kind.missing}")
    return [File(path, path.name, kind, in_folder=False)]


def documents(file: File, on_skip: OnSkip | None = None) -> Iterator[Document]:
    """The documents of one file, read by this process; ``on_skip`` and errors as in ``read``."""
    try:
        yield from file.documents()
    except UnreadableError as error:
        file.refuse(error, on_skip)


def _walk(root: Path, on_skip: OnSkip | None) -> Iterator[File]:
    def refuse_folder(error: OSError) -> None:
        folder = Path(error.filename)
        _refuse(folder, UnreadableError(_refusal(error)), None if folder == root else on_skip)

    for folder, subfolders, names in os.walk(root, onerror=refuse_folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for path in (Path(folder, name) for name in subfolders):
            if path.is_symlink() and on_skip is not None:
                on_skip(path, "a link to a folder, which is not followed; pass that folder as well")
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            kind = kind_of(path.name)
            if kind is None:
                if on_skip is not None:
                    on_skip(path, _unknown(path))
            elif kind.missing:
                _refuse(path, UnreadableError(kind.missing), on_skip)
            else:
                yield File(path, path.relative_to(root).as_posix(), kind, in_folder=True)


def _unknown(path: Path) -> str:
    extension = path.suffix.lower()
    if extension in _PICKLES:
        return f"pickle files are never read, since that can run any code; convert it to one of {READABLE}"
    if extension == ".json":
        return f"only JSON lines are read, one object a line; name it .jsonl if it is that (read: {READABLE})"
    return f"{extension or 'no extension'} is not a format that is read; convert it to one of {READABLE}"


def _open(path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, "rb"))
    if suffix == ".bz2":
        return cast("BinaryIO", bz2.open(path, "rb"))
    return path.open("rb")


def _refusal(error: OSError) -> str:
    return f"cannot be read ({error.strerror or error}); check the path and its permissions"


def _refuse(path: Path, error: UnreadableError, on_skip: OnSkip | None) -> None:
    if on_skip is None:
        place = f" line {error.line}" if error.line else ""
        raise DataError(f"{path}{place}: {error.problem}") from error
    place = f"from line {error.line} on: " if error.line else ""
    on_skip(path, f"{place}{error.problem}")
