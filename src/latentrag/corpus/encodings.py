"""The encoding of text that does not state it: a mark at its beginning, what the user says, UTF-8, else a guess.

A guess is noted in the ledger as one. It is made among the encodings that browsers know, by charset-normalizer.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from importlib.util import find_spec
from io import TextIOWrapper
from itertools import chain, islice
from typing import BinaryIO

from latentrag.corpus.readers import Ledger, UnreadableError

_BOM = "\ufeff"
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_UTF_16 = ("utf-16-le", "utf-16-be")
_SINGLE_BYTE = "cp1252 cp1250 cp1251 koi8_r cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 cp874 iso8859_2"
_GUESSES = f"{_SINGLE_BYTE} cp932 euc_jp cp949 gb18030 big5".split()
_USUAL = "cp1252"
"""Chosen among guesses that are equally good: by far the most frequent one."""
_EQUALLY_GOOD = 0.05
"""Coherence, 0 to 1."""
_SAMPLE_BYTES = 1 << 18
_SAMPLE_LINES = 200
_MAX_BYTES_A_ZERO = 60
"""In UTF-16: text has a space, a line end or a digit every 30 characters."""
_ASCII = re.compile(rb"[\n -~]")
_MAX_ASCII = 0.7
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\ufffe\uffff]")


def decode(raw: bytes, ledger: Ledger, line: int | None = None) -> str:
    """The text, without a byte order mark; the ledger gets its encoding. ``line`` is where it stands, for errors.

    Raises: UnreadableError.
    """
    encoding = _stated(raw, ledger) or _utf_16(raw)
    ledger.encoding = encoding or "utf-8"
    try:
        return raw.decode(ledger.encoding).removeprefix(_BOM)
    except UnicodeDecodeError as error:
        problem = _problem(error, ledger.encoding)
    if not encoding:
        ledger.encoding = _guess(raw)
        ledger.is_guess = bool(ledger.encoding)
        if ledger.is_guess:
            return raw.decode(ledger.encoding)
    raise UnreadableError(problem, line)


def text_lines(file: BinaryIO, ledger: Ledger) -> Iterator[tuple[int, str]]:
    """Lines, their ends kept, with their numbers, in constant memory. Raises: UnreadableError, with the line.

    A file without a mark is UTF-8 up to the line that is not; from there on a guess is made, unless letters beyond
    ASCII before it have shown that it is UTF-8 with an error.
    """
    start = file.read(3)
    file.seek(0)
    encoding = _stated(start, ledger)
    if encoding:
        ledger.encoding = encoding
        yield from _decoded_lines(file, encoding)
        return
    ledger.encoding, is_ascii = "utf-8", True
    lines: Iterator[tuple[int, bytes]] = enumerate(file, start=1)
    while numbered := next(lines, None):
        number, raw = numbered
        try:
            line = raw.decode(ledger.encoding)
        except UnicodeDecodeError as error:
            guess = ""
            if is_ascii:
                sample = list(islice(lines, _SAMPLE_LINES))
                guess, lines = _guess(b"".join((raw, *(more for _, more in sample)))), chain(sample, lines)
            if not guess:
                raise UnreadableError(_problem(error, ledger.encoding), number) from error
            ledger.encoding, ledger.is_guess = guess, True
            line = raw.decode(guess)
        is_ascii = is_ascii and raw.isascii()
        yield number, line.removeprefix(_BOM) if number == 1 else line


def _decoded_lines(file: BinaryIO, encoding: str) -> Iterator[tuple[int, str]]:
    number = 0
    text = TextIOWrapper(file, encoding, newline="\n")
    try:
        for number, line in enumerate(text, start=1):
            yield number, line.removeprefix(_BOM) if number == 1 else line
    except UnicodeDecodeError as error:
        raise UnreadableError(_problem(error, encoding), number + 1) from error
    finally:
        text.detach()


def _stated(raw: bytes, ledger: Ledger) -> str:
    """By the mark at the beginning, else by the user; empty if neither says it."""
    return next((encoding for mark, encoding in _MARKS if raw.startswith(mark)), ledger.asked_encoding)


def _utf_16(raw: bytes) -> str:
    """UTF-16 without a mark: spaces, line ends and ASCII have a byte 0, always in the same half of a character."""
    sample = raw[:_SAMPLE_BYTES]
    zeros = [sample[half::2].count(0) for half in (1, 0)]  # in little-endian text the second byte is the high one
    if len(raw) < 6 or len(raw) % 2 or min(zeros) or max(zeros) * _MAX_BYTES_A_ZERO <= len(sample):
        return ""
    if max(zeros) < len(sample) / 4 and len(_ASCII.findall(sample)) > _MAX_ASCII * len(sample):
        return ""  # ASCII with a stray 0 can look like Chinese
    encoding = _UTF_16[zeros[0] == 0]
    return encoding if _is_text(raw, encoding) else ""


def _guess(raw: bytes) -> str:
    """The likeliest encoding of text that is not UTF-8; empty if there is none, or if nothing can tell."""
    if find_spec("charset_normalizer") is None:
        return ""
    from charset_normalizer import from_bytes

    found = from_bytes(raw[:_SAMPLE_BYTES], cp_isolation=_GUESSES)
    best = found.best()
    if best is None:
        return ""
    equal = (m for m in found if m.chaos <= best.chaos and m.coherence >= best.coherence - _EQUALLY_GOOD)
    is_usual = any(_USUAL in (match.encoding, *match.could_be_from_charset) for match in equal)
    guesses = [_USUAL] * is_usual + [match.encoding for match in found]
    return next((encoding for encoding in guesses if _is_text(raw, encoding)), "")


def _is_text(raw: bytes, encoding: str) -> bool:
    try:
        return not _NO_TEXT.search(raw.decode(encoding))
    except UnicodeDecodeError:
        return False


def _problem(error: UnicodeDecodeError, encoding: str) -> str:
    wrong = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
    name = encoding.upper() if encoding.startswith("utf") else encoding
    return f"not {name} text ({wrong}); save it as UTF-8, or say with --encoding what it is"
