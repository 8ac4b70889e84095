"""Decoding as a loop over a table of tasks, between whose steps questions enter and leave.

A task is a coroutine: it asks for one ``Work`` at a time and gets its result, and says in between what is certain. The
loop goes round: in each round every task gets one work done, and works with the same key are done together, as one pass
of the model over the states of several questions.

For questions that come one by one, what comes before a first token, reading, can be done in order of arrival instead:
whoever came first begins first, and the others hardly lose by it. In a round there are then as many works of reading as
there are tasks that read for each that does not, one at least, so that passes are shared by many.

It is fair to small questions: a task waits for no more than ``_ENDURED`` works of those that are ``_HEAVIER`` times
its size, and these go on when it is done. ``holds_back`` tells when no more small ones should be admitted, so that the
large ones go on where small ones never end.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from latentrag.errors import LatentRagError

if TYPE_CHECKING:
    from torch import Tensor

_HEAVIER = 4
"""How many times the rows of a small task a large one has."""
_ENDURED = 1
"""Works of large tasks that a small one waits for once it is admitted. One more may be under way when it comes."""
_PATIENCE = 32
"""Rounds that a large task is left out of before small ones are held back."""
_PASS_ROWS = 320
"""Rows (question × passage × beam) of tasks whose works are done together: bounds the memory of a pass."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """A question has no answer, because the library refuses it."""

    question: int
    error: LatentRagError


class Event(Protocol):
    """What a task says of one of its questions: a dataclass."""

    @property
    def question(self) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Something to compute for a task.

    Attributes:
        item: makes what it is about when it is done, from what is still wanted then.
        compute: the results of such items, in order.
        key: works with equal keys are done together; None: this one is done alone.
        reads: it comes before a first token.
    """

    item: Callable[[], Any]
    compute: Callable[[Sequence[Any]], Sequence[Any]]
    key: Hashable | None = None
    reads: bool = False


def alone(compute: Callable[[], Any], *, reads: bool = False) -> Work:
    """A work that is done by itself; its result is what ``compute`` returns."""
    return Work(lambda: None, lambda _: [compute()], reads=reads)


Turns = Generator[Work | Event, Any, None]
"""What a task asks for and says, until none of its questions is live. A work is answered with its result."""


class Task(Protocol):
    """B questions, numbered from 0, that take many steps."""

    @property
    def live(self) -> Sequence[int]:
        """The questions that are not done."""
        ...

    @property
    def num_rows(self) -> int:
        """Question × passage × beam: how much a step of it computes at most."""
        ...

    def turns(self) -> Turns:
        """What it asks for and says. Called once."""
        ...

    def drop(self, question: int) -> None:
        """Do not go on with this live question; nothing more is said of it."""
        ...


class Search(Task, Protocol):
    """Decodes questions: says ``Decided`` and ``Ended``."""


R = TypeVar("R")


def result_of(turns: Generator[Work, Any, R]) -> R:
    """What a coroutine returns in the end, its works done one by one."""
    result = None
    while True:
        try:
            work = turns.send(result)
        except StopIteration as end:
            found: R = end.value
            return found
        (result,) = work.compute([work.item()])


def hypotheses_of(search: Search) -> Generator[Work, Any, list[list[Decoded]]]:
    """A search as part of another task, to which nothing is said before its end. Returns: for each question its
    hypotheses, best first."""
    turns, result, ended = search.turns(), None, dict[int, list[Decoded]]()
    while True:
        try:
            turn = turns.send(result)
        except StopIteration:
            return [ended[question] for question in sorted(ended)]
        result = None
        if isinstance(turn, Work):
            result = yield turn
        elif isinstance(turn, Ended):
            ended[turn.question] = turn.hypotheses


def run(*searches: Search) -> list[list[Decoded]]:
    """All steps of searches. Returns: for each question its hypotheses, best first. Raises: as the searches."""
    loop = Loop()
    for search in searches:
        loop.admit(search)
    ended = {event.question: event.hypotheses for event in loop.events() if isinstance(event, Ended)}
    return [ended[question] for question in sorted(ended)]


@dataclass(slots=True, eq=False)
class _Entry:
    """A task in the table. first: the handle of its question 0. num_rows: its size when it came. turn: the work that
    it waits for; None: not begun."""

    task: Task
    first: int
    num_rows: int
    turns: Turns
    turn: Work | None = None
    num_endured: int = 0
    num_left_out: int = 0

    def is_heavier(self, num_rows: int) -> bool:
        return self.num_rows >= _HEAVIER * num_rows


class Loop:
    """The table of tasks under way, and what comes next.

    Args:
        in_order: reading is done in order of arrival, for answers that come early; else in turns, for passes that are
            shared by most.
    """

    def __init__(self, *, in_order: bool = False) -> None:
        self._in_order = in_order
        self._entries: list[_Entry] = []
        self._due: deque[_Entry | None] = deque()
        """What is left of the round; None: the first of those that read."""
        self._num_admitted = 0

    @property
    def live(self) -> list[int]:
        """Handles of the questions that are not done."""
        return [entry.first + question for entry in self._entries for question in entry.task.live]

    def admit(self, task: Task) -> list[int]:
        """Take these questions in, from the next step on. Returns: a handle for each."""
        first, self._num_admitted = self._num_admitted, self._num_admitted + len(task.live)
        entry = _Entry(task, first, max(1, task.num_rows), task.turns())
        self._entries.append(entry)
        if not self._in_order:  # else the next round begins with it, if nobody came before
            self._due.append(entry)
        return list(range(first, self._num_admitted))

    def drop(self, handle: int) -> None:
        """Do not go on with this question. One that is done already stays so."""
        for entry in self._entries:
            if handle - entry.first in entry.task.live:
                entry.task.drop(handle - entry.first)
        self._forget_ended()

    def holds_back(self, num_rows: int) -> bool:
        """Whether tasks of so many rows should not be admitted now, as a larger one has waited for them too long."""
        return any(entry.num_left_out > _PATIENCE and entry.is_heavier(num_rows) for entry in self._entries)

    def events(self) -> Iterator[Event]:
        """All that is said until no question is live. Raises: what a question failed with."""
        while self.live:
            for event in self.step():
                if isinstance(event, Failed):
                    raise event.error
                yield event

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Do one work, and those that can be done with it. Tasks that were admitted since begin, before anything is
        computed. Returns: what is said since; ``question`` is the handle."""
        if fresh := [entry for entry in self._entries if entry.turn is None]:
            events = [event for entry in fresh for event in self._resumed(entry, None)]
        else:
            events = self._done(self._chosen()) if self._entries else []
        self._forget_ended()
        return events

    def _chosen(self) -> list[_Entry]:
        """The tasks whose works are done next."""
        while True:
            if not self._due:
                self._due.extend(self._round())
            due = self._due.popleft()
            candidates = self._queue() if due is None else [due]
            first = next(filter(self._takes_part, candidates), None)
            if first is not None:
                break
        chosen, num_rows = [first], first.num_rows
        for entry in [entry for entry in self._due if entry is not None and _are_together(first, entry)]:
            if num_rows + entry.num_rows <= _PASS_ROWS and self._takes_part(entry):
                num_rows += entry.num_rows
                self._due.remove(entry)
                chosen.append(entry)
        return chosen

    def _round(self) -> list[_Entry | None]:
        queue = self._queue()
        in_turns = [entry for entry in self._entries if entry not in queue]
        return [*in_turns, *[None] * math.ceil(len(queue) / max(1, len(in_turns)))]

    def _queue(self) -> list[_Entry]:
        """Those that read in order, the first one first."""
        return [entry for entry in self._entries if self._in_order and entry.turn is not None and entry.turn.reads]

    def _takes_part(self, entry: _Entry) -> bool:
        """Whether all that are much smaller can bear one more work of this task; if so, it counts."""
        smaller = [other for other in self._entries if entry.is_heavier(other.num_rows)]
        if any(other.num_endured >= _ENDURED for other in smaller):
            entry.num_left_out += 1
            return False
        entry.num_left_out = 0
        for other in smaller:
            other.num_endured += 1
        return True

    def _done(self, chosen: Sequence[_Entry]) -> list[Event]:
        works = [entry.turn for entry in chosen if entry.turn is not None]
        events: list[Event] = []
        results = _results(works[0].compute, [work.item() for work in works])
        for entry, result in zip(chosen, results, strict=True):
            is_refused = isinstance(result, LatentRagError)
            events += self._failed(entry, result) if is_refused else self._resumed(entry, result)
        return events

    def _resumed(self, entry: _Entry, result: Any) -> list[Event]:
        """What a task says until it asks for another work."""
        events: list[Event] = []
        try:
            turn = entry.turns.send(result)
            while not isinstance(turn, Work):
                events.append(_numbered(turn, entry))
                turn = next(entry.turns)
            entry.turn = turn
        except StopIteration:
            self._entries.remove(entry)
        except LatentRagError as error:
            events += self._failed(entry, error)
        return events

    def _failed(self, entry: _Entry, error: LatentRagError) -> list[Event]:
        self._entries.remove(entry)
        return [Failed(entry.first + question, error) for question in entry.task.live]

    def _forget_ended(self) -> None:
        self._entries = [entry for entry in self._entries if entry.task.live]
        self._due = deque(entry for entry in self._due if entry is None or entry in self._entries)


def _results(compute: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any]) -> list[Any]:
    """Of each item its result, or the error with which the library refuses it: this spoils no other's."""
    try:
        return list(compute(items))
    except LatentRagError as error:
        return [error] if len(items) == 1 else [each for item in items for each in _results(compute, [item])]


def _are_together(one: _Entry, other: _Entry) -> bool:
    keys = [None if entry.turn is None else entry.turn.key for entry in (one, other)]
    return keys[0] is not None and keys[0] == keys[1]


def _numbered(event: Any, entry: _Entry) -> Event:
    numbered: Event = replace(event, question=entry.first + event.question)
    return numbered
