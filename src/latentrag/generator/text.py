"""Token ids to text, one piece for each token."""

from collections.abc import Sequence
from typing import Any


def pieces(tokenizer: Any, ids: Sequence[int], *, cue: Sequence[int] = ()) -> list[str]:
    """The text that each token adds, special tokens adding none.

    Joined, the pieces are the decoded text without the white space at its ends. A character that takes several
    tokens belongs to the last of them.

    Args:
        cue: tokens that stand before ids, for tokenizers whose first token decodes differently from the rest.
    """
    shown = _decode(tokenizer, cue)
    texts = []
    for number in range(1, len(ids) + 1):
        decoded = _decode(tokenizer, [*cue, *ids[:number]])
        complete = decoded.rstrip("\N{REPLACEMENT CHARACTER}") if number < len(ids) else decoded
        if complete.startswith(shown):
            texts.append(complete[len(shown) :])
            shown = complete
        else:  # the tokenizer took something back (clean-up of spaces): nothing new until it has caught up
            texts.append("")
    return _stripped(texts)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


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
