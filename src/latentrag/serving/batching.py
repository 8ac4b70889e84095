"""Requests wait in a bounded queue; one thread takes those that can be done together and does them, and goes on with
those that take many steps, which others join meanwhile."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from latentrag.errors import LatentRagError
from latentrag.serving.failures import Refused, busy
from latentrag.serving.options import ServeOptions

_LOG = logging.getLogger("latentrag.serving")
_LONGEST_RETRY_S = 60
_LARGE = 4
"""A request is large if so many of its size exceed what is computed at once. Large ones take no room of small ones."""


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way to the model.

    Attributes:
        key: jobs with equal keys can be done together.
        same: jobs with equal keys in which this is equal, too, want the same result and are done as one; None: nobody
            else wants that.
        rows: question × passage × beam.
        request: what is asked; the batcher does not look into it.
        tell: gets what is known before the end, from the model's thread; must not wait.
        result: what becomes of it.
        takes_steps: it goes on in the table, beside others; else it is done at once.
        is_wanted: whether somebody still waits for it.
    """

    key: Hashable
    rows: int
    request: Any
    tell: Callable[[Any], None] | None = None
    same: Hashable | None = None
    takes_steps: bool = False
    result: Future[Any] = field(default_factory=Future)
    is_wanted: bool = True

    def leave(self) -> bool:
        """Nobody waits for it any more. Returns: whether it had not been begun, and never will be."""
        self.is_wanted = False
        return self.result.cancel()


def together(batch: Sequence[Job]) -> list[list[Job]]:
    """The jobs of a batch by what they want, in the order in which it was first wanted."""
    found: dict[Hashable, list[Job]] = {}
    for job in batch:
        found.setdefault(id(job) if job.same is None else ("same", job.same), []).append(job)
    return list(found.values())


class Table(Protocol):
    """Jobs that take many steps. It sets their results when they are done."""

    @property
    def jobs(self) -> Sequence[Job]:
        """Those under way; of those that want the same, one."""
        ...

    def holds_back(self, rows: int) -> bool:
        """Whether jobs of this size should wait, because a larger one has waited too long."""
        ...

    def admit(self, batch: Sequence[Job]) -> None:
        """Jobs with equal keys, from the next step on. Raises: LatentRagError, if one of them cannot be."""
        ...

    def step(self) -> int:
        """Some of the work for all of them. Returns: how many jobs are done since."""
        ...

    def clear(self) -> list[Job]:
        """Forget all jobs. Returns: those without a result."""
        ...


class Batcher:
    """One model thread and the queue before it.

    Args:
        work: does jobs with equal keys and returns their results in order.
        table: goes on with those that take steps; None: there are none.
        on_batch: gets the number of jobs and the seconds of each batch, or of each step of the table.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Job]], Sequence[Any]],
        options: ServeOptions,
        *,
        table: Table | None = None,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._work, self._options, self._table, self._on_batch = work, options, table, on_batch
        self._queue: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._seconds_per_job = 0.0
        self._seconds_since = 0.0
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many jobs wait."""
        with self._changed:
            return len(self._queue)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are accepted and will be done."""
        return self._thread.is_alive() and not self._closing

    @property
    def retry_after_s(self) -> int:
        """How long those who wait already will take, as far as can be told."""
        return max(1, min(_LONGEST_RETRY_S, math.ceil(len(self) * self._seconds_per_job)))

    def submit(self, job: Job) -> Job:
        """Let a job wait for the model. Raises: Refused if too many wait already, or the server is stopping."""
        with self._changed:
            if self._closing:
                raise Refused(503, "the server is stopping; try again later", "stopping", retry_after_s=5)
            if not self.is_alive:
                message = "this server was forked after its model was loaded; load it after the fork, or spawn"
                raise Refused(503, message, "forked")
            self._queue = [each for each in self._queue if not each.result.cancelled()]
            if len(self._queue) < self._options.max_queue:
                self._queue.append(job)
                self._changed.notify()
                return job
        raise busy(
            f"{self._options.max_queue} requests wait already; try again later", retry_after_s=self.retry_after_s
        )

    def close(self, timeout_s: float | None = None) -> None:
        """Finish what was accepted, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _serve(self) -> None:
        while (batch := self._take()) is not None:
            begun = [job for job in batch if job.result.set_running_or_notify_cancel()]
            start_s = time.monotonic()
            if begun and begun[0].takes_steps:
                self._admit(begun)
            elif begun:
                self._do(begun)
                self._note(len(begun), time.monotonic() - start_s, done=len(begun))
                start_s = time.monotonic()
            if self._under_way:
                num_jobs = len(self._under_way)
                num_done = self._step()
                self._note(num_jobs, time.monotonic() - start_s, done=num_done)

    @property
    def _under_way(self) -> Sequence[Job]:
        return [] if self._table is None else self._table.jobs

    def _take(self) -> list[Job] | None:
        """The oldest job that there is room for, and others like it; empty where there are others under way, None when
        all is done and closed."""
        with self._changed:
            while (first := self._first()) is None:
                if self._under_way:
                    return []
                if self._closing and not self._queue:
                    return None
                self._changed.wait()
            until = time.monotonic() + (0 if self._under_way else self._options.gather_s)
            while (left := until - time.monotonic()) > 0 and not self._closing and not self._is_full(first):
                self._changed.wait(left)
            batch = self._like(first)
            self._queue = [job for job in self._queue if job not in batch]
            return batch

    def _first(self) -> Job | None:
        """The oldest job that can begin."""
        return next((job for job in self._queue if not job.takes_steps or self._fits(job)), None)

    def _fits(self, job: Job) -> bool:
        """Whether there is room in the table, beside those of its kind: small or large."""
        table = self._table
        if table is None or table.holds_back(job.rows):
            return False
        beside = self._of_its_kind(job)
        rows = sum(each.rows for each in beside)
        return not beside or (len(beside) < self._options.max_batch and rows + job.rows <= self._options.max_rows)

    def _of_its_kind(self, job: Job) -> list[Job]:
        return [each for each in self._under_way if self._is_large(each) == self._is_large(job)]

    def _is_large(self, job: Job) -> bool:
        return job.rows * _LARGE > self._options.max_rows

    def _is_full(self, first: Job) -> bool:
        distinct = together(self._like(first))
        rows = sum(jobs[0].rows for jobs in distinct)
        return len(distinct) >= self._options.max_batch or rows + first.rows > self._options.max_rows

    def _like(self, first: Job) -> list[Job]:
        batch, known = [first], {first.same}
        beside = self._of_its_kind(first) if first.takes_steps else []
        number, rows = len(beside) + 1, sum(job.rows for job in beside) + first.rows
        for job in self._queue:
            if job is first or job.key != first.key:
                continue
            if job.same is None or job.same not in known:
                if number >= self._options.max_batch or rows + job.rows > self._options.max_rows:
                    continue
                known.add(job.same)
                number, rows = number + 1, rows + job.rows
            batch.append(job)
        return batch

    def _admit(self, batch: Sequence[Job]) -> None:
        """As ``_do``."""
        assert self._table is not None
        self._guarded(self._table.admit, batch)

    def _step(self) -> int:
        """How many are done. A bug ends what is under way, not the server."""
        assert self._table is not None
        try:
            return self._table.step()
        except Exception as error:  # noqa: BLE001
            jobs = self._table.clear()
            _LOG.exception("a batch of %d failed", len(jobs))
            for job in jobs:
                job.result.set_exception(error)
            return len(jobs)

    def _do(self, batch: Sequence[Job]) -> None:
        for job, result in zip(batch, self._guarded(self._work, batch) or (), strict=False):
            job.result.set_result(result)

    def _guarded(self, work: Callable[[Sequence[Job]], Sequence[Any] | None], batch: Sequence[Job]) -> Any:
        """What ``work`` returns. One job that the library refuses, or that meets a bug, must not spoil the others: they
        are done one by one then."""
        try:
            return work(batch)
        except Exception as error:  # noqa: BLE001  a bug ends its request, not the server
            if not isinstance(error, LatentRagError):
                _LOG.exception("a batch of %d failed", len(batch))
            if len(batch) == 1:
                batch[0].result.set_exception(error)
                return None
            for job in batch:
                self._admit([job]) if job.takes_steps else self._do([job])
        return None

    def _note(self, size: int, seconds: float, *, done: int) -> None:
        self._seconds_since += seconds
        if done:
            each = self._seconds_since / done
            self._seconds_per_job = 0.8 * (self._seconds_per_job or each) + 0.2 * each
            self._seconds_since = 0.0
        if self._on_batch is not None:
            self._on_batch(size, seconds)
