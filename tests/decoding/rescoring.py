"""Token sequences scored as Thorough Decoding scores its candidates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentrag.decoding import rescore
from latentrag.decoding.loop import result_of
from latentrag.decoding.trie import Candidates
from latentrag.protocols import Generator, Prepared


@torch.no_grad()
def rescored(
    generator: Generator,
    prepared: Prepared,
    log_p_eta: Tensor,
    question: Sequence[int],
    sequences: Sequence[Sequence[int]],
) -> list[tuple[float, Tensor]]:
    """log p(y|x) under RAG-Sequence and log p_θ (K, T) of token sequences, each for its question of the batch."""
    places_of: list[list[int]] = [[] for _ in range(len(log_p_eta))]
    for place, b in enumerate(question):
        places_of[b].append(place)
    of_questions = [
        Candidates([sequences[place] for place in places], log_prior)
        for places, log_prior in zip(places_of, log_p_eta, strict=True)
    ]
    result_of(rescore._scoring(generator, prepared, of_questions))
    results: list[tuple[float, Tensor]] = [(0.0, torch.empty(0))] * len(sequences)
    for b, (places, candidates) in enumerate(zip(places_of, of_questions, strict=True)):
        for number, place in enumerate(places):
            log_p_theta = candidates.log_p_theta(number)
            assert log_p_theta is not None
            log_p_theta = log_p_theta.to(log_p_eta.device)
            results[place] = (rescore._log_marginal(log_p_eta[b], log_p_theta), log_p_theta)
    return results
