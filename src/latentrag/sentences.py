"""Where sentences begin and end, by Unicode's rules (Unicode Standard Annex 29) and ICU's English abbreviations."""

from __future__ import annotations

import re

from latentrag.words import Span

MOST_SENTENCES = 64
"""A text with more of them is cut into as many parts, each of neighbouring sentences."""

_LOCALE = "en@ss=standard"
"""Other languages' rules are the same; "Mr." and "Dec." end no sentence in English."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def sentences(text: str, *, most: int = MOST_SENTENCES) -> list[Span]:
    """The sentences of a text, without the white space around them; what is nothing but white space is in none.

    Args:
        most: neighbours are taken together where there would be more.
    """
    from icu4py.breakers import SentenceBreaker

    spans: list[Span] = []
    start = 0
    # By their lengths: the breaker's own offsets count UTF-16 units.
    for sentence in SentenceBreaker(_SURROGATE.sub("\ufffd", text), _LOCALE):
        end = start + len(sentence)
        inner = sentence.strip()
        if inner:
            begin = start + len(sentence) - len(sentence.lstrip())
            spans.append((begin, begin + len(inner)))
        start = end
    size = -(-len(spans) // most)
    return [(spans[i][0], spans[i : i + size][-1][1]) for i in range(0, len(spans), max(1, size))]


def without_part(text: str, part: Span) -> str:
    """The text without a part of it and the white space after that, or before it at the text's end."""
    start, end = part
    return (text[:start] + text[end:].lstrip()).strip()
