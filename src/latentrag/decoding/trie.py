"""Token sequences scored as a tree: what several begin with is computed once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latentrag.protocols import Generator


class Trie:
    """The prefixes of some token sequences.

    Attributes:
        levels: level t holds the prefixes of length t that go on, each as (place of its parent in level t − 1, last
            token); level 0 is the empty prefix.
        places: for each sequence and position t, the place in level t of the prefix before it.
        sequences: as given.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.sequences = sequences
        self.levels: list[list[tuple[int, int]]] = [[(0, -1)]]
        self.places: list[list[int]] = [[0] if ids else [] for ids in sequences]
        for t in range(1, max(map(len, sequences), default=0)):
            known: dict[tuple[int, int], int] = {}
            for ids, places in zip(sequences, self.places, strict=True):
                if len(ids) > t:
                    places.append(known.setdefault((places[t - 1], ids[t - 1]), len(known)))
            self.levels.append(list(known))

    @property
    def width(self) -> int:
        """Prefixes of the widest level."""
        return max(map(len, self.levels), default=0)


@torch.no_grad()
def scored_tries(generator: Generator, prepared: Any, tries: Sequence[Trie]) -> list[list[Tensor]]:
    """log p_θ (K, T) of every sequence of every trie, a trie for each of the B questions.

    A level is one step of the generator, whose beams are the level's prefixes.
    """
    log_p, state = generator.start(prepared)  # (B', K, M, V)
    found: list[list[list[Tensor]]] = [[[] for _ in trie.sequences] for trie in tries]
    going = list(range(len(tries)))
    for t in range(max(len(trie.levels) for trie in tries)):
        if t > 0:
            before, going = going, [b for b in going if len(tries[b].levels) > t]
            parents, tokens = _level(tries, going, before, t, num_beams=log_p.shape[2])
            log_p, state = generator.step(state, parents.to(log_p.device), tokens.to(log_p.device))
        for row, b in enumerate(going):
            _collect(tries[b], found[b], log_p[row], t)
    num_passages = log_p.shape[1]
    return [
        [torch.stack(steps, dim=1) if steps else log_p.new_empty(num_passages, 0) for steps in of_one]
        for of_one in found
    ]


def _collect(trie: Trie, found: list[list[Tensor]], log_p: Tensor, t: int) -> None:
    """The t-th tokens of the trie's sequences. log_p: (K, M, V)."""
    numbers = [number for number, places in enumerate(trie.places) if len(places) > t]
    places = [trie.places[number][t] for number in numbers]
    tokens = [trie.sequences[number][t] for number in numbers]
    scores = log_p[:, places, tokens]  # (K, n)
    for column, number in enumerate(numbers):
        found[number].append(scores[:, column])


def _level(
    tries: Sequence[Trie], going: Sequence[int], before: Sequence[int], t: int, *, num_beams: int
) -> tuple[Tensor, Tensor]:
    """Parents and tokens (B', M') of level t, for the tries that go on; ``before``: those of the level before, which
    had ``num_beams``."""
    row_of = {b: row for row, b in enumerate(before)}
    width = max(len(tries[b].levels[t]) for b in going)
    parents, tokens = [], []
    for b in going:
        nodes = tries[b].levels[t]
        nodes = nodes + nodes[:1] * (width - len(nodes))  # narrower levels repeat their first prefix
        parents.append([row_of[b] * num_beams + parent for parent, _ in nodes])
        tokens.append([token for _, token in nodes])
    return torch.tensor(parents), torch.tensor(tokens)
