"""Where words begin and end, by Unicode's rules and ICU's dictionaries (Unicode Standard Annex 29), and by which terms
texts are found.

Words are what stands between white space, in Korean too. Chinese, Japanese, Thai, Lao, Khmer, Burmese and their
neighbours write none: there ICU looks words up.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from unicodedata import category, is_normalized, normalize

if TYPE_CHECKING:
    import regex

Span: TypeAlias = tuple[int, int]
"""Start and end of a part of a text, in characters."""

MAX_WORD_CHARS = 1_000
"""What is longer is no word, but data that was written as text: base64, say."""
MAX_UNSPACED_CHARS = 24
"""A name in a text of another script may have so many characters of a script without spaces and is one word."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_STRETCH = re.compile(r"\S+")
# Blocks, since the standard library knows no scripts; Tibetan, Tai Le, New Tai Lue and Tai Tham are among them.
_BLOCKS = (
    "\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u2e80-\u2fdf\u3005-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f\U00016fe0-\U00018dff\U0001b000-\U0001b16f"
    "\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{_BLOCKS}]")
# base64, hexadecimal numbers, escaped addresses, and letters without end, but for scripts without spaces.
_DATA = re.compile(rf"(?:(?![{_BLOCKS}])[\w+/=%-]){{{MAX_WORD_CHARS + 1},}}")
_KOREAN = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7ff]")
_HALF = re.compile("[\ud800-\udfff]")
_LETTER = re.compile(r"\w")


_IGNORED = re.compile("[\u00ad\u034f\u0640\u200c\u200d\u2060\ufeff]")
"""Soft hyphens, joiners, Arabic's lengthening stroke: they change how a word looks."""
_FRACTION = re.compile("(?<=[0-9])[\u00bc-\u00be\u2150-\u215f\u2189]")
_SIGNS = r"(?<=[a-z])[+#]{1,2}(?!\w)"
"""Those of C++ and F#."""
_PLAIN = re.compile(r"\w\w+")
# A letter alone, but not the end of "it's"; a word with such signs.
_PLAIN_PARTS = re.compile(rf"(?<![\w'’])\w(?!\w|{_SIGNS})|(?<!\w)\w+{_SIGNS}")


def words(text: str) -> Iterator[Span]:
    """The words of a text with the punctuation beside them, in order: what stands between white space.

    A stretch without white space that has more than ``MAX_UNSPACED_CHARS`` characters of scripts without spaces, or
    more than ``MAX_WORD_CHARS`` characters, is cut further as ICU does. What is longer than ``MAX_WORD_CHARS`` then is
    data, not a word. Every character that is not white space is in one word.
    """
    is_spaced = text.isascii() or not _UNSPACED.search(text)
    for stretch in _STRETCH.finditer(text):
        start, end = stretch.span()
        if end - start <= MAX_UNSPACED_CHARS or (is_spaced and end - start <= MAX_WORD_CHARS):
            yield start, end
        elif end - start > MAX_WORD_CHARS or len(_UNSPACED.findall(text, start, end)) > MAX_UNSPACED_CHARS:
            yield from _words_of(text, start, end)
        else:
            yield start, end


def is_data(word: Span) -> bool:
    """Whether what ``words`` found is data that was written as text, not a word."""
    start, end = word
    return end - start > MAX_WORD_CHARS


def characters(text: str) -> Iterator[Span]:
    """The characters as a reader sees them, each with its accents and modifiers (extended grapheme clusters)."""
    from icu4py.breakers import CharacterBreaker

    return _spans(CharacterBreaker(_whole(text), "en"))


def folded(text: str) -> str:
    """A text as it is compared: in NFKC, case aside (full case folding), without what only changes its look."""
    if text.isascii():
        return text.lower()
    if not is_normalized("NFKC", text):
        text = normalize("NFKC", _FRACTION.sub(r" \g<0>", text))  # 1½ is not 11/2
    return (_IGNORED.sub("", text) if _IGNORED.search(text) else text).casefold()


class Terms(NamedTuple):
    """By what a text is found.

    Attributes:
        words: of two letters or digits at least; in scripts without spaces those of a dictionary.
        parts: of words, where they cannot be told apart or have endings: pairs of neighbouring characters of scripts
            without spaces and of Korean; besides, letters and characters that stand alone, and names such as C++.
    """

    words: list[str]
    parts: list[str]


def terms(text: str) -> Terms:
    """The terms of a text, each as often as it is there. Of plain English the words are ``\\w\\w+`` in lower case.

    Memories keep them: whoever changes them changes ``postings.FORMAT``.
    """
    text = folded(text)
    if text.isascii() or not _has_marks_or_unspaced().search(text):
        return Terms(_PLAIN.findall(text), _PLAIN_PARTS.findall(text))
    found = Terms([], [])
    for run in _patterns()[0].finditer(text):
        word, signs = run["word"], run["signs"]
        if signs:
            found.parts.append(word + signs)
        if _UNSPACED.search(word) or _KOREAN.search(word):
            _add_unspaced(word, found)
        elif len(word) > 1:
            found.words.append(word)
        elif not signs:
            found.parts.append(word)
    return found


@cache
def _has_marks_or_unspaced() -> re.Pattern[str]:
    """Accents of their own, vowel signs, and scripts whose words have parts: what ``\\w`` does not do for."""
    marks = "".join(filter(_is_mark, map(chr, range(0x10000))))
    return re.compile(f"[{marks}{_BLOCKS}\u1100-\u11ff\u3130-\u318f\uac00-\ud7ff]")


def _is_mark(character: str) -> bool:
    return category(character).startswith("M")


def _add_unspaced(run: str, found: Terms) -> None:
    pieces, characters_of = _patterns()[1:]
    if not _UNSPACED.search(run):
        (found.words if len(run) > 1 else found.parts).append(run)  # Korean, with endings
    for piece in pieces.findall(run):
        is_unspaced = _UNSPACED.match(piece)
        if is_unspaced:
            for start, end in _looked_up(piece, 0):
                (found.words if end - start > 1 else found.parts).append(piece[start:end])
        if is_unspaced or _KOREAN.match(piece):
            found.parts.extend(a + b for a, b in pairwise(characters_of.findall(piece)))
        elif _UNSPACED.search(run):
            (found.words if len(piece) > 1 else found.parts).append(piece)  # Latin amid Chinese


@cache
def _patterns() -> tuple[regex.Pattern[str], regex.Pattern[str], regex.Pattern[str]]:
    """Runs of letters, marks and digits, with the signs of C++ after them; pieces of one kind of script; characters."""
    import regex

    mark = r"\p{M}"
    return (
        regex.compile(rf"(?<!['’](?=\w\b(?!{_SIGNS})))(?P<word>[\p{{L}}\p{{M}}\p{{N}}_]+)(?P<signs>{_SIGNS})?"),
        regex.compile(rf"(?:[{_BLOCKS}]{mark}*)+|(?:\p{{Hangul}}{mark}*)+|(?:(?![{_BLOCKS}\p{{Hangul}}]).)+"),
        regex.compile(rf".{mark}*"),
    )


def _words_of(text: str, start: int, end: int) -> Iterator[Span]:
    for data in _DATA.finditer(text, start, end):
        yield from _looked_up(text[start : data.start()], start)
        yield data.span()
        start = data.end()
    yield from _looked_up(text[start:end], start)


def _looked_up(stretch: str, offset: int) -> Iterator[Span]:
    """ICU's words; punctuation belongs to the word before it, opening brackets to the one after."""
    from icu4py.breakers import WordBreaker

    start, has_letters = 0, False
    for begin, end in _spans(WordBreaker(_whole(stretch), "en")):
        part = stretch[begin:end]
        is_word = bool(_LETTER.search(part))
        is_next = has_letters and (is_word or category(part[0]) in {"Ps", "Pi"})
        if begin > start and (is_next or end - start > MAX_WORD_CHARS):
            yield offset + start, offset + begin
            start, has_letters = begin, False
        has_letters = has_letters or is_word
    if start < len(stretch):
        yield offset + start, offset + len(stretch)


def _spans(parts: Iterable[str]) -> Iterator[Span]:
    """Where the parts of a text are. ICU's own offsets count characters beyond U+FFFF twice."""
    start = 0
    for part in parts:
        yield start, start + len(part)
        start += len(part)


def _whole(text: str) -> str:
    """Half a surrogate pair, which JSON can hold and ICU cannot, becomes a replacement character."""
    return text if text.isascii() else _HALF.sub("\ufffd", text)


# Answers


def normalised(text: str) -> str:
    """Lower case, without punctuation, English articles and surplus white space (SQuAD; Rajpurkar et al. 2016).

    Differs: canonically equivalent characters are one (NFC).
    """
    return " ".join(_ARTICLES.sub(" ", _unpunctuated(text)).split())


def _unpunctuated(text: str) -> str:
    return normalize("NFC", text).lower().translate(_PUNCTUATION)


def compared_words(text: str) -> list[str]:
    """The words by which answers are compared: the normalised ones. Where none is left ("The The", "A", "!!!"), those
    with articles, and where that leaves none either the text as it is, case aside: an answer is never equal to none."""
    return normalised(text).split() or _unpunctuated(text).split() or text.lower().split()
