"""Token sequences scored as trees: what several begin with is computed once, what is known is not computed again, and
what cannot win is left out."""

from collections.abc import Generator as Coroutine
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from latentrag.decoding.loop import Work
from latentrag.decoding.step import start, step
from latentrag.protocols import Generator, Prepared, Step

_MARGIN = 1e-3
"""Nats by which a bound may be off: far more than rounding adds up to."""


class Candidates:
    """A question's token sequences y, and what is known of log p_θ(y|x,z) for each of its passages.

    Args:
        sequences: token ids, none empty.
        log_prior: (K,) log p_η(z|x).
        known: log p_θ (T,) of the tokens of sequence n under passage k, at (n, k).
        num_best: leave out sequences that are not among so many of the highest log p(y|x); None: score all.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        log_prior: Tensor,
        *,
        known: dict[tuple[int, int], Tensor] | None = None,
        num_best: int | None = None,
    ) -> None:
        self.sequences = sequences
        self.num_passages = len(log_prior)
        self._log_prior = log_prior.cpu().double()
        self._num_best = num_best
        self._known = known or {}
        # Σ log p_θ of the tokens so far, and whether those are all: (n, K).
        self._sums = torch.zeros(len(sequences), self.num_passages, dtype=torch.float64)
        self._whole = torch.zeros(len(sequences), self.num_passages, dtype=torch.bool)
        for place, log_p in self._known.items():
            self._sums[place], self._whole[place] = log_p.sum().item(), True
        self.tries = [
            Trie(self, k, [n for n in range(len(sequences)) if (n, k) not in self._known])
            for k in range(self.num_passages)
        ]

    def add(self, numbers: Sequence[int], passage: int, log_p: Sequence[float], length: int) -> None:
        """One more token of these sequences, which have ``length`` of them now."""
        for n, value in zip(numbers, log_p, strict=True):
            self._sums[n, passage] += value
            self._whole[n, passage] = length == len(self.sequences[n])

    def possible(self) -> list[bool]:
        """Which sequences may be among the best.

        log p_θ of a prefix bounds that of the whole from above, so Σ_z p_η p_θ bounds p(y|x) from above with it, and
        from below with those alone that are whole.
        """
        if self._num_best is None or self._num_best >= len(self.sequences):
            return [True] * len(self.sequences)
        most = (self._log_prior + self._sums).logsumexp(dim=1)
        least = (self._log_prior + self._sums.masked_fill(~self._whole, float("-inf"))).logsumexp(dim=1)
        needed = least.topk(self._num_best).values[-1]
        found: list[bool] = (most > needed - _MARGIN).tolist()
        return found

    def log_p_theta(self, number: int) -> Tensor | None:
        """(K, T) of a sequence; None if it was left out."""
        if not bool(self._whole[number].all()):
            return None
        rows = []
        for k, trie in enumerate(self.tries):
            known = self._known.get((number, k))
            rows.append(torch.tensor(trie.scores[number]) if known is None else known.cpu())
        return torch.stack(rows).float()


@dataclass(slots=True)
class _Level:
    """Distinct prefixes of one length. places: for each live sequence, that of its prefix."""

    live: list[int]
    places: list[int]
    length: int = 0


class Trie:
    """The sequences that are to be scored under one passage. scores: of each, log p_θ of its tokens so far."""

    def __init__(self, candidates: Candidates, passage: int, numbers: Sequence[int]) -> None:
        self._candidates = candidates
        self._passage = passage
        self._level = _Level(list(numbers), [0] * len(numbers))
        self.scores: dict[int, list[float]] = {n: [] for n in numbers}

    @property
    def live(self) -> Sequence[int]:
        """Sequences with more tokens to score."""
        return self._level.live

    def collect(self, log_p: Tensor) -> None:
        """The next token of every live sequence. log_p: (M, V), M the distinct prefixes."""
        level, sequences = self._level, self._candidates.sequences
        tokens = [sequences[n][level.length] for n in level.live]
        found = log_p[level.places, tokens].tolist()
        for n, value in zip(level.live, found, strict=True):
            self.scores[n].append(value)
        level.length += 1
        self._candidates.add(level.live, self._passage, found, level.length)

    def grow(self, possible: Sequence[bool]) -> list[tuple[int, int]]:
        """Go on to the prefixes that are one token longer. Returns: (place of the parent, last token) of each."""
        level, sequences = self._level, self._candidates.sequences
        longer: dict[tuple[int, int], int] = {}
        live, places = [], []
        for n, place in zip(level.live, level.places, strict=True):
            if possible[n] and len(sequences[n]) > level.length:
                live.append(n)
                places.append(longer.setdefault((place, sequences[n][level.length - 1]), len(longer)))
        self._level = _Level(live, places, level.length)
        return list(longer)


def scoring(generator: Generator, prepared: Prepared, of_questions: Sequence[Candidates]) -> Coroutine[Work, Any, None]:
    """Score the candidates of all B questions, or as many as may be among the best.

    Every passage has a tree of its own. A step of the generator is a token; its beams are the prefixes.

    Args:
        prepared: B questions × K passages, from ``generator.prepare``.
    """
    each = [(candidates, trie) for candidates in of_questions for trie in candidates.tries]
    going = [row for row, (_, trie) in enumerate(each) if trie.live]
    if not going:
        return
    rows = prepared.each_passage().rows(torch.tensor(going, device=generator.device))
    log_p, state = yield start(generator, rows)  # (R, 1, M, V)
    while True:
        for place, row in enumerate(going):
            each[row][1].collect(log_p[place, 0])
        possible = {id(candidates): candidates.possible() for candidates in of_questions}
        levels = {row: each[row][1].grow(possible[id(each[row][0])]) for row in going}
        place_of = {row: place for place, row in enumerate(going)}
        going = [row for row in going if levels[row]]
        if not going:
            return
        width, num_beams = max(len(levels[row]) for row in going), log_p.shape[2]
        parents, tokens = [], []
        for row in going:
            level = levels[row] + levels[row][:1] * (width - len(levels[row]))  # narrower ones repeat their first
            parents.append([place_of[row] * num_beams + parent for parent, _ in level])
            tokens.append([token for _, token in level])
        index, fed = (torch.tensor(grid, device=log_p.device) for grid in (parents, tokens))
        log_p, state = yield step(generator, partial(Step, state, index, fed))
