"""Prompts of a causal model as tokens, in two parts: the passage's, tokenised once and kept, and the question's."""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from latentrag.errors import InputError
from latentrag.generator.inputs import PromptTemplate, Rendered, shortened
from latentrag.types import Passage

KEPT_PASSAGES = 1 << 17
"""Passages whose tokens are kept: about 60 MB at 100 words each."""


class PromptTokens:
    """A template's prompts as token ids.

    Args:
        tokenizer: of the model; a fast one.
    """

    def __init__(self, tokenizer: Any, template: PromptTemplate) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self._kept: OrderedDict[bytes, array[int]] = OrderedDict()

    def questions(self, x: Sequence[str], *, closed_book: bool) -> list[list[int]]:
        """The second part of every question's prompt, as tokenised after the character before it."""
        asked = [self.template.ask(question) for question in x]
        before = str(self.template.read(None if closed_book else Passage("", "")))[-1:]
        if not before:
            return self._encode(asked, special=True)
        lead = self._encode([before])[0]
        both = self._encode([before + text for text in asked])
        if all(ids[: len(lead)] == lead for ids in both):
            return [ids[len(lead) :] for ids in both]
        return self._encode(asked)

    def passages(self, each: Sequence[Passage], questions: Sequence[Sequence[int]], *, limit: int) -> list[list[int]]:
        """The first part of the prompt for every passage, so that with its question it has at most ``limit`` tokens.

        The passage's last words give way, the question never does.

        Raises: InputError if there is not even room for the template and the title.
        """
        keys = [_key(passage) for passage in each]
        unknown = {key: passage for key, passage in zip(keys, each, strict=True) if key not in self._kept}
        found = self._encode([str(self.template.read(passage)) for passage in unknown.values()], special=True)
        fresh = dict(zip(unknown, found, strict=True))
        rows = [fresh[key] if key in fresh else list(self._kept[key]) for key in keys]
        self._keep(fresh)
        return [
            ids if len(ids) + len(question) <= limit else self.cut(self.template.read(passage), question, limit=limit)
            for ids, passage, question in zip(rows, each, questions, strict=True)
        ]

    def cut(self, rendered: Rendered, question: Sequence[int], *, limit: int) -> list[int]:
        """A first part without as many of the passage's last words as are too many. Raises: as ``passages``."""
        room = limit - len(question)
        ids = self._encode([str(rendered)], special=True)[0]
        if len(ids) <= room:
            return ids
        bare = self._encode([rendered.before + rendered.after], special=True)[0]
        if len(bare) > room:
            raise InputError(
                f"the question, its prompt and the passage's title are {len(bare) + len(question)} tokens, "
                f"the generator reads {limit}; shorten the question"
            )
        return self._open_ended(shortened(self.tokenizer, rendered, room, bare=bare))

    def _encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        if not texts:
            return []
        rows = self.tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
        return [self._open_ended(ids) for ids in rows] if special else rows

    def _open_ended(self, ids: list[int]) -> list[int]:
        """Without the end-of-sequence token with which some tokenizers close every text."""
        return ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] else ids

    def _keep(self, fresh: dict[bytes, list[int]]) -> None:
        for key, ids in fresh.items():
            self._kept[key] = array("i", ids)
        while len(self._kept) > KEPT_PASSAGES:
            self._kept.popitem(last=False)


def _key(passage: Passage) -> bytes:
    return hashlib.blake2b(f"{passage.title}\0{passage.text}".encode(errors="replace"), digest_size=16).digest()
