"""Texts as tokens. What a template says may hold control tokens (``<|im_start|>``); what passages, questions and
answers say is text, whatever it looks like.

``quoted`` marks the control tokens' names in such a text, by another first character. A text with marks is read by a
copy of the tokenizer in which the control tokens have the marked names and nothing has the plain ones. The copy is made
when it is first needed: nearly no text needs it, and it takes half a second.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from latentrag.types import Latent

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_MARKS = 0xF0000
"""Marked characters are this far from what they stand for, in a plane that Unicode leaves to private use."""
_MARKED = re.compile("[\U000f0000-\U000fffff]")


class TextEncoder:
    """Token ids of texts.

    Args:
        tokenizer: of a model; a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        # Added tokens within the model's own vocabulary may be plain text, such as Gemma's line breaks.
        self._controls = [
            token.content
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.content and (token.special or number >= tokenizer.vocab_size)
        ]
        firsts = "".join(sorted({re.escape(name[0]) for name in self._controls}))
        self._first = re.compile(f"[{firsts}]" if firsts else r"(?!)")
        self._lock = threading.Lock()

    @cached_property
    def _names(self) -> str:
        """A pattern of all control tokens' names. There may be thousands, so it is compiled for texts that have a
        name's first character, which few have."""
        return "|".join(map(re.escape, sorted(self._controls, key=len, reverse=True))) or r"(?!)"

    @cached_property
    def _name(self) -> re.Pattern[str]:
        return re.compile(self._names)

    @cached_property
    def _name_or_mark(self) -> re.Pattern[str]:
        return re.compile(f"{self._names}|{_MARKED.pattern}")

    def quoted(self, text: str) -> str:
        """The text, with control tokens' names marked as text."""
        text = _MARKED.sub("\ufffd", text)
        return self._name.sub(lambda match: _mark(match[0]), text) if self._first.search(text) else text

    def quoted_passages(self, z: Latent) -> Latent:
        """The passages, with control tokens' names marked as text."""
        return tuple(
            replace(passage, title=self.quoted(passage.title), text=self.quoted(passage.text)) for passage in z
        )

    def control_at_start(self, text: str) -> str | None:
        """The name of the control token with which a text begins."""
        text = text.lstrip()
        match = self._name.match(text) if self._first.match(text) else None
        return match[0] if match else None

    def ids(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Token ids of every text.

        Args:
            special: with the tokens that the tokenizer puts around a text.
        """
        if not texts:
            return []
        if not any(map(_MARKED.search, texts)):
            rows: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
            return rows
        return [self.ids_and_places(text, special=special)[0] for text in texts]

    def ids_and_places(self, text: str, *, special: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and where in it each token starts and ends."""
        if _MARKED.search(text):
            with self._lock:
                copy = self._copy
            encoded = copy.encode(self._name_or_mark.sub(_exchanged, text), add_special_tokens=special)
            return encoded.ids, encoded.offsets
        both = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        return both["input_ids"], both["offset_mapping"]

    def after(self, befores: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text as it follows the first of ``befores`` with whose last token it does not merge; where
        it merges with all of them, those of the text alone."""
        rows: list[list[int] | None] = [None] * len(texts)
        for before in befores:
            left = [number for number, row in enumerate(rows) if row is None]
            lead, *both = self.ids([before, *(before + texts[number] for number in left)], special=False)
            for number, ids in zip(left, both, strict=True):
                if ids[: len(lead)] == lead:
                    rows[number] = ids[len(lead) :]
        return [
            self.ids([text], special=False)[0] if row is None else row for text, row in zip(texts, rows, strict=True)
        ]

    def tokens_with(self, text: str) -> list[int]:
        """All tokens whose text contains this one, but for control tokens."""
        numbers = range(self.tokenizer.vocab_size)
        shown = self.tokenizer.backend_tokenizer.decode_batch([[number] for number in numbers])
        return [number for number, of_one in zip(numbers, shown, strict=True) if text in of_one]

    @cached_property
    def _copy(self) -> Tokenizer:
        from tokenizers import Tokenizer

        state: dict[str, Any] = json.loads(self.tokenizer.backend_tokenizer.to_str())
        names = {name: _mark(name) for name in self._controls}
        for token in state["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = state["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
        else:
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        copy = Tokenizer.from_str(json.dumps(state))
        copy.no_truncation()
        copy.no_padding()
        return copy


def unmarked(text: str) -> str:
    """The text as it was before ``quoted`` marked names in it."""
    return _MARKED.sub(lambda match: chr(ord(match[0]) - _MARKS), text)


def _mark(name: str) -> str:
    return chr(_MARKS + (ord(name[0]) & 0xFFFF)) + name[1:]


def _exchanged(match: re.Match[str]) -> str:
    """A template's control token by its marked name, and a mark as the character for which it stands."""
    found = match[0]
    return chr(ord(found) - _MARKS) if _MARKED.match(found) else _mark(found)
