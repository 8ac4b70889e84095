"""How x and z become one input: templates, and their texts as tokens. A passage that is too long loses its last words,
the question never does."""

from __future__ import annotations

import hashlib
import re
import threading
from array import array
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar, Protocol, Self

from latentrag.errors import InputError
from latentrag.generator.texts import TextEncoder
from latentrag.registry import Table
from latentrag.types import Latent, Passage, Question

KEPT_PASSAGES = 1 << 17
"""Passages whose tokens are kept: about 60 MB at 100 words each."""

EMPTY: tuple[Latent, ...] = ((), (Passage("", ""),))
"""Closed book, and a passage without words: what a question is read with at least."""

_FIELD = re.compile(r"\{(title|text|question)\}")
_EARLIER = re.compile(r"\{(question|answer)\}")

# Templates


def _fill(template: str, values: Mapping[str, str]) -> str:
    """One pass, so that braces inside a passage or question are text."""
    return _FIELD.sub(lambda match: values[match[1]], template)


Exchanges = Sequence[tuple[str, str]]
"""Earlier questions of a conversation, each with its answer; either may be empty."""


class Template(Protocol):
    """How x and z become one input. Implementations are dataclasses whose fields are JSON values."""

    kind: ClassVar[str]
    """Its name in the table of templates."""

    def without_examples(self) -> Self:
        """The same without constant text that shows a model what to do."""
        ...

    def multiline(self) -> Self:
        """The same with a y that the end-of-sequence token ends, whatever its text."""
        ...

    def instructed(self, instruction: str) -> Self:
        """The same with what the system said."""
        ...


@dataclass(frozen=True, slots=True)
class Rendered:
    """An input in three parts, of which only ``text``, the passage's own words, may be shortened."""

    before: str
    text: str
    after: str

    def __str__(self) -> str:
        return self.before + self.text + self.after


@dataclass(frozen=True, slots=True)
class InputTemplate:
    """x and z for an encoder–decoder, as Hugging Face's RAG concatenates them:
    prefix + title + title_sep + text + passage_sep + question.

    Differs: the question keeps its case (there it is decoded from lower-cased BERT tokens), and truncation takes
    words from the passage (there the question goes first).
    """

    kind: ClassVar[str] = "input"

    prefix: str = ""
    title_sep: str = " / "
    passage_sep: str = " // "

    def without_examples(self) -> Self:
        """The same: it has none."""
        return self

    def multiline(self) -> Self:
        """The same: no text ends y."""
        return self

    def instructed(self, instruction: str) -> Self:
        """The same with the instruction before its prefix."""
        return replace(self, prefix=f"{instruction.strip()} {self.prefix}")

    def ask_after(self, exchanges: Exchanges, question: str) -> str:
        """The question after the earlier turns, as one text."""
        said = [each.strip() for exchange in exchanges for each in exchange if each.strip()]
        return " ".join([*said, question])

    def render(self, question: str, z: Latent) -> Rendered:
        """The input for x and z; without a passage (closed book) it is prefix + question."""
        if not z:
            return Rendered("", "", _single_spaced(self.prefix + question))
        *others, last = z
        before = self.prefix + "".join(self._titled(passage) + passage.text + self.passage_sep for passage in others)
        return Rendered(
            _single_spaced(before + self._titled(last)),
            _single_spaced(last.text),
            _single_spaced(self.passage_sep + question),
        )

    def _titled(self, passage: Passage) -> str:
        return passage.title.removeprefix('"').removesuffix('"') + self.title_sep


def _single_spaced(text: str) -> str:
    return text.replace("  ", " ")


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A causal model's prompt: preamble + passage + question, in this order, so that what the model computes for
    the passage does not depend on the question. Names of control tokens mean these tokens; in passages and questions
    they are text.

    Attributes:
        preamble: constant text, worked examples for instance.
        passage: with {title} and {text}; ``untitled`` is used for a passage that has no title.
        question: with {question}.
        end: the text that ends y, one token of the model; None: the tokenizer's end-of-sequence token.
        closed_book_preamble: stands in for the preamble where there is no passage.
        lead: what stands between the prompt and y; None: a space, or nothing after white space.
        earlier: an earlier question and its answer, before the question: with {question} and {answer}; None: the
            question as the last one, then y and its end, or a line break where that is a token.
    """

    kind: ClassVar[str] = "prompt"
    is_whole: ClassVar[bool] = False
    """Whether it says all, so that the tokenizer puts no token before or after it."""

    preamble: str = ""
    passage: str = "{title}: {text}\n"
    untitled: str = "{text}\n"
    question: str = "Question: {question}\nAnswer:"
    end: str | None = "\n"
    closed_book_preamble: str = ""
    lead: str | None = None
    earlier: str | None = None

    def __post_init__(self) -> None:
        for name, text, field in (
            ("passage", self.passage, "{text}"),
            ("untitled", self.untitled, "{text}"),
            ("question", self.question, "{question}"),
        ):
            if text.count(field) != 1:
                raise InputError(f"prompt template {name}={text!r} needs {field} exactly once")

    def without_examples(self) -> Self:
        """The same without its preambles."""
        return replace(self, preamble="", closed_book_preamble="")

    def multiline(self) -> Self:
        """The same with the end-of-sequence token as its end."""
        return replace(self, end=None)

    def instructed(self, instruction: str) -> Self:
        """The same with the instruction before its preambles."""
        told = f"{instruction.strip()}\n\n"
        return replace(self, preamble=told + self.preamble, closed_book_preamble=told + self.closed_book_preamble)

    def render(self, question: str, z: Latent) -> Rendered:
        """The prompt for x and z, or for x alone (closed book)."""
        read, asked = self.read(z), self.ask(question)
        return Rendered(read.before, read.text, read.after + asked)

    def read(self, z: Latent) -> Rendered:
        """The prompt's first part, which does not depend on the question: z's passages one after the other. If the
        prompt is too long, the last passage loses words."""
        if not z:
            return Rendered(self.closed_book_preamble, "", "")
        *others, last = [self._shown(passage) for passage in z]
        return Rendered(self.preamble + "".join(map(str, others)) + last.before, last.text, last.after)

    def ask(self, question: str) -> str:
        """The prompt's second part."""
        return _fill(self.question, {"question": _one_line(question)})

    def ask_after(self, exchanges: Exchanges, question: str) -> str:
        """The prompt's second part where there are earlier turns."""
        return "".join([*(self.exchange(*each) for each in exchanges), self.ask(question)])

    def exchange(self, question: str, answer: str) -> str:
        """An earlier question and its answer, as they stand before the question."""
        if self.earlier is None:
            return self.ask(question) + self.say(_one_line(answer)) + (self.end or "\n")
        said = {"question": _one_line(question), "answer": answer.strip()}
        return _EARLIER.sub(lambda match: said[match[1]], self.earlier)

    def _shown(self, passage: Passage) -> Rendered:
        # Line breaks would let a question or passage imitate the template's own layout.
        before, after = (self.passage if passage.title else self.untitled).split("{text}")
        title = {"title": _one_line(passage.title)}
        return Rendered(_fill(before, title), _one_line(passage.text), _fill(after, title))

    @property
    def cue(self) -> str:
        """The last piece of every prompt, after which y begins."""
        return self.question.rsplit("{question}", 1)[1] or ":"

    def say(self, y: str) -> str:
        """y as it follows the prompt, without the end."""
        y = y.strip()
        lead = self.lead if self.lead is not None else " " * (not self.cue[-1].isspace())
        return lead + y if y else ""


TEMPLATES: Table[Callable[..., Template]] = Table(
    "prompt template",
    {"input": InputTemplate, "prompt": PromptTemplate, "chat": "latentrag.generator.chat:ChatTemplate"},
    group="latentrag.templates",
)
"""Kinds that a model's settings may name for its template; where they name none it is the usual one of its generator.
Causal generators need what ``PromptTemplate`` has, encoder–decoders what ``InputTemplate`` has."""


def _one_line(text: str) -> str:
    return " ".join(text.split())


# Tokens


def input_ids(encoder: TextEncoder, inputs: Sequence[Rendered], *, limit: int) -> list[list[int]]:
    """Token ids of every input, special tokens included, none longer than ``limit``.

    Raises: InputError if an input is too long without any passage.
    """
    encoded = encoder.ids([str(rendered) for rendered in inputs])
    return [
        ids if len(ids) <= limit else shortened(encoder, rendered, limit)
        for rendered, ids in zip(inputs, encoded, strict=True)
    ]


def lighter(z: Latent) -> Latent | None:
    """z with less beside its last passage's words: first without that one's title, then without the first of several
    passages. None: there is nothing left to give up."""
    *others, last = z or (Passage("", ""),)
    if last.title:
        return (*others, replace(last, title=""))
    return z[1:] if others else None


def shortened(
    encoder: TextEncoder, rendered: Rendered, limit: int, *, num_after: int = 0, special: bool = True
) -> list[int]:
    """Token ids of an input that is too long, with as many of the passage's words as fit.

    Args:
        limit: of tokens, those that come after the input included.
        num_after: tokens that come after the input.
        special: with the tokens that the tokenizer puts around a text.
    Raises: InputError if it is too long without any of those words.
    """
    before, text, after = rendered.before, rendered.text, rendered.after
    room = limit - num_after
    (bare,) = encoder.ids([before + after], special=special)
    if len(bare) > room:
        raise InputError(
            f"the question, its prompt and the passage's title are {len(bare) + num_after} tokens, the generator reads "
            f"{limit}; shorten the question"
        )
    while text:
        ids, places = encoder.ids_and_places(before + text + after, special=special)
        if len(ids) <= room:
            return ids
        first, last = len(before), len(before) + len(text)
        starts = [start for start, end in places if first <= start < last and end > start]
        excess = len(ids) - room
        cut = starts[-excess] - first if excess <= len(starts) else 0
        # Cutting can change how the rest is tokenised, so at least one character goes each time round.
        text = text[: min(cut, len(text) - 1)].rstrip()
    return bare


def with_turns_that_fit(question: Question, fits: Callable[[int], bool]) -> Question:
    """The question after as many of its last exchanges as fit.

    Args:
        fits: whether so many do; if n do, fewer do.
    """
    most = len(question.exchanges)
    if not most or fits(most):
        return question
    number = bisect(range(1, most), 0, key=lambda n: 0 if fits(n) else 1)
    return question.since(number)


_Instructed = tuple[str, Latent]
"""What the system said, and z."""


class PromptTokens:
    """A causal model's prompts as token ids, in two parts: the passage's, tokenised once and kept, and the question's.

    Args:
        encoder: with the model's tokenizer.
    """

    def __init__(self, encoder: TextEncoder, template: PromptTemplate) -> None:
        self.encoder = encoder
        self.template = template
        self._kept: OrderedDict[bytes, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def parts(
        self, pairs: Sequence[tuple[Question, Latent]], *, limit: int, keep: bool
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The first and the second part of the prompt of every (x, z); together at most ``limit`` tokens.

        A passage's last words give way, then its title, then the first of several passages; the question never does.

        Args:
            keep: keep the first parts' tokens for the next call.
        Raises: InputError if there is not even room for the template, the title and the question.
        """
        second_of = {
            closed_book: self._questions(
                list(dict.fromkeys(x for x, z in pairs if bool(z) != closed_book)), closed_book=closed_book
            )
            for closed_book in {not z for _, z in pairs}
        }
        second = [second_of[not z][x] for x, z in pairs]
        longest = max(map(len, second))
        if longest > limit:
            raise InputError(
                f"the question and its prompt are {longest} tokens, the generator reads {limit}; shorten the question"
            )
        first = self._latents([(x.instruction, z) for x, z in pairs], keep=keep)
        fitted = [
            ids if len(ids) + len(question) <= limit else self._shortened((x.instruction, z), len(question), limit)
            for ids, (x, z), question in zip(first, pairs, second, strict=True)
        ]
        return fitted, second

    def fitting(self, question: Question, *, limit: int) -> Question:
        """The question without its oldest turns, as far as they leave passages less than half of the prompt."""

        def fits(num_exchanges: int) -> bool:
            asked = question.since(num_exchanges)
            return len(self._questions([asked], closed_book=False)[asked]) <= limit // 2

        return with_turns_that_fit(question, fits)

    def targets(self, y: Sequence[str]) -> list[list[int]]:
        """Every y as it follows any prompt, without the end."""
        said = [self.template.say(self.encoder.quoted(text)) for text in y]
        return self.encoder.after([self.template.cue, "\n"], said)

    def end(self) -> list[int]:
        """The tokens of the template's end as it follows the prompt, or of the end alone if those are fewer."""
        ends = [self.template.end or ""]
        (after,), (alone,) = self.encoder.after([self.template.cue], ends), self.encoder.ids(ends, special=False)
        return min(after, alone, key=len)

    def _questions(self, x: Sequence[Question], *, closed_book: bool) -> dict[Question, list[int]]:
        """The second part of every question's prompt, as tokenised after the character before it."""
        befores = [str(self._told(each.instruction).read(() if closed_book else (Passage("", ""),)))[-1:] for each in x]
        asked = [self._asked(each) for each in x]
        found: dict[Question, list[int]] = {}
        for before in dict.fromkeys(befores):
            places = [i for i, each in enumerate(befores) if each == before]
            texts = [asked[i] for i in places]
            rows = self.encoder.after([before], texts) if before else self._begun(texts)
            found |= {x[i]: row for i, row in zip(places, rows, strict=True)}
        return found

    def _asked(self, question: Question) -> str:
        quoted = self.encoder.quoted
        if not question.exchanges:
            return self.template.ask(quoted(question.text))
        return self.template.ask_after([(quoted(q), quoted(a)) for q, a in question.exchanges], quoted(question.text))

    def _told(self, instruction: str) -> PromptTemplate:
        return self.template.instructed(self.encoder.quoted(instruction)) if instruction else self.template

    def _latents(self, latents: Sequence[_Instructed], *, keep: bool) -> list[list[int]]:
        """The first part of the prompt of every z; what was not met before is tokenised."""
        keys = [_key(*z) for z in latents]
        with self._lock:
            known = {key: list(ids) for key in keys if (ids := self._kept.get(key)) is not None}
        unknown = {key: z for key, z in zip(keys, latents, strict=True) if key not in known}
        shown = [str(self._read(z)) for z in unknown.values()]
        encoded = iter(self._begun([text for text in shown if text]))
        fresh = {key: next(encoded) if text else [] for key, text in zip(unknown, shown, strict=True)}
        with self._lock:
            for key, tokens in fresh.items() if keep else ():
                self._kept[key] = array("i", tokens)
            while len(self._kept) > KEPT_PASSAGES:
                self._kept.popitem(last=False)
        known |= fresh
        return [list(known[key]) for key in keys]

    def _read(self, z: _Instructed) -> Rendered:
        return self._told(z[0]).read(self.encoder.quoted_passages(z[1]))

    def _shortened(self, z: _Instructed, num_after: int, limit: int) -> list[int]:
        rendered, special = self._read(z), not self.template.is_whole
        try:
            return self._open_ended(shortened(self.encoder, rendered, limit, num_after=num_after, special=special))
        except InputError:
            less = lighter(z[1])
            if less is None:
                raise
            return self._shortened((z[0], less), num_after, limit)

    def _begun(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts with which prompts begin."""
        return [self._open_ended(ids) for ids in self.encoder.ids(texts, special=not self.template.is_whole)]

    def _open_ended(self, ids: list[int]) -> list[int]:
        """Without the end-of-sequence token with which some tokenizers close every text."""
        return ids[:-1] if ids[-1:] == [self.encoder.tokenizer.eos_token_id] else ids


def _key(instruction: str, z: Latent) -> bytes:
    texts = [instruction, *chain.from_iterable((passage.title, passage.text) for passage in z)]
    # Lengths come first, so that nothing in one text can look like the border to the next.
    lengths = ",".join(str(len(text)) for text in texts)
    return hashlib.blake2b(f"{lengths}:{''.join(texts)}".encode(errors="replace"), digest_size=16).digest()
