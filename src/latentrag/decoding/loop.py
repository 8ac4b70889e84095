"""Decoding as a loop: searches take one step at a time, and questions enter and leave between the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A hypothesis with the evidence it was ranked by.

    Attributes:
        ids: its tokens, the end token included where it is finished.
        log_prob: log p(y|x) under the variant that was decoded, nats.
        log_p_theta: (K, T) log p_θ(y_i|x,z,y_<i), T = len(ids). After Fast Decoding −inf for every passage whose
            beam did not hold y.
        finished: False where the length limit or a stop string cut it off.
    """

    ids: tuple[int, ...]
    log_prob: float
    log_p_theta: Tensor
    finished: bool


def rank(log_prob: float, num_tokens: int, length_penalty: float) -> float:
    """What finished hypotheses are ranked by: log p / |y|^α."""
    return float(log_prob / num_tokens**length_penalty)


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """The answer to a question begins with these tokens, whatever follows; at least one. They may hold the end token
    already, while the search goes on for other hypotheses. log_p_theta: (K, len(ids)) nats."""

    question: int
    ids: tuple[int, ...]
    log_p_theta: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """A question is done. Its hypotheses, best first; none where the options rule every answer out."""

    question: int
    hypotheses: list[Decoded]


Event = Decided | Ended


class Search(Protocol):
    """Decodes B questions, numbered from 0, a step at a time."""

    @property
    def live(self) -> Sequence[int]:
        """The questions that are not done."""
        ...

    def step(self) -> list[Event]:
        """Go on with every live question, of which there must be one."""
        ...

    def drop(self, question: int) -> None:
        """Do not go on with this live question; nothing more is said of it."""
        ...


def run(search: Search) -> list[list[Decoded]]:
    """All steps of a search. Returns: for each question its hypotheses, best first."""
    ended: dict[int, list[Decoded]] = {}
    while search.live:
        ended.update((event.question, event.hypotheses) for event in search.step() if isinstance(event, Ended))
    return [ended[question] for question in sorted(ended)]


class Loop:
    """Searches side by side. What is admitted together is decoded in one batch."""

    def __init__(self) -> None:
        self._searches: list[tuple[int, Search]] = []
        self._num_admitted = 0

    @property
    def live(self) -> list[int]:
        """Handles of the questions that are not done."""
        return [first + question for first, search in self._searches for question in search.live]

    def admit(self, search: Search) -> list[int]:
        """Decode these questions too, from the next step on. Returns: a handle for each."""
        first, self._num_admitted = self._num_admitted, self._num_admitted + len(search.live)
        self._searches.append((first, search))
        return list(range(first, self._num_admitted))

    def step(self) -> list[Event]:
        """One step of every search. Returns: what is certain since, and who is done; ``question`` is the handle."""
        events = [
            replace(event, question=first + event.question)
            for first, search in self._searches
            for event in search.step()
        ]
        self._forget_ended()
        return events

    def drop(self, handle: int) -> None:
        """Do not go on with this question. One that is done already stays so."""
        for first, search in self._searches:
            if handle - first in search.live:
                search.drop(handle - first)
        self._forget_ended()

    def _forget_ended(self) -> None:
        self._searches = [(first, search) for first, search in self._searches if search.live]
