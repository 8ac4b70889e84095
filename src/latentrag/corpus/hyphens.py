"""Words that were broken at the end of a line: whether the hyphen there belongs to the word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

BREAK = "\x02"
"""PDFium's mark for a hyphen at a line's end, after which a word goes on."""
_MAX_WORD_CHARS = 100
_HYPHENS = f"{BREAK}-\u2010\u2011"
_WORD = re.compile(r"[^\W_]+(?:[-\u2010\u2011][^\W_]+)*")
_LAST = re.compile(r"(\S*?)[\x02\u2010\u2011\xad-]$")
_FIRST = re.compile(r"\S+")
_MINUS = re.compile(r"(?:^|[\s(])[-\x02]$")
_ADDRESS = re.compile(r"[/@\\]|www\.|://")
# First parts of compounds that are seldom the first syllables of another word, unless one of the endings follows.
_FIRST_PARTS = frozenset(
    "well self half high low long short full cross two three four five six seven eight nine twenty thirty forty fifty "
    "sixty seventy eighty ninety first third large small single double open hard quasi left right one ex of the in to "
    "and by up on at for off out non".split()
)
_ENDINGS = frozenset(
    "er ers est en ens ened ening ing ings ed ly ness ish ity ary sion tion ment ments ous eous ful less y age ages "
    "ance able s es d th ten teen hood ship some".split()
)


def joined(parts: Sequence[str], known: Counter[str], *, kept: Collection[int] = ()) -> tuple[str, tuple[int, ...]]:
    """Lines, or pages, as one text, and where in it each begins. A word that was broken between two is whole again,
    without its hyphen unless that is its own.

    Args:
        known: the words of the document, in lower case, compounds as well.
        kept: after which of the parts, counted from 0, no word goes on.
    """
    texts: list[str] = []
    starts, length = [], 0
    for i, part in enumerate(parts):
        if i:
            num_dropped, between = (0, "\n") if i - 1 in kept else _seam(parts[i - 1], part, known)
            last = texts.pop()
            texts += [last[: len(last) - num_dropped], between]
            length += len(between) - num_dropped
        starts.append(length)
        texts.append(part)
        length += len(part)
    return "".join(texts), tuple(starts)


def _seam(above: str, below: str, known: Counter[str]) -> tuple[int, str]:
    """How many characters go at the end of a line, and what stands between it and the next one."""
    if _MINUS.search(above[-3:]):
        return (1, "-") if below[:1].isdigit() else (0, "\n")
    broken, rest = _LAST.search(above[-_MAX_WORD_CHARS:]), _FIRST.match(below)
    if broken is None or rest is None or not (broken[1][-1:].isalnum() and rest[0][0].isalnum()):
        return 0, "\n"
    return 1, "-" if above[-1] in _HYPHENS and _is_own(broken[1], rest[0], known) else ""


def words(lines: Iterable[str]) -> Counter[str]:
    """How often each word is there, in lower case. The halves of broken ones count as words."""
    return Counter(word.lower() for line in lines for word in _WORD.findall(line))


def _is_own(first: str, second: str, known: Counter[str]) -> bool:
    """Whether a hyphen belongs to the word whose halves these are."""
    found, rest = list(_WORD.finditer(first)), _WORD.match(second)
    if not found or rest is None or _ADDRESS.search(first):
        return True
    before, after = found[-1][0], rest[0]
    last = re.split(r"[-\u2010\u2011]", before)[-1]
    if last[-1].isdigit() or after[0].isdigit() or len(last) == 1:
        return True
    is_shouted = last.isupper() and after.isupper()
    if not is_shouted and (after[0].isupper() or last.isupper()):
        return True
    whole, compound = known[(before + after).lower()], known[f"{before}-{after}".lower()]
    if whole != compound:
        return compound > whole
    return last.lower() in _FIRST_PARTS and after.lower() not in _ENDINGS
