"""The paper's two decoders for RAG-Sequence: a beam for each passage, then the marginal of what they found (§2.5)."""

from collections.abc import Callable, Sequence
from collections.abc import Generator as Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from latentrag.decoding.beam import BeamSearch
from latentrag.decoding.loop import Decoded, Ended, Turns, Work, hypotheses_of, result_of
from latentrag.decoding.trie import Candidates, scoring
from latentrag.errors import InputError
from latentrag.marginal import sequence_log_likelihood
from latentrag.options import DecodingOptions
from latentrag.protocols import Generator, Prepared
from latentrag.types import Targets, Variant

_ROWS_AT_ONCE = 256
"""Rows (question × prefix × passage) of one scoring step, if more than one question has them."""

Found = Coroutine[Work, Any, list[list[Decoded]]]
"""For each question its hypotheses, best first."""


class Rescoring:
    """Thorough or Fast Decoding of B questions."""

    def __init__(
        self,
        decode: Callable[..., Found],
        generator: Generator,
        prepared: Prepared,
        log_p_eta: Tensor,
        *,
        variant: Variant,
        options: DecodingOptions,
    ) -> None:
        """
        Args:
            decode: ``thoroughly`` or ``quickly``.
        Raises: InputError for RAG-Token, whose one decoder is the exact beam.
        """
        if variant != "sequence":
            raise InputError("Thorough and Fast Decoding are for RAG-Sequence; RAG-Token has one decoder, 'exact'")
        self._decode = partial(decode, generator, prepared, log_p_eta, options=options)
        self._live = list(range(len(log_p_eta)))
        self._rows_each = prepared.num_passages * options.num_beams

    @property
    def live(self) -> Sequence[int]:
        """The questions that are not done."""
        return self._live

    @property
    def num_rows(self) -> int:
        """Question × passage × beam."""
        return len(self._live) * self._rows_each

    def drop(self, question: int) -> None:
        """Say nothing of this question."""
        self._live.remove(question)

    def turns(self) -> Turns:
        """What ``decode`` asks for, and then all of the answers."""
        hypotheses = yield from self._decode()
        while self._live:
            question = self._live.pop(0)
            yield Ended(question, hypotheses[question])


@torch.no_grad()
def thorough(
    generator: Generator, prepared: Prepared, log_p_eta: Tensor, *, options: DecodingOptions
) -> list[list[Decoded]]:
    """``thoroughly`` to its end."""
    return result_of(thoroughly(generator, prepared, log_p_eta, options=options))


@torch.no_grad()
def fast(
    generator: Generator, prepared: Prepared, log_p_eta: Tensor, *, options: DecodingOptions
) -> list[list[Decoded]]:
    """``quickly`` to its end."""
    return result_of(quickly(generator, prepared, log_p_eta, options=options))


def thoroughly(generator: Generator, prepared: Prepared, log_p_eta: Tensor, *, options: DecodingOptions) -> Found:
    """Thorough Decoding of RAG-Sequence (Lewis et al. 2020, §2.5).

    A beam search for each passage; the union Y of their hypotheses; then p(y|x) = Σ_z p_η(z|x) p_θ(y|x,z) for every
    y in Y and every z, also those in whose beam y is missing.

    Args:
        prepared: B questions × K passages, from ``generator.prepare``.
        log_p_eta: (B, K) nats, normalised over K.
    Returns: for each question the best ``num_best`` of Y, best first by log p(y|x).
    """
    of_passages = yield from _beams_of_passages(generator, prepared, log_p_eta, options)
    unions = [_union(beams) for beams in of_passages]
    of_questions = [
        Candidates(list(union), log_prior, known=known, num_best=options.num_best)
        for (union, known), log_prior in zip(unions, log_p_eta, strict=True)
    ]
    yield from _scoring(generator, prepared, of_questions)
    found = []
    for b, ((union, _), candidates) in enumerate(zip(unions, of_questions, strict=True)):
        hypotheses = []
        for number, (ids, finished) in enumerate(union.items()):
            log_p_theta = candidates.log_p_theta(number)
            if log_p_theta is not None:
                log_p_theta = log_p_theta.to(log_p_eta.device)
                hypotheses.append(Decoded(ids, _log_marginal(log_p_eta[b], log_p_theta), log_p_theta, finished))
        found.append(_best(hypotheses, options))
    return found


def _union(
    beams: Sequence[Sequence[Decoded]],
) -> tuple[dict[tuple[int, ...], bool], dict[tuple[int, int], Tensor]]:
    """What the beams of the K passages found, and whether it is finished; and log p_θ (T,) of the n-th of them under
    passage k, at (n, k), where the passage's beam found it."""
    union: dict[tuple[int, ...], bool] = {}
    number_of: dict[tuple[int, ...], int] = {}
    known = {}
    for k, beam in enumerate(beams):
        for hypothesis in beam:
            union.setdefault(hypothesis.ids, hypothesis.finished)
            number = number_of.setdefault(hypothesis.ids, len(number_of))
            known[number, k] = hypothesis.log_p_theta[0]
    return union, known


def _log_marginal(log_p_eta: Tensor, log_p_theta: Tensor) -> float:
    """log p(y|x) of RAG-Sequence. log_p_eta: (K,), log_p_theta: (K, T)."""
    mask = torch.ones(1, log_p_theta.shape[1], dtype=torch.bool, device=log_p_theta.device)
    return sequence_log_likelihood(log_p_eta[None], log_p_theta[None], mask).item()


def quickly(generator: Generator, prepared: Prepared, log_p_eta: Tensor, *, options: DecodingOptions) -> Found:
    """Fast Decoding of RAG-Sequence (Lewis et al. 2020, §2.5).

    As Thorough Decoding, but p_θ(y|x,z) counts as 0 where y is missing from z's beam, so nothing is scored twice.
    ``log_prob`` is therefore a lower bound of log p(y|x).

    Args:
        prepared: B questions × K passages, from ``generator.prepare``.
        log_p_eta: (B, K) nats, normalised over K.
    Returns: for each question the best ``num_best`` hypotheses, best first.
    """
    of_passages = yield from _beams_of_passages(generator, prepared, log_p_eta, options)
    found = []
    for b, beams in enumerate(of_passages):
        union: dict[tuple[int, ...], Decoded] = {}
        for k, beam in enumerate(beams):
            for hypothesis in beam:
                absent = hypothesis.log_p_theta.new_full((len(beams), len(hypothesis.ids)), float("-inf"))
                seen = union.setdefault(hypothesis.ids, Decoded(hypothesis.ids, 0.0, absent, hypothesis.finished))
                seen.log_p_theta[k] = hypothesis.log_p_theta[0]
        hypotheses = []
        for seen in union.values():
            log_prob = _log_marginal(log_p_eta[b], seen.log_p_theta)
            hypotheses.append(Decoded(seen.ids, log_prob, seen.log_p_theta, seen.finished))
        found.append(_best(hypotheses, options))
    return found


def _beams_of_passages(
    generator: Generator, prepared: Prepared, log_p_eta: Tensor, options: DecodingOptions
) -> Coroutine[Work, Any, list[list[list[Decoded]]]]:
    """B × K lists of M hypotheses: a beam search over p_θ(y|x,z) for every passage alone."""
    num_questions, num_passages = log_p_eta.shape
    alone = log_p_eta.new_zeros(num_questions * num_passages, 1)  # one passage each: log p = 0
    every = replace(options, num_best=options.num_beams)
    search = BeamSearch(generator, prepared.each_passage(), alone, variant="sequence", options=every)
    beams = yield from hypotheses_of(search)
    return [beams[b * num_passages : (b + 1) * num_passages] for b in range(num_questions)]


def _scoring(
    generator: Generator, prepared: Prepared, of_questions: Sequence[Candidates]
) -> Coroutine[Work, Any, None]:
    """Questions together as long as a step has few enough rows."""
    together: list[int] = []
    widest = 0
    for b, candidates in enumerate(of_questions):
        wider = max(widest, len(candidates.sequences))
        if together and (len(together) + 1) * wider * candidates.num_passages > _ROWS_AT_ONCE:
            yield from _scored_together(generator, prepared, of_questions, together)
            together, wider = [], len(candidates.sequences)
        if candidates.sequences:
            together.append(b)
            widest = wider
    if together:
        yield from _scored_together(generator, prepared, of_questions, together)


def _scored_together(
    generator: Generator, prepared: Prepared, of_questions: Sequence[Candidates], together: Sequence[int]
) -> Coroutine[Work, Any, None]:
    index = torch.tensor(together, device=generator.device)
    yield from scoring(generator, prepared.rows(index), [of_questions[b] for b in together])


def as_targets(sequences: Sequence[Sequence[int]], *, device: torch.device) -> Targets:
    """Token sequences as they are, right-padded."""
    width = max(len(ids) for ids in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[row, : len(sequence)] = True
    return Targets(ids.to(device), mask.to(device))


def _best(hypotheses: list[Decoded], options: DecodingOptions) -> list[Decoded]:
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.log_prob)[: options.num_best]
