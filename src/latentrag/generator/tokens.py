"""Questions, latent values and targets as rows of tokens, and tokens as text again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentrag.errors import InputError
from latentrag.types import Asked, Latent, LatentLists, Passage, Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_REPLACEMENT = "\ufffd"


def pairs(x: Sequence[Asked], latents: LatentLists) -> tuple[list[tuple[Question, Latent]], int]:
    """Every (x, z), question by question, and K.

    Raises: InputError for an empty question, for no question, or if the questions' numbers of latent values differ.
    """
    if not x:
        raise InputError("got no question; needed at least one")
    questions = [Question(Question.of(question).turns) for question in x]
    for number, question in enumerate(questions):
        if not question.text.strip():
            raise InputError(f"question {number + 1} is empty; needed some text")
    counts = {len(of_question) for of_question in latents}
    if len(latents) != len(x) or len(counts) != 1 or 0 in counts:
        raise InputError(
            f"got {len(x)} questions with {[len(of_question) for of_question in latents]} passages; "
            "needed the same number, at least one, for every question"
        )
    rows = [(question, as_read(z)) for question, each in zip(questions, latents, strict=True) for z in each]
    return rows, counts.pop()


def as_read(z: Latent) -> Latent:
    """z with what is read beside each passage as a part of its text."""
    return tuple(map(_with_what_is_beside, z))


def _with_what_is_beside(passage: Passage) -> Passage:
    if not passage.before and not passage.after:
        return passage
    texts = (passage.before, passage.text, passage.after)
    return replace(passage, text=" ".join(filter(None, texts)), before="", after="")


def check_lengths(rows: Sequence[Sequence[int]], limit: int | None) -> None:
    """Raises: InputError if a target has more tokens than the generator can write."""
    longest = max((len(row) for row in rows), default=0)
    if limit is not None and longest > limit:
        raise InputError(f"a target has {longest} tokens, this generator writes {limit} at most; shorten it")


def padded(rows: Sequence[Sequence[int]], *, pad: int) -> tuple[Tensor, Tensor]:
    """ids (R, S) int64, padded at the end, and mask (R, S) bool, S the longest row."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[number, : len(row)] = True
    return ids, mask


class Detokenizer:
    """Token ids to text: of all of them, or a piece for each.

    Both are the decoded text without the white space at its ends; special tokens add none. In pieces, a character that
    takes several tokens belongs to the last of them, and so does what a later token changes (``o '`` becomes
    ``o'brien``). Bytes at the end that spell no whole character yet add nothing; elsewhere a tokenizer of bytes shows
    U+FFFD for them, and those of tokens that stand for one byte (``<0xF0>``) add nothing.

    Args:
        cue: tokens that stand before every text, for tokenizers whose first token decodes differently from the rest.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, cue: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._cue = list(cue)
        self._text_of_cue = self._decode(()) if cue else ""

    def text(self, ids: Sequence[int]) -> str:
        """The text of these tokens, decoded once."""
        whole = self._decode(ids)
        return whole[_num_shared(self._text_of_cue, whole) :].strip()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each token adds; joined they are ``text(ids)``. Decodes as often as there are tokens."""
        whole = self._decode(ids)
        first = _num_shared(self._text_of_cue, whole)
        ends = [len(whole)]  # where each token's text ends, last token first
        for number in reversed(range(1, len(ids))):
            shared = _num_shared(self._decode(ids[:number]), whole)
            ends.append(max(first, min(ends[-1], shared)))
        if ids:
            ends.append(first)
        return _stripped([whole[start:end] for start, end in pairwise(reversed(ends))])

    def _decode(self, ids: Sequence[int]) -> str:
        """What more tokens do not change, as far as bytes go: the text of a beginning of ids is one of ids' text."""
        text: str = self._tokenizer.decode(
            [*self._cue, *whole_characters(ids, self._bytes)],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return text.rstrip(_REPLACEMENT)

    @cached_property
    def _bytes(self) -> dict[int, int]:
        """The tokens that stand for one byte. Tokenizers decode a run of them as a whole or not at all."""
        number_of = getattr(self._tokenizer, "convert_tokens_to_ids", None)
        if number_of is None:
            return {}
        numbers: list[int | None] = number_of([f"<0x{byte:02X}>" for byte in range(256)])
        found = {number: byte for byte, number in enumerate(numbers) if number is not None}
        a = numbers[ord("a")]
        is_spelling = len(found) == len(numbers) and a is not None and self._tokenizer.decode([a]) == "a"
        return found if is_spelling else {}


def whole_characters(ids: Sequence[int], bytes_of: Mapping[int, int]) -> list[int]:
    """The tokens without those bytes that spell no whole character of UTF-8. Of a beginning of ids it is a beginning.

    Args:
        bytes_of: tokens that stand for a byte.
    """
    kept: list[int] = []
    run: list[int] = []  # of a character that is not whole yet
    for token in ids:
        if token not in bytes_of:
            kept.append(token)
            run = []
            continue
        run = _continued([*run, token], bytes_of)
        if run and _is_whole(run, bytes_of):
            kept += run
            run = []
    return kept


def _continued(run: list[int], bytes_of: Mapping[int, int]) -> list[int]:
    """The end of a run with which a character may begin; nothing where its last byte begins none."""
    try:
        bytes(bytes_of[token] for token in run).decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return _continued(run[-1:], bytes_of) if len(run) > 1 else []
    return run


def _is_whole(run: list[int], bytes_of: Mapping[int, int]) -> bool:
    return bool(bytes(bytes_of[token] for token in run).decode(errors="ignore"))


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
