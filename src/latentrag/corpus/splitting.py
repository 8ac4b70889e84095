"""Documents cut into z: disjoint passages of 100 words (Lewis et al. 2020, §2.2), bounded in tokens where wanted."""

from __future__ import annotations

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeAlias

from latentrag.errors import DataError, InputError
from latentrag.types import Document, Passage, Scalar

CountTokens: TypeAlias = Callable[[str, str], int]
"""(title, text) → how many tokens the encoder makes of such a passage, those that it adds itself included."""
Fits: TypeAlias = Callable[[int, int], bool]
"""(start, end) → whether that part of the text may be a passage."""
Span: TypeAlias = tuple[int, int]

_WORD = re.compile(r"\S+")


def split(
    document: Document,
    *,
    words: int = 100,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
    max_chars: int | None = None,
) -> Iterator[Passage]:
    """Disjoint passages of ``words`` words each, the last of them shorter (Lewis et al. 2020, §2.2).

    A passage is the slice ``document.text[start:end]`` from the first character of its first word to the last
    of its last. Its id is the document's where the document is one passage, else ``f"{document.id}#{i}"`` with
    i from 0. A word is what stands between white space: a text in a script that writes none is one word.

    Differs from the paper where a bound is given: a passage that would be longer ends after the last word within the
    bounds, and a word that is longer itself is cut.

    Args:
        document: a document that is ``whole`` gives one passage, however many words it has; one without a word gives
            none.
        words: length of a passage in words.
        count_tokens, max_tokens: together: no passage has more tokens.
        max_chars: no passage has more characters.
    Raises: InputError if a length is < 1, or of counter and bound only one is given. While splitting, DataError if the
        title alone takes all tokens.
    """
    check_bounds(words, count_tokens, max_tokens, max_chars)

    def fits(start: int, end: int) -> bool:
        if max_chars is not None and end - start > max_chars:
            return False
        if count_tokens is None or max_tokens is None:
            return True
        return count_tokens(document.title, document.text[start:end]) <= max_tokens

    return _passages(document, words, fits)


def check_bounds(
    words: int,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
    max_chars: int | None = None,
) -> None:
    """Raises: InputError."""
    if words < 1:
        raise InputError(f"words={words} is less than one word a passage; pass 1 or more (the paper has 100)")
    if (count_tokens is None) != (max_tokens is None):
        raise InputError("got one of count_tokens and max_tokens; pass both or none")
    for name, bound in (("max_tokens", max_tokens), ("max_chars", max_chars)):
        if bound is not None and bound < 1:
            raise InputError(f"{name}={bound} leaves nothing of a passage; pass 1 or more")


def _passages(document: Document, words: int, fits: Fits) -> Iterator[Passage]:
    text = document.text
    spans = list(_spans(document, words, fits))
    for i, (start, end) in enumerate(spans):
        yield Passage(
            id=document.id if len(spans) == 1 else f"{document.id}#{i}",
            text=text[start:end],
            title=document.title,
            source=document.source,
            start=start,
            end=end,
            page=(page := bisect_right(document.page_starts, start)) or None,
            fields=_with_end_page(document, page, end),
        )


def _with_end_page(document: Document, page: int, end: int) -> Mapping[str, Scalar]:
    """The document's fields, and ``end_page`` where a passage ends on another page than it begins on."""
    end_page = bisect_right(document.page_starts, end - 1)
    return document.fields if page in (0, end_page) else {**document.fields, "end_page": end_page}


def _spans(document: Document, words: int, fits: Fits) -> Iterator[Span]:
    text = document.text
    if document.whole:
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        if start < end and fits(start, end):
            yield start, end
            return
        words = sys.maxsize
    rest = (word.span() for word in _WORD.finditer(text))
    pending: list[Span] = []
    while True:
        pending += islice(rest, words - len(pending))
        if not pending:
            return
        start, ends = pending[0][0], [end for _, end in pending]
        number = len(ends) if fits(start, ends[-1]) else _num_fitting(start, ends, fits)
        if number:
            yield start, ends[number - 1]
            del pending[:number]
        else:
            *pieces, last = _pieces(document, pending[0], fits)
            yield from pieces
            pending[0] = last


def _pieces(document: Document, word: Span, fits: Fits) -> Iterator[Span]:
    """A word that does not fit, in as few pieces as do; the last of them may have room for more words."""
    start, end = word
    while num_chars := _num_fitting(start, range(start + 1, end + 1), fits):
        yield start, start + num_chars
        start += num_chars
        if start == end:
            return
    raise DataError(
        f"the title of {document.id!r} ({document.title[:40]!r}) takes all tokens of a passage; "
        "shorten it or raise the bound"
    )


def _num_fitting(start: int, ends: Sequence[int], fits: Fits) -> int:
    """How many of the ends can be reached, tried in steps that double: what is far too long is not counted whole."""
    high = 1
    while high < len(ends) and fits(start, ends[high - 1]):
        high *= 2
    number = bisect_left(ends, True, hi=min(high, len(ends)), key=lambda end: not fits(start, end))
    # A tokenizer may make fewer tokens of a longer text; then the bisection only came close.
    while number and not fits(start, ends[number - 1]):
        number -= 1
    return number
