"""Which files are read, and what happens to those that cannot be: files and folders → documents."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import BinaryIO, TypeAlias, cast

from latentrag.corpus.formats import FORMATS, UnreadableError
from latentrag.errors import DataError
from latentrag.types import Document

StrPath: TypeAlias = str | os.PathLike[str]
OnSkip: TypeAlias = Callable[[Path, str], None]
"""Called with a file that is left out, wholly or from some row on, and the reason."""

_READABLE = ", ".join(FORMATS)
_PICKLES = (".pkl", ".pickle", ".pt", ".bin")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a known format.

    Attributes:
        path: where it is, as the user gave it.
        name: what ids are made of: its path relative to the given folder; its own name if it was given itself.
        suffix: a key of FORMATS.
        in_folder: found in a folder, so that it is left out if it cannot be read; otherwise that is an error.
    """

    path: Path
    name: str
    suffix: str
    in_folder: bool

    @property
    def one_document(self) -> bool:
        return self.suffix in (".txt", ".md")


def read(path: StrPath, *, on_skip: OnSkip | None = None) -> Iterator[Document]:
    """The documents of a file or folder, in the order of the sorted paths, one at a time.

    Formats, by extension, all UTF-8: .txt and .md, one document each; .jsonl and .jsonl.gz with the field names
    of DPR, KILT, BEIR or FlashRAG, or simply ``text`` and perhaps ``title``, ``id``, ``source``; .tsv and
    .tsv.gz as DPR's psgs_w100.tsv, whose rows are passages already.

    A folder is read with its subfolders. Hidden files are passed over in silence; files of other formats and
    links to folders are left out and reported to ``on_skip``. So is a file in a folder that turns out to be
    unreadable: its documents up to that line have been yielded and stay, the rest of it is left out.

    The id of a document is its row's own, else ``f"{relative path}:{line}"``; for .txt and .md it is the
    relative path. Rows that share an id are not noticed here: that takes memory in proportion to the corpus.

    Args:
        path: a file, or a folder.
        on_skip: called with path and reason for each file of a folder that is left out. None: an unreadable
            file in a folder raises, as one that is given directly always does.
    Raises: DataError. When called: a path that does not exist, or is of another format. While reading, with the
        file and the line: text that is not UTF-8, malformed rows, incomplete gzip files, whatever the operating
        system refuses.
    """
    files = find_files(path, on_skip)
    return (document for file in files for document in documents(file, on_skip))


def find_files(path: StrPath, on_skip: OnSkip | None = None) -> list[File]:
    """The files that ``read`` reads, sorted by name. Arguments and errors are those of ``read``."""
    path = Path(path)
    try:
        is_folder = S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise DataError(f"{path}: {_refusal(error)}") from error
    if is_folder:
        return sorted(_walk(path, on_skip), key=lambda file: file.name)
    suffix = _suffix(path)
    if suffix is None:
        raise DataError(f"{path}: {_unknown(path)}")
    return [File(path, path.name, suffix, in_folder=False)]


def documents(file: File, on_skip: OnSkip | None = None) -> Iterator[Document]:
    """The documents of one file; ``on_skip`` and errors as in ``read``."""
    on_skip = on_skip if file.in_folder else None
    try:
        _check(file)
        with _open(file.path) as stream:
            yield from FORMATS[file.suffix](stream, file.name, str(file.path))
    except UnreadableError as error:
        _refuse(file.path, error, on_skip)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        _refuse(file.path, UnreadableError(f"not a whole gzip file ({error}); fetch it again"), on_skip)
    except OSError as error:
        _refuse(file.path, UnreadableError(_refusal(error)), on_skip)


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
            suffix = _suffix(path)
            if suffix is not None:
                yield File(path, path.relative_to(root).as_posix(), suffix, in_folder=True)
            elif on_skip is not None:
                on_skip(path, _unknown(path))


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), None)


def _unknown(path: Path) -> str:
    extension = path.suffix.lower()
    if extension in _PICKLES:
        return f"pickle files are never read, since that can run any code; convert it to one of {_READABLE}"
    if extension == ".json":
        return f"only JSON lines are read, one object a line; name it .jsonl if it is that (read: {_READABLE})"
    return f"{extension or 'no extension'} is not a format that is read; convert it to one of {_READABLE}"


def _check(file: File) -> None:
    try:
        file.name.encode()
    except UnicodeEncodeError as error:
        raise UnreadableError("its name is not UTF-8, and ids are made of it; rename it") from error
    if file.in_folder and not file.path.is_file():
        raise UnreadableError("a broken link, a pipe or a device, not a file; remove it or pass what it stands for")


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast("BinaryIO", gzip.open(path, "rb"))
    return path.open("rb")


def _refusal(error: OSError) -> str:
    return f"cannot be read ({error.strerror or error}); check the path and its permissions"


def _refuse(path: Path, error: UnreadableError, on_skip: OnSkip | None) -> None:
    """Tells ``on_skip`` that a file is left out, or the rest of it; raises where there is nobody to tell."""
    if on_skip is None:
        place = f" line {error.line}" if error.line else ""
        raise DataError(f"{path}{place}: {error.problem}") from error
    place = f"from line {error.line} on: " if error.line else ""
    on_skip(path, f"{place}{error.problem}")
