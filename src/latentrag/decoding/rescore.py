"""The paper's two decoders for RAG-Sequence: a beam for each passage, then the marginal of what they found (§2.5)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latentrag.decoding.beam import marginal_beam
from latentrag.decoding.options import Decoded, DecodingOptions
from latentrag.decoding.trie import Trie, scored_tries
from latentrag.marginal import sequence_log_likelihood
from latentrag.protocols import Generator
from latentrag.types import Targets

_ROWS_AT_ONCE = 512
"""Rows (prefix × passage) of one scoring step."""


def thorough(
    generator: Generator, prepared: Any, log_p_eta: Tensor, *, options: DecodingOptions
) -> list[list[Decoded]]:
    """Thorough Decoding of RAG-Sequence (Lewis et al. 2020, §2.5).

    A beam search for each passage; the union Y of their hypotheses; then p(y|x) = Σ_z p_η(z|x) p_θ(y|x,z) for every
    y in Y and every z, also those in whose beam y is missing.

    Args:
        prepared: B questions × K passages, from ``generator.prepare``.
        log_p_eta: (B, K) nats, normalised over K.
    Returns: for each question the best ``num_beams`` of Y, best first by log p(y|x).
    """
    of_passages = _beams_of_passages(generator, prepared, log_p_eta, options)
    question, candidates = [], []
    for b, beams in enumerate(of_passages):
        union = {hypothesis.ids: hypothesis.finished for beam in beams for hypothesis in beam}
        question += [b] * len(union)
        candidates += list(union.items())
    found: list[list[Decoded]] = [[] for _ in of_passages]
    scored = rescored(generator, prepared, log_p_eta, question, [ids for ids, _ in candidates])
    for b, (ids, finished), (log_prob, log_p_theta) in zip(question, candidates, scored, strict=True):
        found[b].append(Decoded(ids, log_prob, log_p_theta, finished))
    return [_best(hypotheses, options) for hypotheses in found]


def fast(generator: Generator, prepared: Any, log_p_eta: Tensor, *, options: DecodingOptions) -> list[list[Decoded]]:
    """Fast Decoding of RAG-Sequence (Lewis et al. 2020, §2.5).

    As Thorough Decoding, but p_θ(y|x,z) counts as 0 where y is missing from z's beam, so nothing is scored twice.
    ``log_prob`` is therefore a lower bound of log p(y|x).

    Args:
        prepared: B questions × K passages, from ``generator.prepare``.
        log_p_eta: (B, K) nats, normalised over K.
    Returns: for each question the best ``num_beams`` hypotheses, best first.
    """
    found = []
    for b, beams in enumerate(_beams_of_passages(generator, prepared, log_p_eta, options)):
        union: dict[tuple[int, ...], Decoded] = {}
        for k, beam in enumerate(beams):
            for hypothesis in beam:
                absent = hypothesis.log_p_theta.new_full((len(beams), len(hypothesis.ids)), float("-inf"))
                seen = union.setdefault(hypothesis.ids, Decoded(hypothesis.ids, 0.0, absent, hypothesis.finished))
                seen.log_p_theta[k] = hypothesis.log_p_theta[0]
        hypotheses = []
        for seen in union.values():
            mask = torch.ones(1, len(seen.ids), dtype=torch.bool, device=log_p_eta.device)
            log_prob = sequence_log_likelihood(log_p_eta[b : b + 1], seen.log_p_theta[None], mask).item()
            hypotheses.append(Decoded(seen.ids, log_prob, seen.log_p_theta, seen.finished))
        found.append(_best(hypotheses, options))
    return found


def _beams_of_passages(
    generator: Generator, prepared: Any, log_p_eta: Tensor, options: DecodingOptions
) -> list[list[list[Decoded]]]:
    """B × K lists of hypotheses: a beam search over p_θ(y|x,z) for every passage alone."""
    num_questions, num_passages = log_p_eta.shape
    alone = log_p_eta.new_zeros(num_questions * num_passages, 1)  # one passage each: log p = 0
    beams = marginal_beam(generator, prepared.each_passage(), alone, variant="sequence", options=options)
    return [beams[b * num_passages : (b + 1) * num_passages] for b in range(num_questions)]


@torch.no_grad()
def rescored(
    generator: Generator,
    prepared: Any,
    log_p_eta: Tensor,
    question: Sequence[int],
    sequences: Sequence[Sequence[int]],
) -> list[tuple[float, Tensor]]:
    """log p(y|x) under RAG-Sequence and log p_θ (K, T) of token sequences, each for its question of the batch."""
    of_questions: dict[int, list[int]] = {}
    for place, b in enumerate(question):
        of_questions.setdefault(b, []).append(place)
    log_p_theta: list[Tensor] = [torch.empty(0)] * len(sequences)
    for group in _groups(of_questions, sequences, rows=max(1, _ROWS_AT_ONCE // log_p_eta.shape[1])):
        index = torch.tensor([b for b, _ in group], device=log_p_eta.device)
        tries = [Trie([sequences[place] for place in places]) for _, places in group]
        for (_, places), scores in zip(group, scored_tries(generator, prepared.rows(index), tries), strict=True):
            for place, of_one in zip(places, scores, strict=True):
                log_p_theta[place] = of_one
    results = []
    for b, found in zip(question, log_p_theta, strict=True):
        mask = torch.ones(1, found.shape[1], dtype=torch.bool, device=found.device)
        results.append((sequence_log_likelihood(log_p_eta[b : b + 1], found[None], mask).item(), found))
    return results


def _groups(
    of_questions: Mapping[int, list[int]], sequences: Sequence[Sequence[int]], *, rows: int
) -> Iterator[list[tuple[int, list[int]]]]:
    """Questions with the places of their sequences, so many at a time that no level of their tries has more nodes
    than ``rows``. Sequences with a common beginning stay together."""
    group: list[tuple[int, list[int]]] = []
    widest = 0
    for b, places in of_questions.items():
        ordered = sorted(places, key=lambda place: tuple(sequences[place]))
        for start in range(0, len(ordered), rows):
            part = ordered[start : start + rows]
            width = max(widest, Trie([sequences[place] for place in part]).width)
            if group and (len(group) + 1) * width > rows:
                yield group
                group, width = [], Trie([sequences[place] for place in part]).width
            group.append((b, part))
            widest = width
    if group:
        yield group


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
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.log_prob)[: options.num_beams]
