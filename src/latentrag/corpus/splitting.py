"""Documents cut into z: disjoint passages of 100 words (Lewis et al. 2020, §2.2), bounded in characters and, where an
encoder is to read them, in its tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from math import ceil
from typing import TypeAlias, TypedDict

from latentrag.corpus.aligning import Aligner, Stored, Words
from latentrag.errors import DataError, InputError
from latentrag.protocols import CountsTokens, PassageEncoder
from latentrag.types import Document, Passage, Scalar
from latentrag.words import MAX_WORD_CHARS, Span, characters, is_data
from latentrag.words import words as words_of

CountTokens: TypeAlias = Callable[[str, str], int]
"""(title, text) → how many tokens the encoder makes of such a passage, those that it adds itself included."""
LeaveOut: TypeAlias = Callable[[str, int], None]
"""(reason, count): a ledger's ``leave_out``."""

CHARS_PER_WORD = 40
"""Of a passage as long as is allowed, on average; English has 6."""
ROOM = 0.05
"""Share of a passage that stays free where a longer one is cut, since words are of different length."""
LONG_WORD = f"word of more than {MAX_WORD_CHARS:,} characters (data in place of text, such as base64)"
IN_LONG_WORDS = "character of such words"
IN_LONG_TITLES = "character at the end of a title that is too long for the encoder"


class Bounds(TypedDict, total=False):
    """Arguments of ``split`` that follow from an encoder."""

    count_tokens: CountTokens
    max_tokens: int


def bounds_of(encoder: PassageEncoder) -> Bounds:
    """Bounds with which the encoder truncates no passage; empty for one that cannot count tokens."""
    if not isinstance(encoder, CountsTokens):
        return {}
    return {"count_tokens": encoder.count_tokens, "max_tokens": encoder.max_tokens}


def split(
    document: Document,
    *,
    words: int = 100,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
    max_chars: int | None = None,
    leave_out: LeaveOut | None = None,
    stored: Stored | None = None,
) -> Iterator[Passage]:
    """Disjoint passages of ``words`` words each, the last of them shorter (Lewis et al. 2020, §2.2).

    A passage is the slice ``document.text[start:end]`` from the first character of its first word to the last
    of its last. Its id is the document's where the document is one passage, else ``f"{document.id}#…"`` with
    48 bits over its text. Words are those of ``latentrag.words``: what stands between white space, and by a dictionary
    in scripts without spaces.

    Differs from the paper where so many words go beyond a bound: they become as few passages of nearly equal length as
    do, cut between words, or within a word that alone is too long. The words after them are cut as if nothing had
    happened. A title that takes more than half of the tokens is shortened. Words of more than 1,000 characters are left
    out.

    Args:
        document: a document that is ``whole`` gives one passage, however many words it has, unless it goes beyond a
            bound; one without a word gives none.
        words: length of a passage in words.
        count_tokens, max_tokens: together: no passage has more tokens.
        max_chars: no passage has more characters. None: 40 for each of ``words``, 1,000 at least; any number for a
            document that is whole.
        leave_out: called for text that is in no passage.
        stored: what a memory has of the file: text found there is cut as it is there, and keeps its ids.
    Raises: InputError if a length is < 1, or of counter and bound only one is given. While splitting, DataError if the
        bound is too small for a single character.
    """
    check_bounds(words, count_tokens, max_tokens, max_chars)
    if max_chars is None and not document.whole:
        max_chars = max(CHARS_PER_WORD * words, MAX_WORD_CHARS)
    leave_out = leave_out or (lambda _reason, _count: None)
    measure = _Measure(document, count_tokens, max_tokens, max_chars)
    return _passages(document, words, measure, leave_out, stored or Stored(document.id))


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


@dataclass(slots=True)
class _Measure:
    """How much of a document's text may be a passage."""

    document: Document
    count_tokens: CountTokens | None
    max_tokens: int | None
    max_chars: int | None
    title: str = ""

    def shorten_title(self) -> int:
        """Settle ``title``: the longest beginning that leaves half of the tokens to the text.

        Returns: how many characters are left out.
        """
        whole = self.document.title
        if self.count_tokens is None or self.max_tokens is None or not whole:
            self.title = whole
            return 0
        count, most = self.count_tokens, max(self.count_tokens("", ""), self.max_tokens // 2)
        num_chars = len(whole)
        if count(whole, "") > most:
            num_chars = bisect_left(range(len(whole)), True, key=lambda n: count(_shortened(whole, n), "") > most)
            while num_chars and count(_shortened(whole, num_chars), "") > most:
                num_chars -= 1
        self.title = _shortened(whole, num_chars)
        return len(whole) - num_chars

    def num_needed(self, start: int, end: int) -> int:
        """How many passages that part of the text has to be, so that pieces of whole words fit."""
        of_chars = 0.0 if self.max_chars is None else (end - start) / self.max_chars
        of_tokens = 0.0
        if self.count_tokens is not None and self.max_tokens is not None:
            num_tokens = self.count_tokens(self.title, self.document.text[start:end])
            if num_tokens > self.max_tokens:
                num_others = self.count_tokens(self.title, "")
                of_tokens = max(1.01, (num_tokens - num_others) / max(1, self.max_tokens - num_others))
        share = max(of_chars, of_tokens)
        return 1 if share <= 1 else ceil(share * (1 + ROOM))


def _shortened(title: str, num_chars: int) -> str:
    return title if num_chars == len(title) else f"{title[:num_chars].rstrip()}…" if num_chars else ""


def _passages(
    document: Document, words: int, measure: _Measure, leave_out: LeaveOut, stored: Stored
) -> Iterator[Passage]:
    if num_chars := measure.shorten_title():
        leave_out(IN_LONG_TITLES, num_chars)
    anew = list(_spans(document, words, measure, leave_out))
    if len(anew) == 1 and stored.states(document):
        yield _passage(document, document.id, anew[0], measure.title)
        return
    pool = stored.pool_of(document)
    kept = pool.keep(document, (_passage(document, document.id, span, measure.title) for span in anew))
    if kept is not None:
        yield from kept
        return
    aligned = None
    if pool.ids and pool.cuts != "none" and not document.whole and len(anew) > 1:
        aligner = Aligner(
            document,
            pool,
            words,
            fits=lambda start, end: measure.num_needed(start, end) == 1,
            pieces=lambda units: _pieces(units, measure),
        )
        runs = [Words(run) for data, run in groupby(words_of(document.text), key=is_data) if not data]
        aligned = aligner.spans(runs)
    spans = anew if aligned is None else aligned
    for start, end in spans:
        key = pool.id_for(document, document.text[start:end], is_whole=len(spans) == 1)
        yield _passage(document, key, (start, end), measure.title)


def _passage(document: Document, key: str, span: Span, title: str) -> Passage:
    start, end = span
    return Passage(
        id=key,
        text=document.text[start:end],
        title=title,
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


def _spans(document: Document, words: int, measure: _Measure, leave_out: LeaveOut) -> Iterator[Span]:
    for data, run in groupby(words_of(document.text), key=is_data):
        if data:
            lengths = [end - start for start, end in run]
            leave_out(LONG_WORD, len(lengths))
            leave_out(IN_LONG_WORDS, sum(lengths))
            continue
        while units := list(run if document.whole else islice(run, words)):
            yield from _pieces(units, measure)


def _pieces(units: Sequence[Span], measure: _Measure) -> Iterator[Span]:
    """Words, or the characters of one, in as few pieces of nearly equal length as do."""
    start, end = units[0][0], units[-1][1]
    number = measure.num_needed(start, end)
    if number == 1:
        yield start, end
    elif len(units) == 1:
        yield from _pieces(_characters_of(units[0], measure.document), measure)
    else:
        number, first = min(number, len(units)), 0
        ends = [end for _, end in units]
        for i in range(1, number + 1):
            wanted = start - (start - end) * i // number  # rounded up
            last = bisect_left(ends, wanted, lo=first, hi=len(units) - (number - i) - 1) + 1
            yield from _pieces(units[first:last], measure)
            first = last


def _characters_of(word: Span, document: Document) -> list[Span]:
    """As a reader sees them, or of one such the code points. Raises: DataError if it is a single one."""
    start, end = word
    if end - start == 1:
        raise DataError(f"a single character of {document.id!r} goes beyond the bound of a passage; raise the bound")
    parts = [(start + begin, start + stop) for begin, stop in characters(document.text[start:end])]
    return parts if len(parts) > 1 else [(place, place + 1) for place in range(start, end)]
