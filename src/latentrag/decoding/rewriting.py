"""Rewrites of a conversation's last question: what the generator proposes to search for in its place."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from latentrag.decoding.beam import marginal_beam
from latentrag.errors import InputError
from latentrag.options import DecodingOptions
from latentrag.protocols import Generator, Prompted, takes_question
from latentrag.types import Question, no_passages

if TYPE_CHECKING:
    from latentrag.protocols import Scores

INSTRUCTION = (
    "Write the last question of this conversation so that it can be understood without the rest, with names in place "
    "of pronouns, in its language. Write the question alone."
)
EXAMPLES = """\
Conversation: Who painted Guernica? / Pablo Picasso / When did he die?
Question: When did Pablo Picasso die?

Conversation: What is the capital of Peru? / Lima / And of Chile?
Question: What is the capital of Chile?

Conversation: How high is Mont Blanc? / 4,806 metres / Who wrote Faust?
Question: Who wrote Faust?

"""
"""What shows a base model what to do."""
ASKED = "Conversation: {question}\nQuestion:"
MAX_TOKENS = 48
KEPT = 10_000
"""Conversations whose rewrites are kept, so that each is rewritten once, also while the generator is trained."""


def _asking(generator: Prompted) -> Generator:
    """The generator under the prompt that asks for a rewrite."""
    template: Any = generator.template
    if hasattr(template, "told"):
        return generator.with_template(template.told(INSTRUCTION, asked=ASKED))
    made = {"preamble": "", "closed_book_preamble": EXAMPLES, "question": ASKED, "end": "\n", "lead": None}
    return generator.with_template(replace(template, **made))


class Rewriter:
    """The ``num`` best rewrites of a beam, each with its log p, nats; without any passage.

    It computes with the generator's model: threads must not use both at once.

    Raises: InputError for less than one, or a generator that cannot be asked for them.
    """

    def __init__(self, generator: Scores, num: int) -> None:
        if num < 1:
            raise InputError(f"rewrites={num}; needed 0 or more")
        if not isinstance(generator, Prompted) or not hasattr(generator.template, "preamble"):
            raise InputError(
                "rewrites need a generator that takes worked examples or an instruction; name a causal one, or leave "
                "rewrites out"
            )
        self.num = num
        self._writes = _asking(generator)
        if not takes_question(self._writes, "?"):
            raise InputError(
                "rewrites need a generator that has room for the prompt that asks for them; name another, or leave "
                "rewrites out"
            )
        self._kept: OrderedDict[Question, list[tuple[str, float]]] = OrderedDict()
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, x: Sequence[Question]) -> list[list[tuple[str, float]]]:
        """Of each conversation its rewrites that are no text of another reading, best first."""
        asked = [Question(question.turns) for question in x]
        with self._lock:
            unknown = list(dict.fromkeys(each for each in asked if each not in self._kept))
            if unknown:
                self._kept |= dict(zip(unknown, self._written(unknown), strict=True))
            found = [self._kept[each] for each in asked]
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found

    def _written(self, x: Sequence[Question]) -> list[list[tuple[str, float]]]:
        """Of each; none where not even the last question fits."""
        shown = [self._shown(question) for question in x]
        asked = [b for b, text in enumerate(shown) if text is not None]
        found = iter(self._decoded([x[b] for b in asked], [text for text in shown if text is not None]))
        return [next(found) if text is not None else [] for text in shown]

    def _decoded(self, x: Sequence[Question], shown: Sequence[str]) -> list[list[tuple[str, float]]]:
        if not x:
            return []
        generator = self._writes
        limit = generator.max_target_tokens
        tokens = MAX_TOKENS if limit is None else min(MAX_TOKENS, limit)
        options = DecodingOptions(num_beams=max(2, self.num), num_best=self.num, max_tokens=tokens)
        prepared = generator.prepare(list(shown), no_passages(len(x)))
        prior = torch.zeros(len(x), 1, device=generator.device)
        found = marginal_beam(generator, prepared, prior, variant="sequence", options=options)
        rewrites = []
        for question, hypotheses in zip(x, found, strict=True):
            texts = {
                text: each.log_prob
                for each in reversed(hypotheses)
                if each.finished and (text := " ".join(generator.text(each.ids).split()))
            }
            texts.pop(question.text, None)
            rewrites.append(sorted(texts.items(), key=lambda item: -item[1]))
        return rewrites

    def _shown(self, question: Question) -> str | None:
        """The conversation in a line, without its oldest turns if it is too long; None: nothing fits."""
        for number in range(len(question.exchanges), -1, -1):
            said = [each for exchange in question.since(number).exchanges for each in exchange if each]
            text = " / ".join(" ".join(each.split()) for each in [*said, question.text])
            if takes_question(self._writes, text):
                return text
        return None
