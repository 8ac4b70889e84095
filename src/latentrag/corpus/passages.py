"""Documents cut into z: disjoint passages of 100 words (Lewis et al. 2020, §2.2)."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

from latentrag.corpus.readers import File, OnSkip, StrPath, find_files
from latentrag.corpus.reading import read_files
from latentrag.errors import DataError, InputError
from latentrag.types import Document, Passage

_WORD = re.compile(r"\S+")


def split(document: Document, *, words: int = 100) -> Iterator[Passage]:
    """Disjoint passages of ``words`` words each, the last of them shorter (Lewis et al. 2020, §2.2).

    A passage is the slice ``document.text[start:end]`` from the first character of its first word to the last
    of its last. Its id is the document's where the document is one passage, else ``f"{document.id}#{i}"`` with
    i from 0. A word is what stands between white space: a text in a script that writes none is one word.

    Args:
        document: a document that is ``whole`` gives one passage, however long; one without a word gives none.
        words: length of a passage in words.
    Raises: InputError if ``words`` < 1.
    """
    _check_words(words)
    return _split(document, words)


def passages(
    paths: StrPath | Iterable[StrPath], *, words: int = 100, on_skip: OnSkip | None = None, workers: int = 0
) -> Generator[Passage]:
    """The passages of files and folders: ``read``, then ``split``.

    All paths are looked up before the first passage, so that a misspelt one does not surface hours later. To stop
    before the last passage, ``close`` what is returned: that ends the processes that read.

    Args:
        paths: one file or folder, or several.
        words: length of a passage in words.
        on_skip: see ``read``.
        workers: see ``read``.
    Raises: InputError if ``words`` < 1. DataError as ``read`` does, and for two files of one document each that
        would have the same id.
    """
    _check_words(words)
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    files = [file for path in given for file in find_files(path, on_skip)]
    _check_ids(files)
    return _split_all(read_files(files, on_skip, workers=workers), words)


def _split_all(documents: Generator[Document], words: int) -> Generator[Passage]:
    with closing(documents):
        for document in documents:
            yield from _split(document, words)


def _split(document: Document, words: int) -> Iterator[Passage]:
    spans = _whole_span(document.text) if document.whole else list(_spans(document.text, words))
    for i, (start, end) in enumerate(spans):
        yield Passage(
            id=document.id if len(spans) == 1 else f"{document.id}#{i}",
            text=document.text[start:end],
            title=document.title,
            source=document.source,
            start=start,
            end=end,
            page=bisect_right(document.page_starts, start) or None,
        )


def _spans(text: str, words: int) -> Iterator[tuple[int, int]]:
    found = _WORD.finditer(text)
    while group := list(islice(found, words)):
        yield group[0].start(), group[-1].end()


def _whole_span(text: str) -> list[tuple[int, int]]:
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    return [(start, end)] if start < end else []


def _check_words(words: int) -> None:
    if words < 1:
        raise InputError(f"words={words} is less than one word a passage; pass 1 or more (the paper has 100)")


def _check_ids(files: Iterable[File]) -> None:
    """Rows have ids of their own; a file that is one document is known by its name alone."""
    seen: dict[str, Path] = {}
    for file in files:
        if not file.one_document:
            continue
        if file.name in seen:
            raise DataError(
                f"{seen[file.name]} and {file.path} would both have the id {file.name!r}; "
                "pass the folder they have in common instead, and each file once"
            )
        seen[file.name] = file.path
