"""Token ids to text, one piece for each token."""

from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import Any


def pieces(tokenizer: Any, ids: Sequence[int], *, cue: Sequence[int] = ()) -> list[str]:
    """The text that each token adds, special tokens adding none.

    Joined, the pieces are the decoded text without the white space at its ends. A character that takes several
    tokens belongs to the last of them, and so does what a later token changes (``o '`` becomes ``o'brien``).

    Args:
        cue: tokens that stand before ids, for tokenizers whose first token decodes differently from the rest.
    """
    whole = _decode(tokenizer, [*cue, *ids])
    ends = [len(whole)]  # where each token's text ends, last token first
    for number in reversed(range(len(ids))):
        ends.append(min(ends[-1], _num_shared(_decode(tokenizer, [*cue, *ids[:number]]), whole)))
    ends.reverse()
    return _stripped([whole[start:end] for start, end in pairwise(ends)])


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _num_shared(one: str, other: str) -> int:
    """Characters with which both texts begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _stripped(texts: list[str]) -> list[str]:
    """The same pieces without the white space before the first and after the last word."""
    for number, text in enumerate(texts):
        texts[number] = text.lstrip()
        if texts[number]:
            break
    for number in range(len(texts) - 1, -1, -1):
        texts[number] = texts[number].rstrip()
        if texts[number]:
            break
    return texts
