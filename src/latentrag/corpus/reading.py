"""Files and folders → documents → passages, read by this process or by others beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR
from typing import TypeAlias

from latentrag.corpus.processes import read_in_processes
from latentrag.corpus.readers import File, Formats, Ledger, Reading, UnreadableError, refusal
from latentrag.corpus.splitting import CountTokens, check_bounds, split
from latentrag.errors import DataError
from latentrag.io import text_of
from latentrag.options import TIME_LIMIT_S, FileOptions
from latentrag.types import Document, Passage

StrPath: TypeAlias = str | os.PathLike[str]
OnSkip: TypeAlias = Callable[[Path, str], None]
"""Called with a file that is left out, wholly or from some row on, and the reason."""
OnLedger: TypeAlias = Callable[[Ledger], None]
"""Called with the ledger of each file when the file has been read."""

_PICKLES = (".pkl", ".pickle", ".pt", ".bin")


def read(
    paths: StrPath | Iterable[StrPath],
    *,
    on_skip: OnSkip | None = None,
    on_ledger: OnLedger | None = None,
    workers: int = 0,
    time_limit_s: float = TIME_LIMIT_S,
    encoding: str | None = None,
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

    A folder is read with its subfolders. Hidden files are passed over in silence; files of other formats and
    links to folders are left out and reported to ``on_skip``. So is a file in a folder that turns out to be
    unreadable: its documents up to that line have been yielded and stay, the rest of it is left out.

    The id of a document is its row's or page's own, else ``f"{relative path}:{line}"``; of a file that is one
    document it is the relative path. Rows that share an id are not noticed here: that takes memory in proportion to
    the corpus.

    Args:
        paths: one file or folder, or several.
        on_skip: called with path and reason for each file of a folder that is left out. None: an unreadable
            file in a folder raises, as one that is given directly always does.
        on_ledger: called for each file that was opened with what became of it: characters, what was left out, encoding.
        workers: how many processes read, a file each at a time; the documents and their order are the same. A file
            that crashes its process is unreadable, like others. 0: this process reads, and would crash with it.
        time_limit_s: with workers, how long one document may take; a file that has a longer one is unreadable.
        encoding: of files that do not state theirs, as Python names it; None: UTF-8, and of a file that is not UTF-8
            a guess (charset-normalizer), which its ledger names.
    Raises: InputError for ``workers`` < 0 or a time limit that is not positive. DataError. When called: a path that
        does not exist, or is of another format, or of one whose library is not installed; two files of one document
        each that would have the same id. While reading, with the file
        and where possible the line: text that is not UTF-8, malformed rows, incomplete files, PDFs that are encrypted
        or only pictures, whatever the operating system refuses.
    """
    FileOptions(workers=workers, time_limit_s=time_limit_s, encoding=encoding)  # raises InputError
    formats = Formats()
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    files = [file for path in given for file in find_files(path, on_skip, formats, encoding)]
    _check_ids(files)
    return _documents(read_each(files, workers=workers, time_limit_s=time_limit_s), on_skip, on_ledger)


def passages(
    paths: StrPath | Iterable[StrPath],
    *,
    words: int = 100,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
    max_chars: int | None = None,
    on_skip: OnSkip | None = None,
    on_ledger: OnLedger | None = None,
    workers: int = 0,
    time_limit_s: float = TIME_LIMIT_S,
    encoding: str | None = None,
) -> Generator[Passage]:
    """The passages of files and folders: ``read``, then ``split``. ``close`` it as what ``read`` returns.

    Args:
        words, count_tokens, max_tokens, max_chars: see ``split``.
        paths, on_skip, on_ledger, workers, time_limit_s, encoding: see ``read``.
    Raises: InputError and DataError as ``split`` and ``read`` do.
    """
    check_bounds(words, count_tokens, max_tokens, max_chars)
    documents = read(
        paths, on_skip=on_skip, on_ledger=on_ledger, workers=workers, time_limit_s=time_limit_s, encoding=encoding
    )

    def stream() -> Generator[Passage]:
        with closing(documents):
            for document in documents:
                yield from split(
                    document, words=words, count_tokens=count_tokens, max_tokens=max_tokens, max_chars=max_chars
                )

    return stream()


def read_each(files: Iterable[File], *, workers: int, time_limit_s: float = TIME_LIMIT_S) -> Generator[Reading]:
    """The files one after another, each to be read to its end, or as far as is wanted, before the next is asked for.

    Args:
        files: taken one by one, with workers some before their turn.
        workers, time_limit_s: see ``read``.
    """
    if workers:
        yield from read_in_processes(files, workers=workers, time_limit_s=time_limit_s)
        return
    for file in files:
        ledger = file.ledger()
        yield Reading(file, file.documents(ledger), ledger)


def find_files(
    path: StrPath, on_skip: OnSkip | None = None, formats: Formats | None = None, encoding: str | None = None
) -> list[File]:
    """The files that ``read`` reads, sorted by name. Arguments and errors are those of ``read``."""
    path, formats = Path(path), formats or Formats()
    try:
        is_folder = S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise DataError(f"{path}: {refusal(error)}") from error
    if is_folder:
        files = (replace(file, encoding=encoding or "") for file in _walk(path, on_skip, formats))
        return sorted(files, key=lambda file: file.name)
    file = _file(path, text_of(path.name), formats, in_folder=False)
    if isinstance(file, str):
        raise DataError(f"{path}: {file}")
    return [replace(file, encoding=encoding or "")]


def _documents(readings: Generator[Reading], on_skip: OnSkip | None, on_ledger: OnLedger | None) -> Generator[Document]:
    with closing(readings):
        for reading in readings:
            try:
                yield from reading
            except UnreadableError as error:
                _refuse(reading.file.path, error, on_skip if reading.file.in_folder else None)
            if on_ledger is not None:
                on_ledger(reading.ledger)


def _walk(root: Path, on_skip: OnSkip | None, formats: Formats) -> Iterator[File]:
    def refuse_folder(error: OSError) -> None:
        folder = Path(error.filename)
        _refuse(folder, UnreadableError(refusal(error)), None if folder == root else on_skip)

    for folder, subfolders, names in os.walk(root, onerror=refuse_folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for path in (Path(folder, name) for name in subfolders):
            if path.is_symlink() and on_skip is not None:
                on_skip(path, "a link to a folder, which is not followed; pass that folder as well")
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            file = _file(path, text_of(path.relative_to(root).as_posix()), formats, in_folder=True)
            if isinstance(file, File):
                yield file
            elif on_skip is not None or formats.of(path.name):
                _refuse(path, UnreadableError(file), on_skip)


def _file(path: Path, name: str, formats: Formats, *, in_folder: bool) -> File | str:
    """The file with its format, or why it is not read."""
    known = formats.of_file(path)
    if known is None:
        return _unknown(path, formats)
    file = File(path, name, known, in_folder=in_folder)
    return file.reader.missing or file


def _unknown(path: Path, formats: Formats) -> str:
    extension, readable = path.suffix.lower(), formats.readable
    if extension in _PICKLES:
        return f"pickle files are never read, since that can run any code; convert it to one of {readable}"
    return f"{extension or 'no extension'} is not a format that is read; convert it to one of {readable}"


def _refuse(path: Path, error: UnreadableError, on_skip: OnSkip | None) -> None:
    """Report that the file, or the rest of it, is left out. Raises: DataError if nobody wants the report."""
    if on_skip is None:
        place = f" line {error.line}" if error.line else ""
        raise DataError(f"{path}{place}: {error.problem}") from error
    on_skip(path, str(error))


def _check_ids(files: Iterable[File]) -> None:
    """Rows have ids of their own; a file that is one document is known by its name alone."""
    by_name: dict[str, File] = {}
    for file in files:
        if file.reader.one_document and (first := by_name.setdefault(file.name, file)) is not file:
            raise DataError(
                f"{first.path} and {file.path} would both have the id {file.name!r}; "
                "pass the folder they have in common instead, and each file once"
            )
