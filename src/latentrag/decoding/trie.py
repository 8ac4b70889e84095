"""Token sequences scored as a tree: what several begin with is computed once, what cannot win is left out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from latentrag.protocols import Generator

_MARGIN = 1e-3
"""Nats by which a bound may be off: far more than rounding adds up to."""


@dataclass(slots=True)
class Trie:
    """A question's sequences, as far as they are scored.

    Args:
        sequences: token ids, none empty.
        log_prior: (K,) log p_η(z|x).
        known: for each sequence log p_θ(y|x,z) (K,), not a number where it is not known; None: of none.
        num_best: leave out sequences that are not among so many of the highest log p(y|x); None: score all.
    """

    sequences: Sequence[Sequence[int]]
    log_prior: Tensor
    known: Tensor | None = None
    num_best: int | None = None
    length: int = 0
    """Tokens scored so far."""
    live: list[int] = field(default_factory=list)
    """Sequences that have more of them and may be among the best."""
    places: list[int] = field(default_factory=list)
    """For each live one, its place among the distinct prefixes of this length."""
    scores: list[list[Tensor]] = field(default_factory=list)
    """For each sequence, log p_θ (K,) of its tokens so far."""

    def __post_init__(self) -> None:
        self.live = list(range(len(self.sequences)))
        self.places = [0] * len(self.sequences)
        self.scores = [[] for _ in self.sequences]

    def collect(self, log_p: Tensor) -> None:
        """The next token of every live sequence. log_p: (K, M, V), M the distinct prefixes."""
        tokens = [self.sequences[number][self.length] for number in self.live]
        found = log_p[:, self.places, tokens]  # (K, n)
        for column, number in enumerate(self.live):
            self.scores[number].append(found[:, column])
        self.length += 1

    def grow(self) -> list[tuple[int, int]]:
        """Go on to the prefixes that are one token longer. Returns: (place of the parent, last token) of each."""
        possible = self._possible()
        level: dict[tuple[int, int], int] = {}
        live, places = [], []
        for number, place in zip(self.live, self.places, strict=True):
            ids = self.sequences[number]
            if len(ids) > self.length and possible[number]:
                live.append(number)
                places.append(level.setdefault((place, ids[self.length - 1]), len(level)))
        self.live, self.places = live, places
        return list(level)

    def result(self, number: int) -> Tensor | None:
        """log p_θ (K, T) of a sequence; None if it was left out."""
        scores = self.scores[number]
        return torch.stack(scores, dim=1) if len(scores) == len(self.sequences[number]) else None

    def _possible(self) -> list[bool]:
        """Which sequences may be among the best.

        log p_θ of a prefix bounds that of the sequence from above, so Σ_z p_η p_θ(prefix) bounds p(y|x); what is
        known of the whole sequence bounds it from below.
        """
        if self.num_best is None or self.num_best >= len(self.sequences):
            return [True] * len(self.sequences)
        upper = torch.stack([torch.stack(scores).sum(dim=0) for scores in self.scores])  # (n, K)
        ended = torch.tensor([len(ids) <= len(s) for ids, s in zip(self.sequences, self.scores, strict=True)])
        lower = torch.where(ended[:, None].to(upper.device), upper, float("-inf"))
        if self.known is not None:
            is_known = ~self.known.isnan()
            lower = torch.where(is_known, self.known, lower)
            upper = torch.where(is_known, self.known, upper)
        least = (self.log_prior + lower).logsumexp(dim=1)
        needed = least.topk(self.num_best).values[-1]
        possible: list[bool] = ((self.log_prior + upper).logsumexp(dim=1) > needed - _MARGIN).tolist()
        return possible


@torch.no_grad()
def score_tries(generator: Generator, prepared: Any, tries: Sequence[Trie]) -> None:
    """Score all sequences of all tries, a trie for each of the B questions, or as many as may be among the best.

    A step of the generator is a token; its beams are the prefixes.
    """
    log_p, state = generator.start(prepared)  # (B', K, M, V)
    going = list(range(len(tries)))
    while True:
        levels = {}
        for row, b in enumerate(going):
            tries[b].collect(log_p[row])
            levels[b] = tries[b].grow()
        row_of = {b: row for row, b in enumerate(going)}
        going = [b for b in going if levels[b]]
        if not going:
            return
        width, num_beams = max(len(levels[b]) for b in going), log_p.shape[2]
        parents, tokens = [], []
        for b in going:
            level = levels[b] + levels[b][:1] * (width - len(levels[b]))  # narrower ones repeat their first prefix
            parents.append([row_of[b] * num_beams + parent for parent, _ in level])
            tokens.append([token for _, token in level])
        index, fed = (torch.tensor(grid, device=log_p.device) for grid in (parents, tokens))
        log_p, state = generator.step(state, index, fed)
