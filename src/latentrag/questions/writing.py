"""The generator writes a question and a short answer to a passage, and answers the question again from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentrag.decoding import BeamSearch, run
from latentrag.errors import DataError, InputError
from latentrag.options import DecodingOptions
from latentrag.protocols import Generator, Prompted
from latentrag.types import Passage, singles

if TYPE_CHECKING:
    from latentrag.protocols import Scores

PROMPT_FILE = "prompt.json"
MAX_TOKENS = 64
MAX_ANSWER_TOKENS = 24
_FIELDS = {"request", "template", "chat_request", "instruction"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What asks for a question and an answer.

    Attributes:
        request: what stands in the place of the question, for a base model.
        template: a base model's prompt, by the fields of ``generator.prompt.PromptTemplate``: worked examples.
        chat_request: what stands in the place of the question, for a model with a chat template.
        instruction: what such a model is told before the passage.
    """

    request: str
    template: Mapping[str, Any] = field(hash=False)
    chat_request: str
    instruction: str

    @classmethod
    def read(cls, path: Path | None = None) -> Prompt:
        """From a JSON file with these names; None: the usual one. Raises: DataError."""
        try:
            usual = files("latentrag.questions").joinpath(PROMPT_FILE)
            content = json.loads(usual.read_bytes() if path is None else path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON ({error}); correct it") from error
        if not isinstance(content, dict) or content.keys() != _FIELDS:
            raise DataError(f"{path}; needed a JSON object with the names {', '.join(sorted(_FIELDS))}")
        texts = [content[name] for name in sorted(_FIELDS - {"template"})]
        if not all(isinstance(text, str) and text for text in texts) or not isinstance(content["template"], dict):
            raise DataError(f"{path}: needed an object as template and texts that are not empty as the others")
        return cls(**content)


class Writer:
    """A generator with two prompts: one that asks for pairs, and its own, with which it answers.

    Raises: InputError for a generator that has no prompt, or one that the prompt does not fit.
    """

    def __init__(self, generator: Scores, prompt: Prompt) -> None:
        if not isinstance(generator, Prompted) or not hasattr(generator.template, "preamble"):
            raise InputError(
                "this generator writes nothing, or takes neither worked examples nor an instruction; name a causal one"
            )
        template = generator.template
        if hasattr(template, "told"):
            asks, self.request = template.told(prompt.instruction, asked="{question}"), prompt.chat_request
        else:
            asks, self.request = _made(template, prompt.template), prompt.request
        self._answers: Generator = generator
        self._writes = generator.with_template(asks)

    def written(self, passages: Sequence[Passage]) -> list[str]:
        """What is written to each passage."""
        return _decoded(self._writes, [self.request] * len(passages), passages, max_tokens=MAX_TOKENS)

    def answered(self, questions: Sequence[str], passages: Sequence[Passage]) -> list[str]:
        """The answer to each question from its passage alone."""
        return _decoded(self._answers, questions, passages, max_tokens=MAX_ANSWER_TOKENS)


def _made(template: Any, fields: Mapping[str, Any]) -> Any:
    try:
        return replace(template, closed_book_preamble="", lead=None, **fields)
    except TypeError as error:
        raise InputError(f"the prompt's template cannot be used ({error}); correct it") from error


@torch.no_grad()
def _decoded(generator: Generator, x: Sequence[str], passages: Sequence[Passage], *, max_tokens: int) -> list[str]:
    """Greedily, each from one passage."""
    if not passages:
        return []
    limit = generator.max_target_tokens
    options = DecodingOptions(num_beams=1, max_tokens=max_tokens if limit is None else min(max_tokens, limit))
    prepared = generator.prepare(list(x), singles([[passage] for passage in passages]))
    prior = torch.zeros(len(passages), 1, device=generator.device)
    best = run(BeamSearch(generator, prepared, prior, variant="sequence", options=options))
    return [generator.text(hypotheses[0].ids).strip() for hypotheses in best]
