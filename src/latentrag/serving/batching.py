"""Requests wait in a bounded queue; one thread takes those that can be done together and does them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from latentrag.errors import LatentRagError
from latentrag.serving.failures import Refused, busy
from latentrag.serving.options import ServeOptions

_LOG = logging.getLogger("latentrag.serving")
_LONGEST_RETRY_S = 60


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
        is_wanted: whether somebody still waits for it.
    """

    key: Hashable
    rows: int
    request: Any
    tell: Callable[[Any], None] | None = None
    same: Hashable | None = None
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


class Batcher:
    """One model thread and the queue before it.

    Args:
        work: does jobs with equal keys and returns their results in order; None for one that is not wanted any more.
        on_batch: gets the number of jobs and the seconds of each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Job]], Sequence[Any]],
        options: ServeOptions,
        *,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._work, self._options, self._on_batch = work, options, on_batch
        self._queue: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._seconds_per_job = 0.0
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
        while batch := self._take():
            begun = [job for job in batch if job.result.set_running_or_notify_cancel()]
            if begun:
                start_s = time.monotonic()
                self._do(begun)
                self._note(len(begun), time.monotonic() - start_s)

    def _take(self) -> list[Job]:
        """The oldest job and others like it, as many as there is room for; empty when all is done and closed."""
        with self._changed:
            while not self._queue:
                if self._closing:
                    return []
                self._changed.wait()
            until = time.monotonic() + self._options.gather_s
            while (left := until - time.monotonic()) > 0 and not self._closing and not self._is_full():
                self._changed.wait(left)
            batch = self._like_the_first()
            self._queue = [job for job in self._queue if job not in batch]
            return batch

    def _is_full(self) -> bool:
        first = self._queue[0]
        distinct = together(self._like_the_first())
        rows = sum(jobs[0].rows for jobs in distinct)
        return len(distinct) >= self._options.max_batch or rows + first.rows > self._options.max_rows

    def _like_the_first(self) -> list[Job]:
        first, *others = self._queue
        batch, known, number, rows = [first], {first.same}, 1, first.rows
        for job in others:
            if job.key != first.key:
                continue
            if job.same is None or job.same not in known:
                if number == self._options.max_batch or rows + job.rows > self._options.max_rows:
                    continue
                known.add(job.same)
                number, rows = number + 1, rows + job.rows
            batch.append(job)
        return batch

    def _do(self, batch: Sequence[Job]) -> None:
        """One that the library refuses must not spoil the others: they are done one by one then."""
        try:
            results = self._work(batch)
        except LatentRagError as error:
            if len(batch) == 1:
                batch[0].result.set_exception(error)
                return
            for job in batch:
                self._do([job])
        except Exception as error:  # noqa: BLE001  a bug ends these requests, not the server
            _LOG.exception("a batch of %d failed", len(batch))
            for job in batch:
                job.result.set_exception(error)
        else:
            for job, result in zip(batch, results, strict=True):
                job.result.set_result(result)

    def _note(self, size: int, seconds: float) -> None:
        before = self._seconds_per_job or seconds / size
        self._seconds_per_job = 0.8 * before + 0.2 * seconds / size
        if self._on_batch is not None:
            self._on_batch(size, seconds)
