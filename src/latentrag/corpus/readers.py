"""What reads a file: one table of readers, the ledger that each of them keeps, and a file that one of them reads.

A format is added by one module of another package, with a reader in it, and an entry point that names it:

    [project.entry-points."latentrag.readers"]
    subtitles = "my_package:SUBTITLES"
"""

from __future__ import annotations

import bz2
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from latentrag.corpus.stating import bounded
from latentrag.io import text_of
from latentrag.registry import Table
from latentrag.types import Document

_PACKED: Mapping[str, tuple[str, Callable[..., Any]]] = {".gz": ("gzip", gzip.open), ".bz2": ("bzip2", bz2.open)}


class UnreadableError(Exception):
    """What is wrong with a file, or with one line of it (counted from 1), and the remedy."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem, line)
        self.problem = problem
        self.line = line

    def __str__(self) -> str:
        return self.problem if self.line is None else f"from line {self.line} on: {self.problem}"


def not_whole(kind: str, error: Exception, remedy: str) -> UnreadableError:
    """What is wrong with a packed file. Raises: MemoryError, where zlib says that there is too little (number -4)."""
    if isinstance(error, zlib.error) and str(error).startswith("Error -4 "):
        raise MemoryError(str(error)) from error
    return UnreadableError(f"not a whole {kind} ({error}); {remedy} again")


@dataclass(slots=True)
class Ledger:
    """What became of a file. It is complete when the file's documents have ended.

    Attributes:
        file: its path, which is the source of its documents.
        characters: of the documents' texts together.
        left_out: reason → count of what is in no document. The reason names what is counted: "page without text".
        encoding: what the bytes were taken for; empty where the format itself says how text is stored.
        is_guess: the encoding was guessed, since neither the file nor the user states it and it is not UTF-8.
        asked_encoding: what the user says of files that do not state theirs; empty: nothing.
    """

    file: str
    characters: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    encoding: str = ""
    is_guess: bool = False
    asked_encoding: str = field(default="", compare=False)

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Note that so much more was left out for this reason. A count of 0 notes nothing."""
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count


Read: TypeAlias = Callable[[BinaryIO, str, Ledger], Iterator[Document]]
"""(the open file, its name for ids, its ledger) → documents. Raises: UnreadableError, after the documents so far.

The file can be read piece by piece, as a stream, and unless it is packed it can seek. ``ledger.file`` is the documents'
source. The reader notes what it leaves out and the encoding; the characters are counted by the caller."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A format. A file has it if its name ends with one of ``suffixes`` or matches ``pattern``; where no reader knows
    the name, if its MIME type is one of ``mime_types``; else if its first bytes are one of ``magic``.

    Attributes:
        suffixes: in lower case, with the dot; the first is the one that messages name.
        pattern: a regular expression for whole names in lower case.
        one_document: a file is one document, known by its name alone.
        library: the modules that it needs, of the extra ``documents``, with spaces between; empty: none.
        packed: read with .gz or .bz2 at the end of its name too.
    """

    read: Read
    suffixes: tuple[str, ...] = ()
    pattern: str = r"(?!)"
    mime_types: tuple[str, ...] = ()
    magic: tuple[bytes, ...] = ()
    one_document: bool = False
    library: str = ""
    packed: bool = False

    @property
    def missing(self) -> str:
        """What to do before this reader can be used; empty if nothing is missing. Imports nothing."""
        missing = [library for library in self.library.split() if find_spec(library) is None]
        return f"reading it needs {' and '.join(missing)}; run pip install 'latentrag[documents]'" if missing else ""


READERS: Table[Reader] = Table(
    "reader",
    {
        "text": "latentrag.corpus.text:TEXT",
        "markdown": "latentrag.corpus.text:MARKDOWN",
        "rst": "latentrag.corpus.text:RST",
        "html": "latentrag.corpus.html:HTML",
        "pdf": "latentrag.corpus.pdf:PDF",
        "docx": "latentrag.corpus.docx:DOCX",
        "pptx": "latentrag.corpus.slides:PPTX",
        "xlsx": "latentrag.corpus.tables:EXCEL",
        "csv": "latentrag.corpus.tables:CSV",
        "json": "latentrag.corpus.json_files:JSON",
        "ipynb": "latentrag.corpus.json_files:NOTEBOOK",
        "epub": "latentrag.corpus.books:EPUB",
        "jsonl": "latentrag.corpus.text:JSON_LINES",
        "tsv": "latentrag.corpus.text:TSV",
        "wikipedia": "latentrag.corpus.wikipedia:DUMP",
        "wikiextractor": "latentrag.corpus.wikipedia:EXTRACTED",
    },
    group="latentrag.readers",
)
"""Where two know a file, the earlier one reads it; readers of other packages come after our own."""


class Formats:
    """The table of readers as it is now, to look up many files in."""

    def __init__(self) -> None:
        self._readers = [(name, READERS[name]) for name in READERS]
        self._num_magic_bytes = max(len(magic) for _, reader in self._readers for magic in (b"", *reader.magic))

    @property
    def readable(self) -> str:
        """The formats, for messages."""
        return ", ".join(reader.suffixes[0] for _, reader in self._readers if reader.suffixes)

    def of(self, file_name: str, *, mime_type: str = "", start: bytes = b"") -> str | None:
        """The name of the reader that reads a file of this name, type or first bytes; None if there is none."""
        file_name = file_name.lower()
        packed = file_name.endswith(tuple(_PACKED))
        if packed:
            file_name = file_name.rpartition(".")[0]
        for name, reader in self._readers:
            if file_name.endswith(reader.suffixes) or re.fullmatch(reader.pattern, file_name):
                return name if reader.packed or not packed else None
        by_type = (name for name, reader in self._readers if mime_type in reader.mime_types)
        by_start = (name for name, reader in self._readers if reader.magic and start.startswith(reader.magic))
        return next(by_type, None) or next(by_start, None)

    def of_file(self, path: Path) -> str | None:
        """By its name, else by its first bytes; None too for what is not a file or cannot be opened."""
        known = self.of(path.name)
        if known is None and self._num_magic_bytes and path.is_file():
            with suppress(OSError), path.open("rb") as stream:
                return self.of("", start=stream.read(self._num_magic_bytes))
        return known


@dataclass(frozen=True, slots=True)
class File:
    """A file of a known format.

    Attributes:
        path: where it is, as the user gave it.
        name: what ids are made of: its path relative to the given folder; its own name if it was given itself.
        format: its reader's name in the table.
        in_folder: found in a folder, so that it is left out if it cannot be read; otherwise that is an error.
        encoding: of its text if it does not state it itself; empty: UTF-8, else a guess.
    """

    path: Path
    name: str
    format: str
    in_folder: bool
    encoding: str = ""

    def ledger(self) -> Ledger:
        """An empty one."""
        return Ledger(self.source, asked_encoding=self.encoding)

    @property
    def reader(self) -> Reader:
        return READERS[self.format]

    @property
    def source(self) -> str:
        """What its documents name as their source where they do not say themselves."""
        return text_of(self.path)

    def documents(self, ledger: Ledger) -> Iterator[Document]:
        """What is in it. Raises: UnreadableError."""
        packing, open_file = _PACKED.get(self.path.suffix.lower(), ("", Path.open))
        try:
            self.check()
            with open_file(self.path, "rb") as stream:
                for document in self.reader.read(stream, self.name, ledger):
                    title = bounded(document.title)
                    ledger.leave_out("character at the end of a long title", len(document.title) - len(title))
                    yield document if title == document.title else replace(document, title=title)
        except (EOFError, OSError, zlib.error) as error:
            # What the system refuses has a number.
            if isinstance(error, OSError) and (error.errno is not None or not packing):
                raise UnreadableError(refusal(error)) from error
            raise not_whole(f"{packing} file", error, "fetch it") from error

    def check(self) -> None:
        """Raises: UnreadableError for what is not read, whatever its format."""
        try:
            self.name.encode()
        except UnicodeEncodeError as error:
            raise UnreadableError("its name is not UTF-8, and ids are made of it; rename it") from error
        if self.in_folder and not self.path.is_file():
            raise UnreadableError("a broken link, a pipe or a device, not a file; remove it or pass what it stands for")


@dataclass(slots=True)
class Reading:
    """A file's documents while it is read; its ledger is complete when they have ended."""

    file: File
    documents: Iterator[Document]
    ledger: Ledger

    def __iter__(self) -> Iterator[Document]:
        """Raises: UnreadableError, after the documents so far."""
        try:
            for document in self.documents:
                self.ledger.characters += len(document.text)
                yield document
        except UnreadableError as error:
            self.ledger.leave_out(str(error))
            raise


def refusal(error: OSError) -> str:
    """What the operating system said, for messages."""
    return f"cannot be read ({error.strerror or error}); check the path and its permissions"
