"""(x, z) as rows of tokens for an extractive reader, and what the spans of a row read.

A row is question, title and text, each after the tokenizer's own separator, as DPR's and REALM's readers have it. A
span lies in one title or one text. It reads y if its tokens say what y's tokens say, as in ORQA and REALM, which
compare tokens: for an uncased encoder case and accents do not count, and white space never does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentrag.errors import InputError, ModelError
from latentrag.generator.texts import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latentrag.types import Latent

_MARKERS = ("Ġ", "▁")
"""With which tokens begin that begin a word, in vocabularies of byte pairs and of SentencePiece."""


@dataclass(frozen=True, slots=True)
class SpanRow:
    """(x, z) as S tokens.

    Attributes:
        ids, types: the tokens and their segments.
        part: for each token the number of the text that it belongs to, from 1; 0: to none.
        texts: titles and texts of z, the first one is number 1.
        places: where each token starts and ends in its text.
        said: what each token says, with a space before it where it begins a word.
    """

    ids: list[int]
    types: list[int]
    part: list[int]
    texts: list[str]
    places: list[tuple[int, int]]
    said: list[str]

    @property
    def is_edge(self) -> list[bool]:
        """With which tokens a span may begin and end: those of z that are no white space."""
        return [bool(text.strip()) for text in self.said]

    def spans(self, longest: int) -> Iterator[tuple[str, int, int]]:
        """What each span of up to ``longest`` tokens says, and its first and last token."""
        part, said, is_edge = self.part, self.said, self.is_edge
        for first, number in enumerate(part):
            if not is_edge[first]:
                continue
            text = ""
            for last in range(first, min(first + longest, len(part))):
                if part[last] != number:
                    break
                text += said[last]
                if is_edge[last]:
                    yield text.strip(), first, last

    def text(self, first: int, last: int) -> str:
        """The passage's own text from the first token to the last."""
        start, end = self.places[first][0], self.places[last][1]
        return self.texts[self.part[first] - 1][start:end].strip()


class SpanRows:
    """Makes rows with a model's tokenizer.

    Args:
        limit: tokens of a row; what a passage has beyond them is not read.
        like_dpr: no segments and no separator at the end, as DPR's reader was trained.
    Raises: ModelError for a tokenizer that does not read pairs of texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, limit: int, like_dpr: bool = False) -> None:
        self.limit = limit
        self._encoder = TextEncoder(tokenizer)
        pair = tokenizer("a", "a", verbose=False)
        which = pair.sequence_ids(0)
        if 0 not in which or 1 not in which:
            raise ModelError("its tokenizer does not read pairs of texts; name an encoder that does")
        ids, types = pair["input_ids"], pair.get("token_type_ids", [0] * len(which))
        asked, read = which.index(0), which.index(1)
        asked_end, read_end = len(which) - which[::-1].index(0), len(which) - which[::-1].index(1)
        self._before, self._between, self._after = ids[:asked], ids[asked_end:read], ids[read_end:]
        self._types = (types[asked], types[read])
        if like_dpr:
            self._after, self._types = [], (0, 0)
        separator = tokenizer.sep_token_id
        self._separator = self._between if separator is None else [separator]
        self._says = _what_tokens_say(tokenizer)
        self._unknown = tokenizer.unk_token_id

    def key(self, y: str) -> str:
        """What y says; spans that say the same read it."""
        ids, places = self._encoder.ids_and_places(self._encoder.quoted(y), special=False)
        return "".join(self._said(ids, places, y)).strip()

    def check_question(self, x: str) -> list[int]:
        """A question's tokens. Raises: InputError if it leaves no room for a passage."""
        (ids,) = self._encoder.ids([self._encoder.quoted(x)], special=False)
        fixed = len(self._before) + len(self._between) + len(self._after)
        if len(ids) + fixed >= self.limit:
            raise InputError(
                f"the question is {len(ids) + fixed} tokens with its separators, the reader's limit is {self.limit} "
                "and a passage must fit in too; shorten the question"
            )
        return ids

    def row(self, x: str, z: Latent) -> SpanRow:
        """Raises: InputError for a question that is too long."""
        question = self.check_question(x)
        ids = [*self._before, *question, *self._between]
        first, second = self._types
        texts = [text for passage in z for text in (passage.title, passage.text) if text.strip()]
        part, places, said = [0] * len(ids), [(0, 0)] * len(ids), [""] * len(ids)
        types = [first] * len(ids)
        room = self.limit - len(self._after)
        for number, text in enumerate(texts, start=1):
            between = self._separator if number > 1 else []
            of_text, where = self._encoder.ids_and_places(self._encoder.quoted(text), special=False)
            kept = max(0, room - len(ids) - len(between))
            if not kept:
                break
            of_text, where = of_text[:kept], where[:kept]
            gap, size = len(between), len(of_text)
            ids += [*between, *of_text]
            part += [0] * gap + [number] * size
            places += [(0, 0)] * gap + list(where)
            said += [""] * gap + self._said(of_text, where, text)
        ids += self._after
        types += [second] * (len(ids) - len(types))
        tail = len(self._after)
        return SpanRow(ids, types, part + [0] * tail, texts, places + [(0, 0)] * tail, said + [""] * tail)

    def _said(self, ids: Sequence[int], places: Sequence[tuple[int, int]], text: str) -> list[str]:
        """What each token says; one that the vocabulary does not have says its own text."""
        return [
            f" {text[start:end].casefold()}" if token == self._unknown else self._says[token]
            for token, (start, end) in zip(ids, places, strict=True)
        ]


def _what_tokens_say(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """For every token of the vocabulary its text, with a space before it where it begins a word."""
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    kind, inner = model["type"], model.get("continuing_subword_prefix") or "##"
    names: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if kind == "WordPiece":
        return [name.removeprefix(inner) if name.startswith(inner) else f" {name}" for name in names]
    if kind == "WordLevel":
        return [f" {name}" for name in names]
    return [_spaced(name or "") for name in names]


def _spaced(name: str) -> str:
    for marker in _MARKERS:
        name = name.replace(marker, " ")
    return name
