"""Which sentence of a passage an answer came from: the passage is read again without each of them."""

from __future__ import annotations

from collections.abc import Generator as Coroutine
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from latentrag.decoding.loop import Work, alone, result_of
from latentrag.decoding.step import reading
from latentrag.marginal import log_likelihood, log_prior
from latentrag.model import Evidence
from latentrag.protocols import Scores, weighs_passages
from latentrag.sentences import sentences, without_part
from latentrag.types import Asked, Passage, Sentence, Source, Targets, Variant

_AT_ONCE = 16
"""Shortened passages that are read in one batch."""


@torch.no_grad()
def with_sentences(
    sources: Sequence[Source], generator: Scores, question: Asked, evidence: Evidence, b: int, variant: Variant
) -> tuple[Source, ...]:
    """``adding_sentences`` to its end."""
    return result_of(adding_sentences(sources, generator, question, evidence, b, variant))


def adding_sentences(
    sources: Sequence[Source], generator: Scores, question: Asked, evidence: Evidence, b: int, variant: Variant
) -> Coroutine[Work, Any, tuple[Source, ...]]:
    """The sources of question b, that of highest posterior with its sentences.

    Each sentence has log p(y|x) had the passage z been without it. The passage is read again, the same y is scored;
    p_η(z|x) stays what it is, since the passage would still have been retrieved as it stands in the memory.
    """
    top = max(range(len(sources)), key=lambda place: sources[place].posterior)
    passage = sources[top].passage
    spans = sentences(passage.text)
    shorter = [replace(passage, text=without_part(passage.text, span)) for span in spans]
    if not shorter:
        return tuple(sources)
    log_p = yield from log_p_with_each(generator, question, evidence, b, passage, shorter, variant=variant)
    found = tuple(Sentence(start, end, value) for (start, end), value in zip(spans, log_p.tolist(), strict=True))
    return (*sources[:top], replace(sources[top], sentences=found), *sources[top + 1 :])


def log_p_with_each(
    generator: Scores,
    question: Asked,
    evidence: Evidence,
    b: int,
    passage: Passage,
    others: Sequence[Passage],
    *,
    variant: Variant,
) -> Coroutine[Work, Any, Tensor]:
    """(S,) log p(y|x), nats, with each of S other passages in place of ``passage``. The prior stays, except for the
    part of a generator that weighs passages.

    Args:
        evidence: of the question, at b.
        others: S ≥ 1.
    """
    latents = evidence.latents[b]
    places = [k for k, z in enumerate(latents) if passage in z]
    rows = [[tuple(other if each == passage else each for each in latents[k]) for k in places] for other in others]
    log_p_theta = evidence.log_p_theta[b].repeat(len(others), 1, 1)  # (S, K, T)
    ids, mask = evidence.targets.ids[b], evidence.targets.mask[b]
    prior = evidence.log_p_eta[b].repeat(len(others), 1)
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        targets = Targets(ids.repeat(len(part), 1), mask.repeat(len(part), 1))
        prepared = generator.prepare([question] * len(part), part)
        yield from reading(generator, prepared)
        log_p_theta[start : start + len(part), places] = yield alone(partial(generator.log_p_theta, prepared, targets))
        if weighs_passages(generator):
            before = generator.log_weights(generator.prepare([question], [[latents[k] for k in places]]))
            prior[start : start + len(part), places] += generator.log_weights(prepared) - before
    if weighs_passages(generator):
        prior = log_prior(prior)
    return log_likelihood(prior, log_p_theta, mask.repeat(len(others), 1), variant=variant)
