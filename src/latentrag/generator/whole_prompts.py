"""Causal models whose state is no row of keys and values (Mamba and its kin), or that place tokens in ways of their
own: every pass reads the whole prompt, right-padded, without a cache. In a causal model nothing before a token depends
on what follows it, so padding at the end changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentrag.generator.caches import rows_of_parents

if TYPE_CHECKING:
    from latentrag.generator.gold import OutputHead


@dataclass(slots=True)
class WholeState:
    """The tokens of B·K·M rows."""

    rows: list[list[int]]
    num_questions: int
    num_passages: int
    num_beams: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """B, K, M."""
        return self.num_questions, self.num_passages, self.num_beams

    def follow(self, parents: Tensor, tokens: Tensor) -> None:
        """One more token for every beam, as ``Generator.step`` has them."""
        rows = rows_of_parents(parents, self.num_passages, self.num_beams).tolist()
        fed = tokens[:, None, :].expand(-1, self.num_passages, -1).reshape(-1).tolist()
        self.rows = [[*self.rows[row], token] for row, token in zip(rows, fed, strict=True)]
        self.num_questions, self.num_beams = parents.shape


def read_whole(head: OutputHead, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(R, S, H): the inputs of the output layer at every token of every row."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows], device=device)
    hidden, _ = head.run(input_ids=ids, use_cache=False)
    return hidden


def last_of(hidden: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """(R, H) at the last token of every row."""
    last = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
    return hidden[torch.arange(len(rows), device=hidden.device), last]
