"""How x and z become one input, and how a passage that is too long gives way to the question."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentrag.errors import InputError
from latentrag.types import Latent, Passage

_FIELD = re.compile(r"\{(title|text|question)\}")


def _fill(template: str, values: Mapping[str, str]) -> str:
    """One pass, so that braces inside a passage or question are text."""
    return _FIELD.sub(lambda match: values[match[1]], template)


@dataclass(frozen=True, slots=True)
class Rendered:
    """An input in three parts; only ``text``, the passage's own words, may be shortened."""

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

    prefix: str = ""
    title_sep: str = " / "
    passage_sep: str = " // "

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
    the passage does not depend on the question.

    Attributes:
        preamble: constant text, worked examples for instance.
        passage: with {title} and {text}; ``untitled`` is used for a passage that has no title.
        question: with {question}; y follows it after one space.
        end: the text that ends y, one token of the model; None: the tokenizer's end-of-sequence token.
        closed_book_preamble: stands in for the preamble where there is no passage.
    """

    preamble: str = ""
    passage: str = "{title}: {text}\n"
    untitled: str = "{text}\n"
    question: str = "Question: {question}\nAnswer:"
    end: str | None = "\n"
    closed_book_preamble: str = ""

    def __post_init__(self) -> None:
        for name, text, field in (
            ("passage", self.passage, "{text}"),
            ("untitled", self.untitled, "{text}"),
            ("question", self.question, "{question}"),
        ):
            if text.count(field) != 1:
                raise InputError(f"prompt template {name}={text!r} needs {field} exactly once")

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

    def _shown(self, passage: Passage) -> Rendered:
        # Line breaks would let a question or passage imitate the template's own layout.
        before, after = (self.passage if passage.title else self.untitled).split("{text}")
        title = {"title": _one_line(passage.title)}
        return Rendered(_fill(before, title), _one_line(passage.text), _fill(after, title))

    @property
    def cue(self) -> str:
        """The last piece of every prompt, after which y begins."""
        return self.question.rsplit("{question}", 1)[1] or ":"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def input_ids(tokenizer: Any, inputs: Sequence[Rendered], *, limit: int) -> list[list[int]]:
    """Token ids of every input, special tokens included, none longer than ``limit``.

    The passage's last words are left out where an input is too long; the question never is.

    Raises: InputError if an input is too long without any passage.
    """
    encoded: list[list[int]] = tokenizer([str(each) for each in inputs], verbose=False)["input_ids"]
    return [
        ids if len(ids) <= limit else _fitted(tokenizer, each, limit) for each, ids in zip(inputs, encoded, strict=True)
    ]


def _fitted(tokenizer: Any, given: Rendered, limit: int) -> list[int]:
    bare = tokenizer(given.before + given.after, verbose=False)["input_ids"]
    if len(bare) > limit:
        raise InputError(
            f"the question, its prompt and the passage's title are {len(bare)} tokens, the generator reads {limit}; "
            "shorten the question"
        )
    return shortened(tokenizer, given, limit, bare=bare)


def shortened(tokenizer: Any, given: Rendered, limit: int, *, bare: Sequence[int]) -> list[int]:
    """Token ids of an input that is too long, with as many of the passage's words as there is room for.

    Args:
        bare: its tokens without any of them, which must fit.
    """
    text = given.text
    while True:
        encoded = tokenizer(given.before + text + given.after, return_offsets_mapping=True, verbose=False)
        ids: list[int] = encoded["input_ids"]
        if len(ids) <= limit:
            return ids
        first, last = len(given.before), len(given.before) + len(text)
        starts = [start for start, end in encoded["offset_mapping"] if first <= start < last and end > start]
        excess = len(ids) - limit
        cut = starts[-excess] - first if excess <= len(starts) else 0
        # Cutting can change how the rest is tokenised, so at least one character goes each time round.
        text = text[: min(cut, len(text) - 1)].rstrip()
        if not text:
            return list(bare)
