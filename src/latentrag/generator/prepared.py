"""Prompts that are ready to be read: what ``prepare`` of causal generators gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from latentrag.generator.caches import rows_of_questions

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R")
"""What a generator makes of its prompts."""


@dataclass(slots=True)
class Prompts(Generic[R]):
    """R prompts in two parts: what stands for the passage, and the question. ``read`` is computed on first use, or
    before it in ``slices``. ``recurring``: a first part may come again with another question, so that it is worth
    keeping."""

    passages: list[list[int]]
    questions: list[list[int]]
    recurring: bool = True
    read: R | None = None
    slices: Iterator[None] | None = None

    def read_on(self, begin: Callable[[], Iterator[None]]) -> None:
        """Read one more slice.

        Args:
            begin: reads a slice with each step of what it returns, and sets ``read`` with the last one. After an error
                it is called anew.
        """
        slices, self.slices = self.slices or begin(), None
        next(slices, None)
        if self.read is None:
            self.slices = slices


@dataclass(frozen=True, slots=True)
class PreparedPrompts(Generic[R]):
    """Prompts of B questions × K passages. ``index`` (B·K,) says which prompt each row is."""

    prompts: Prompts[R]
    index: Tensor
    num_questions: int
    num_passages: int

    @property
    def num_tokens(self) -> list[int]:
        """Of each row."""
        return [len(self.prompts.passages[row]) + len(self.prompts.questions[row]) for row in self.index.tolist()]

    def rows(self, index: Tensor) -> Self:
        rows = rows_of_questions(index, self.num_passages)
        return type(self)(self.prompts, self.index[rows], len(index), self.num_passages)

    def each_passage(self) -> Self:
        return type(self)(self.prompts, self.index, self.num_questions * self.num_passages, 1)

    def whole_rows(self) -> list[list[int]]:
        """The tokens of every row."""
        return [[*self.prompts.passages[row], *self.prompts.questions[row]] for row in self.index.tolist()]
