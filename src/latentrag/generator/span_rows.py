"""(x, z) as rows of tokens for an extractive reader, and what the spans of a row read.

A row is question, title and text, each after the tokenizer's own separator, as DPR's and REALM's readers have it. A
span lies in one title or one text. It reads y if its tokens say what y's tokens say, as in ORQA and REALM, which
compare tokens: for an uncased encoder case and accents do not count, and how white space is written never does.

Tokens of byte-level vocabularies (GPT-2's, RoBERTa's) are bytes. White space of any kind and length is one space there,
and no span begins or ends inside a character that is several tokens.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from latentrag.errors import InputError, ModelError
from latentrag.generator.texts import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latentrag.types import Latent

_MARKERS = ("Ġ", "▁")
"""With which tokens begin that begin a word, in vocabularies of byte pairs and of SentencePiece."""


class _Said(NamedTuple):
    """What the tokens of a text say, and with which of them a span may begin and end."""

    said: list[str]
    begins: list[bool]
    ends: list[bool]


@dataclass(frozen=True, slots=True)
class SpanRow:
    """(x, z) as S tokens.

    Attributes:
        ids, types: the tokens and their segments.
        part: for each token the number of the text that it belongs to, from 1; 0: to none.
        texts: titles and texts of z, the first one is number 1.
        places: where each token starts and ends in its text.
        said: what each token says, with a space before it where it begins a word; of a character that is several
            tokens, the first one says all.
        begins, ends: with which tokens a span may begin, and end: those of z that are no white space, and not inside a
            character.
    """

    ids: list[int]
    types: list[int]
    part: list[int]
    texts: list[str]
    places: list[tuple[int, int]]
    said: list[str]
    begins: list[bool]
    ends: list[bool]

    def spans(self, longest: int) -> Iterator[tuple[str, int, int]]:
        """What each span of up to ``longest`` tokens says, and its first and last token."""
        part, said = self.part, self.said
        for first, number in enumerate(part):
            if not self.begins[first]:
                continue
            text = ""
            for last in range(first, min(first + longest, len(part))):
                if part[last] != number:
                    break
                text += said[last]
                if self.ends[last]:
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
        self._bytes = _bytes_of_tokens(tokenizer)
        self._says = _what_tokens_say(tokenizer) if self._bytes is None else []
        self._unknown = tokenizer.unk_token_id

    def key(self, y: str) -> str:
        """What y says; spans that say the same read it."""
        ids, places = self._encoder.ids_and_places(self._encoder.quoted(y), special=False)
        return "".join(self._said(ids, places, y).said).strip()

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
        part, places = [0] * len(ids), [(0, 0)] * len(ids)
        none = _Said([""], [False], [False])
        parts = [none] * len(ids)
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
            parts += [none] * gap + [self._said(of_text, where, text)]
        ids += self._after
        types += [second] * (len(ids) - len(types))
        tail = len(self._after)
        said, begins, ends = (list(chain.from_iterable(each)) for each in zip(*parts, *[none] * tail, strict=True))
        return SpanRow(ids, types, part + [0] * tail, texts, places + [(0, 0)] * tail, said, begins, ends)

    def _said(self, ids: Sequence[int], places: Sequence[tuple[int, int]], text: str) -> _Said:
        """What each token says; one that the vocabulary does not have says its own text."""
        own = [f" {text[start:end].casefold()}" for start, end in places]
        if self._bytes is not None:
            of_bytes = self._bytes
            pieces = [each.encode() if n == self._unknown else of_bytes[n] for n, each in zip(ids, own, strict=True)]
            return _said_by_bytes(pieces)
        said = [each if n == self._unknown else self._says[n] for n, each in zip(ids, own, strict=True)]
        is_edge = [bool(each.strip()) for each in said]
        return _Said(said, is_edge, is_edge)


def _said_by_bytes(pieces: Sequence[bytes]) -> _Said:
    """What tokens of these bytes say, one after the other."""
    said, begins, ends = [""] * len(pieces), [False] * len(pieces), [False] * len(pieces)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    first, text, after_space = 0, "", False  # of the tokens since the last end of a character that is an end of a token
    for last, piece in enumerate(pieces):
        text += decoder.decode(piece)
        if decoder.getstate()[0]:  # the rest of a character is in the next token
            continue
        said[first] = spaced = _one_space(text, after_space=after_space)
        begins[first] = ends[last] = bool(spaced.strip())
        after_space = spaced.endswith(" ") if spaced else after_space
        first, text = last + 1, ""
    return _Said(said, begins, ends)


def _one_space(text: str, *, after_space: bool) -> str:
    """The text with one space for each run of white space, and none at its start after another space."""
    words = " ".join(text.split())
    before = " " if text[:1].isspace() and not after_space else ""
    after = " " if words and text[-1:].isspace() else ""
    return f"{before}{words}{after}"


def _bytes_of_tokens(tokenizer: PreTrainedTokenizerBase) -> list[bytes] | None:
    """For every token of a byte-level vocabulary its bytes; None for other vocabularies."""
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    if not any(_is_byte_level(state.get(name)) for name in ("pre_tokenizer", "decoder")):
        return None
    byte_of = _byte_of_character()
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    names: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [
        name.encode(errors="replace")
        if number in added or not byte_of.keys() >= set(name)
        else bytes(byte_of[character] for character in name)
        for number, name in enumerate(name or "" for name in names)
    ]


def _is_byte_level(part: dict[str, Any] | None) -> bool:
    """Whether a part of a tokenizer, or a part of it, maps bytes to characters."""
    if not part:
        return False
    inner = [*part.get("pretokenizers", ()), *part.get("decoders", ())]
    return part["type"] == "ByteLevel" or any(map(_is_byte_level, inner))


def _byte_of_character() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary is (GPT-2's table, Radford et al. 2019): bytes that can be
    seen are their Latin-1 characters, the other 68 are those from U+0100 on, in order."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


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
