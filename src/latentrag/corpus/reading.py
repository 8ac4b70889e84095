"""Files and folders → documents → passages, read by this process or by others beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cache
from typing import Any, TypeAlias, TypedDict, Unpack

from latentrag.corpus.aligning import Fetch, Stored
from latentrag.corpus.finding import OnSkip, StrPath, find_files, refuse
from latentrag.corpus.processes import read_in_processes
from latentrag.corpus.readers import File, Formats, Ledger, Reading, UnreadableError
from latentrag.corpus.splitting import Bounds, CountTokens, check_bounds, split
from latentrag.errors import DataError
from latentrag.ids import IdsUnder, ids_among
from latentrag.options import FileOptions
from latentrag.protocols import Part
from latentrag.types import Document, Passage

OnLedger: TypeAlias = Callable[[Ledger], None]
"""Called with the ledger of each file when the file has been read."""


class FileArguments(TypedDict, total=False):
    """How files are read, as ``read`` says; the names are those of ``FileOptions``."""

    workers: int
    time_limit_s: float
    memory_limit: str
    encoding: str | None
    exclude: Sequence[str]
    no_gitignore: bool
    follow_links: bool


def read(
    paths: StrPath | Iterable[StrPath],
    *,
    on_skip: OnSkip | None = None,
    on_ledger: OnLedger | None = None,
    **how: Unpack[FileArguments],
) -> Generator[Document]:
    """The documents of files and folders, one at a time; those of a folder in the order of the sorted paths.

    All paths are looked up before the first document, so that a misspelt one does not surface hours later. To stop
    before the last document, ``close`` what is returned: that ends the processes that read.

    Formats, by the end of the name, text in UTF-8 unless the format says otherwise:

    - .txt, .md, .markdown, .rst, .ipynb: a document each.
    - .html, .htm, .xhtml: the page's main text; .pdf: all its pages; .pptx: all its slides; .docx: its text.
      A document each; .epub: a document a chapter; offsets
      are those in the text that was extracted.
    - .jsonl with the field names of DPR, KILT, BEIR or FlashRAG, or simply ``text`` and perhaps ``title``, ``id``,
      ``source``; .tsv as DPR's psgs_w100.tsv, whose rows are passages already.
    - .csv, .xlsx: a document a row, its cells after the heads of their columns; .json: a document an object.
    - .xml of MediaWiki (pages-articles) and wiki_00, wiki_01, … of WikiExtractor --json: a document each article.

    JSON lines, TSV, CSV and dumps may end in .gz or .bz2 too. HTML, EPUB, PDF, XLSX and MediaWiki's XML need
    ``latentrag[documents]``. Other
    packages can add formats (``corpus.readers``).

    A folder is read with its subfolders. What is hidden, or excluded by ``exclude`` or a .gitignore (in the folder, or
    above it up to the repository's), is passed over in silence. Files of other formats and links that lead out of
    the folder are left out and reported to ``on_skip``; what is linked to within it is read once. So is the
    rest of a file that turns out to be unreadable: its documents up to that line have been yielded and stay.

    The id of a document is its row's or page's own, else ``f"{relative path}:{line}"``; of a file that is one
    document it is the relative path, in Unicode's form NFC. Rows that share an id are not noticed here: that takes
    memory in proportion to the corpus.

    Args:
        paths: one file or folder, or several.
        on_skip: called with path and reason for each file of a folder that is left out. None: an unreadable
            file in a folder raises, as one that is given directly always does.
        on_ledger: called for each file that was opened with what became of it: characters, what was left out, encoding.
        workers: how many processes read, a file each at a time; the documents and their order are the same. A file
            that crashes its process is unreadable, like others. 0, the default: this process reads, and would crash
            with it.
        time_limit_s: with workers, how long one document may take, 300 by default; a file that has a longer one is
            unreadable.
        memory_limit: with workers, how much memory each of them may take, 2GB by default; a file that needs more is
            unreadable. Kept by Linux; macOS and Windows have no such limit.
        encoding: of files that do not state theirs, as Python names it. None, the default: UTF-8, and of a file that is
            not UTF-8 a guess (charset-normalizer), which its ledger names.
        exclude: patterns of files and folders to leave out, as in a .gitignore of each folder.
        no_gitignore: read what .gitignore files exclude.
        follow_links: read what links lead to outside of the folder.
    Raises: InputError for ``workers`` < 0, limits that are too low, or what is no pattern. DataError. When called: a
        path that does not exist, or is of another format, or of one whose library is not installed; two files of one
        document each that would have the same id. While reading, with the file and where possible the line: text
        that is not UTF-8, malformed rows, incomplete files, PDFs that are encrypted or only pictures, whatever the
        operating system refuses.
    """
    readings = _readings(paths, _options(how), on_skip)

    def stream() -> Generator[Document]:
        with closing(_documents(readings, on_skip, on_ledger)) as documents:
            for document, _ in documents:
                yield document

    return stream()


def passages(
    paths: StrPath | Iterable[StrPath],
    *,
    words: int = 100,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
    max_chars: int | None = None,
    bounds: Callable[[], Bounds] | None = None,
    on_skip: OnSkip | None = None,
    on_ledger: OnLedger | None = None,
    **how: Unpack[FileArguments],
) -> Passages:
    """The passages of files and folders: ``read``, then ``split``. ``close`` it as what ``read`` returns.

    When they are added to a memory that has passages of the same files, unchanged passages stay as they are.

    Args:
        words, count_tokens, max_tokens, max_chars: see ``split``; what that leaves out is in the ledgers.
        bounds: in place of ``count_tokens`` and ``max_tokens``: asked for them at the first document, so that nothing
            is loaded for files that are not there.
        Others: see ``read``.
    Raises: InputError and DataError as ``split`` and ``read`` do.
    """
    check_bounds(words, count_tokens, max_tokens, max_chars)
    readings = _readings(paths, _options(how), on_skip)
    asked = cache(bounds or Bounds)

    def cut(document: Document, ledger: Ledger, stored: Stored) -> list[Passage]:
        counter: Bounds = asked()
        if count_tokens is not None and max_tokens is not None:
            counter = {"count_tokens": count_tokens, "max_tokens": max_tokens}
        out = ledger.leave_out
        return list(split(document, words=words, max_chars=max_chars, leave_out=out, stored=stored, **counter))

    return Passages(readings, cut, on_skip, on_ledger)


class Passages(Iterator[Passage]):
    """The passages of files, to be read once: iterate, or call ``beside`` to compare with a memory (``FromFiles``)."""

    def __init__(
        self,
        readings: Generator[Reading],
        cut: Callable[[Document, Ledger, Stored], list[Passage]],
        on_skip: OnSkip | None,
        on_ledger: OnLedger | None,
    ) -> None:
        self._readings, self._cut, self._on_skip, self._on_ledger = readings, cut, on_skip, on_ledger
        self._stream = (passage for part in self.beside(ids_among(()), lambda _: ()) for passage in part.passages)

    def __next__(self) -> Passage:
        return next(self._stream)

    def close(self) -> None:
        """End the processes that read."""
        self._stream.close()
        self._readings.close()

    def beside(self, ids_under: IdsUnder, fetch: Fetch) -> Generator[Part]:
        """See ``protocols.FromFiles``."""
        with closing(self._readings):
            for reading in self._readings:
                stored = Stored(reading.file.name, ids_under, fetch)
                try:
                    for document in reading:
                        passages = self._cut(document, reading.ledger, stored)
                        gone = stored.gone(document, passages) if stored.states(document) else []
                        if document.id == reading.file.name:
                            gone = stored.rows.gone()  # the file is this one document
                        yield Part(passages, gone)
                    yield Part((), stored.rows.gone())
                except UnreadableError as error:
                    refuse(reading.file.path, error, self._on_skip if reading.file.in_folder else None)
                if self._on_ledger is not None:
                    self._on_ledger(reading.ledger)


def _options(how: FileArguments) -> FileOptions:
    """Raises: InputError."""
    given: dict[str, Any] = {"workers": 0, **how, "exclude": tuple(how.get("exclude", ()))}
    return FileOptions(**given)


def _readings(paths: StrPath | Iterable[StrPath], options: FileOptions, on_skip: OnSkip | None) -> Generator[Reading]:
    """All files, looked up now and read later. Raises: DataError."""
    formats = Formats()
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    files = [file for path in given for file in find_files(path, options, on_skip, formats)]
    _check_ids(files)
    return read_each(files, options)


def read_each(files: Iterable[File], options: FileOptions) -> Generator[Reading]:
    """The files one after another, each to be read to its end, or as far as is wanted, before the next is asked for.

    Args: files: taken one by one, with workers some before their turn.
    """
    if options.workers:
        yield from read_in_processes(files, options)
        return
    for file in files:
        ledger = file.ledger()
        yield Reading(file, file.documents(ledger), ledger)


def _documents(
    readings: Generator[Reading], on_skip: OnSkip | None, on_ledger: OnLedger | None
) -> Generator[tuple[Document, Ledger]]:
    """With the ledger of its file, which is complete when it is handed to ``on_ledger``."""
    with closing(readings):
        for reading in readings:
            try:
                for document in reading:
                    yield document, reading.ledger
            except UnreadableError as error:
                refuse(reading.file.path, error, on_skip if reading.file.in_folder else None)
            if on_ledger is not None:
                on_ledger(reading.ledger)


def _check_ids(files: Iterable[File]) -> None:
    """Rows have ids of their own; a file that is one document is known by its name alone."""
    by_name: dict[str, File] = {}
    for file in files:
        if file.reader.one_document and (first := by_name.setdefault(file.name, file)) is not file:
            raise DataError(
                f"{first.path} and {file.path} would both have the id {file.name!r}; "
                "pass the folder they have in common instead, and each file once"
            )
