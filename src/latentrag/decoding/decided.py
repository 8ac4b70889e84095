"""Which tokens of an answer, and which characters, are certain before the search has ended.

A token of the answer is certain once every hypothesis that can still become the best has it in its place. All later
hypotheses continue those, so what is certain stays certain.
"""

from __future__ import annotations

from collections.abc import Sequence

from latentrag.decoding.decoded import Decoded, rank


def num_decided(
    live: Sequence[Sequence[int]],
    scores: Sequence[float],
    best: Decoded | None,
    *,
    length_penalty: float,
) -> int:
    """How many tokens every hypothesis begins with that can still become the best.

    Args:
        live: tokens of the M live hypotheses, of equal length.
        scores: their log-probabilities, nats; −inf where a beam holds nothing.
        best: the finished hypothesis of highest rank, if there is one.
        length_penalty: of the rank. For a positive one a live hypothesis can always win; otherwise its rank only
            falls, and it cannot once it does not exceed the best's.
    """
    rivals = [tuple(ids) for ids, score in zip(live, scores, strict=True) if _can_win(score, ids, best, length_penalty)]
    if best is not None:
        rivals.append(best.ids)
    return _num_shared(rivals) if rivals else 0


def _can_win(score: float, ids: Sequence[int], best: Decoded | None, length_penalty: float) -> bool:
    if score == float("-inf"):
        return False
    if best is None or length_penalty > 0:
        return True
    return rank(score, len(ids), length_penalty) > rank(best.log_prob, len(best.ids), length_penalty)


def _num_shared(rows: Sequence[Sequence[int]]) -> int:
    """Tokens with which all rows begin."""
    shared = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return shared


def settled_length(text: str, stop: Sequence[str]) -> int:
    """How many characters of a text stay what they are, whatever tokens follow.

    Beyond its last letter or digit a tokenizer may still change it (white space that is dropped, half of a character,
    an apostrophe that is drawn to the next word); and from where a stop string may have begun it may be cut.
    """
    length = len(text)
    for each in stop:
        length = min(length, _possible_start(text, each))
    while length and not text[length - 1].isalnum():
        length -= 1
    return length


def _possible_start(text: str, stop: str) -> int:
    """Where ``stop`` begins in the text, or might with what follows; the text's length if nowhere."""
    found = text.find(stop)
    if found >= 0:
        return found
    starts = range(max(0, len(text) - len(stop) + 1), len(text))
    return next((start for start in starts if stop.startswith(text[start:])), len(text))


def num_settled(texts: Sequence[str], stop: Sequence[str]) -> int:
    """How many tokens have a text that stays what it is. One that adds nothing yet waits for what follows."""
    room = settled_length("".join(texts), stop)
    count = 0
    for number, text in enumerate(texts, start=1):
        room -= len(text)
        if room < 0:
            break
        if text:
            count = number
    return count
