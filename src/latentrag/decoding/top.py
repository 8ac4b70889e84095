"""The most probable tokens in each place of a hypothesis: what else might have been said there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentrag.decoding.step import Beams, marginal_step
from latentrag.model import Read
from latentrag.protocols import Generator
from latentrag.types import Variant

Top = tuple[tuple[str, float], ...]
"""Tokens' texts with log p(y_i|x,y_<i), nats, best first."""


class TopTokens:
    """Decodes a hypothesis once more, on its own, and looks at the whole vocabulary. Every decoder's can be given, and
    the same hypothesis again when it has grown.

    Args:
        read: the question, and no other.
        num: tokens for each place.
    """

    def __init__(self, read: Read[Generator], *, variant: Variant, num: int) -> None:
        self._read, self._variant, self._num = read, variant, num
        self._begin()

    def of(self, ids: Sequence[int]) -> list[Top]:
        """For each token of the hypothesis."""
        if tuple(ids[: len(self._ids)]) != self._ids:
            self._begin()
        for token in ids[len(self._ids) :]:
            self._take(token)
        return self._found[: len(ids)]

    def _begin(self) -> None:
        self._ids: tuple[int, ...] = ()
        self._found: list[Top] = []
        self._beams = Beams.initial(self._read.log_p_eta)
        self._state: object = None

    def _take(self, token: int) -> None:
        """One more token of the hypothesis."""
        generator, beams = self._read.generator, self._beams
        if not self._ids:
            log_p, self._state = generator.start(self._read.prepared)
        else:
            parent = torch.zeros(1, 1, dtype=torch.long, device=beams.tokens.device)
            log_p, self._state = generator.step(self._state, parent, beams.tokens[:, :, -1])
        step = marginal_step(beams, log_p, self._variant)[0, 0]  # (V,)
        values, best = step.topk(min(self._num, len(step)))
        texts = [generator.token_texts([*self._ids, other])[-1] for other in best.tolist()]
        self._found.append(tuple(zip(texts, values.tolist(), strict=True)))
        chosen = torch.full((1, 1), token, device=beams.tokens.device)
        self._beams = beams.extended(torch.zeros_like(chosen), chosen, beams.scores + step[token], log_p)
        self._ids = (*self._ids, token)
