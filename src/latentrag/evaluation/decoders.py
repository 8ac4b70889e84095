"""How the model answers in an evaluation: it searches for the best text, or chooses among given ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from latentrag.confidence import signals
from latentrag.decoding import Answered, Answering, Loop, Search, apart, label_log_likelihoods, run
from latentrag.decoding.answering import RULED_OUT, before_stop
from latentrag.errors import InputError, OptionError
from latentrag.evaluation.metrics import Said

if TYPE_CHECKING:
    from latentrag.decoding.answering import Confidence
    from latentrag.evaluation.run import Plan
    from latentrag.model import Read
    from latentrag.options import DecodingOptions
    from latentrag.protocols import Scores
    from latentrag.rag import Rag
    from latentrag.training.data import Example


def searched(rag: Rag, read: Read[Scores], plan: Plan, batch: Sequence[Example]) -> list[Said]:
    """The best answers that the decoder finds, as texts with log p(text|x); when sampling, one drawn for each question.

    Raises: InputError if the options rule every answer out.
    """
    confidence = [
        None if plan.k is None else rag.confidence(plan.asking, conversation=bool(example.history)) for example in batch
    ]
    if plan.signals or any(confidence):
        return _with_signals(rag, read, plan, batch, confidence)
    found = run(*(search for _, search in _searches(rag, read, plan, plan.options, batch)))
    if not all(found):
        raise OptionError(RULED_OUT)
    best = [hypotheses[0] for hypotheses in found]
    stop = plan.options.stop
    return [Said(before_stop(rag.generator.text(one.ids), stop).strip(), one.log_prob) for one in best]


def _with_signals(
    rag: Rag, read: Read[Scores], plan: Plan, batch: Sequence[Example], confidence: Sequence[Confidence | None]
) -> list[Said]:
    options = replace(plan.options, num_best=plan.options.num_beams)
    loop, said = Loop(), {}
    for part, search in _searches(rag, read, plan, options, batch):
        loop.admit(Answering(part, search, plan.asking))
    for event in loop.events():
        if isinstance(event, Answered):
            found, best = signals(event.answer), event.answer.hypotheses[0]
            known: dict[str, object] = {"signals": found} if plan.signals else {}
            if (of_one := confidence[event.question]) is not None:
                known["confidence"] = of_one.calibration.probability(found)
            said[event.question] = Said(best.text.strip(), best.log_prob, known)
    return [said[b] for b in range(len(read.questions))]


def _searches(
    rag: Rag, read: Read[Scores], plan: Plan, options: DecodingOptions, batch: Sequence[Example]
) -> list[tuple[Read[Scores], Search]]:
    """Questions as they are decoded together, with their search. What is drawn at random is drawn question by question,
    each with a seed of its own: with one for all, questions that are alike would get answers that are."""
    if options.sample:
        parts = [read.rows([b]) for b in range(len(batch))]
        of_parts = [replace(options, seed=seed_of(options.seed, example.id)) for example in batch]
    else:
        parts = apart(read)
        of_parts = [options] * len(parts)
    return [
        (part, rag.search(part, variant=plan.variant, decoding=plan.decoding, options=of_part))
        for part, of_part in zip(parts, of_parts, strict=True)
    ]


def seed_of(seed: int | None, name: str) -> int | None:
    """The seed of one question, which stays the same whatever is asked beside it and in which order."""
    if seed is None:
        return None
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big")


def chosen(rag: Rag, read: Read[Scores], plan: Plan, batch: Sequence[Example]) -> list[Said]:
    """Of each example's choices the most probable, with log p(choice|x) (Lewis et al. 2020, §3.4).

    Raises: InputError for an example without choices, or with two that are the same to the generator.
    """
    places: dict[tuple[str, ...], list[int]] = {}
    for b, example in enumerate(batch):
        if not example.choices:
            raise InputError("there is nothing to choose from; needed choices, or a task with labels")
        places.setdefault(example.choices, []).append(b)
    found: dict[int, Said] = {}
    for choices, of_choices in places.items():
        part = read.rows(of_choices)
        log_p, _, _ = label_log_likelihoods(
            rag.generator, part.prepared, part.log_p_eta, choices, variant=plan.variant
        )  # (B, L)
        best, place = log_p.max(dim=1)
        found |= {b: Said(choices[i], p) for b, i, p in zip(of_choices, place.tolist(), best.tolist(), strict=True)}
    return [found[b] for b in range(len(batch))]
