"""Prompts of a causal model as tokens, in two parts: the passage's, tokenised once and kept, and the question's."""

import hashlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from latentrag.errors import InputError
from latentrag.generator.inputs import PromptTemplate, Rendered, shortened
from latentrag.types import Latent, Passage

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
        self._lock = threading.Lock()

    def parts(
        self, pairs: Sequence[tuple[str, Latent]], *, limit: int, keep: bool
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The first and the second part of the prompt of every (x, z); together at most ``limit`` tokens.

        A passage's last words give way, the question never does.

        Args:
            keep: keep the first parts' tokens for the next call.
        Raises: InputError if there is not even room for the template, the title and the question.
        """
        second_of = {
            closed_book: self._questions([x for x, z in pairs if bool(z) != closed_book], closed_book=closed_book)
            for closed_book in {not z for _, z in pairs}
        }
        second = [second_of[not z][x] for x, z in pairs]
        longest = max(map(len, second))
        if longest > limit:
            raise InputError(
                f"the question and its prompt are {longest} tokens, the generator reads {limit}; shorten the question"
            )
        first = self._latents([z for _, z in pairs], keep=keep)
        fitted = [
            ids if len(ids) + len(question) <= limit else self.cut(self.template.read(z), question, limit=limit)
            for ids, (_, z), question in zip(first, pairs, second, strict=True)
        ]
        return fitted, second

    def _questions(self, x: Sequence[str], *, closed_book: bool) -> dict[str, list[int]]:
        """The second part of every question's prompt, as tokenised after the character before it."""
        texts = list(dict.fromkeys(x))
        asked = [self.template.ask(text) for text in texts]
        before = str(self.template.read(() if closed_book else (Passage("", ""),)))[-1:]
        if not before:
            return dict(zip(texts, self._encode(asked, special=True), strict=True))
        lead = self._encode([before])[0]
        both = self._encode([before + text for text in asked])
        if all(ids[: len(lead)] == lead for ids in both):
            return {text: ids[len(lead) :] for text, ids in zip(texts, both, strict=True)}
        return dict(zip(texts, self._encode(asked), strict=True))

    def _latents(self, latents: Sequence[Latent], *, keep: bool) -> list[list[int]]:
        """The first part of the prompt of every z; what was not met before is tokenised."""
        keys = [_key(z) for z in latents]
        with self._lock:
            known = {key: list(ids) for key in keys if (ids := self._kept.get(key)) is not None}
        unknown = {key: z for key, z in zip(keys, latents, strict=True) if key not in known}
        shown = [str(self.template.read(z)) for z in unknown.values()]
        encoded = iter(self._encode([text for text in shown if text], special=True))
        fresh = {key: next(encoded) if text else [] for key, text in zip(unknown, shown, strict=True)}
        with self._lock:
            for key, tokens in fresh.items() if keep else ():
                self._kept[key] = array("i", tokens)
            while len(self._kept) > KEPT_PASSAGES:
                self._kept.popitem(last=False)
        known |= fresh
        return [list(known[key]) for key in keys]

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


def _key(z: Latent) -> bytes:
    texts = "\0".join(f"{passage.title}\0{passage.text}" for passage in z)
    return hashlib.blake2b(f"{len(z)}\0{texts}".encode(errors="replace"), digest_size=16).digest()
