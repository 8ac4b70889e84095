"""Requests for answers while they are answered: each leaves when it is done, or when nobody waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from latentrag.decoding import Answered, Failed, Loop, Sources, decodes_apart
from latentrag.serving.batching import together
from latentrag.serving.places import all_placed, placed

if TYPE_CHECKING:
    from latentrag.asking import Asking
    from latentrag.rag import Rag
    from latentrag.serving.batching import Job
    from latentrag.types import Asked


@dataclass(frozen=True, slots=True)
class Request:
    """What a job asks of a model."""

    rag: Rag
    x: Asked
    asking: Asking


class AnswerTable:
    """Questions under way, of any models, each with the jobs that want its answer."""

    def __init__(self) -> None:
        self.clear()

    @property
    def jobs(self) -> Sequence[Job]:
        """One of each question."""
        return [jobs[0] for jobs in self._jobs.values()]

    def holds_back(self, rows: int) -> bool:
        """Whether questions of so many rows should wait."""
        return self._loop.holds_back(rows)

    def admit(self, batch: Sequence[Job]) -> None:
        """Questions to one model that are to be answered alike. A question that is under way already is not asked
        again. Raises: LatentRagError, and then none of them is admitted."""
        groups = [jobs for jobs in together(batch) if self._same_as(jobs[0]) is None]
        first: Request = batch[0].request
        size = 1 if decodes_apart(first.rag.generator) else max(1, len(groups))
        parts = [groups[start : start + size] for start in range(0, len(groups), size)]
        tasks = [first.rag.to_answer([jobs[0].request.x for jobs in part], first.asking) for part in parts]
        for job in batch:
            if (handle := self._same_as(job)) is not None:
                self._join(handle, job)
        for part, of_part in zip(parts, tasks, strict=True):
            handles = [handle for task in of_part for handle in self._loop.admit(task)]
            self._jobs |= {handle: list(jobs) for handle, jobs in zip(handles, part, strict=True)}

    def step(self) -> int:
        """One step for those that are wanted. Returns: how many questions are done since."""
        for handle in [handle for handle, jobs in self._jobs.items() if not any(job.is_wanted for job in jobs)]:
            self._loop.drop(handle)
            self._end(handle, None)
        num_under_way = len(self._jobs)
        for event in self._loop.step():
            if isinstance(event, Answered):
                self._end(event.question, all_placed(event.answer))
            elif isinstance(event, Failed):
                self._end(event.question, event.error)
            else:
                self._tell(event)
        return num_under_way - len(self._jobs)

    def clear(self) -> list[Job]:
        """Forget all questions. Returns: their jobs."""
        jobs = [job for of_one in getattr(self, "_jobs", {}).values() for job in of_one]
        self._loop = Loop(in_order=True)
        self._jobs: dict[int, list[Job]] = {}
        self._told: dict[int, dict[type, Any]] = {}
        return jobs

    def _same_as(self, job: Job) -> int | None:
        """The question under way that it asks, too."""
        if job.same is None:
            return None
        wanted = (job.key, job.same)
        return next((handle for handle, jobs in self._jobs.items() if (jobs[0].key, jobs[0].same) == wanted), None)

    def _join(self, handle: int, job: Job) -> None:
        """With what has been told before."""
        self._jobs[handle].append(job)
        if job.tell is not None:
            for event in self._told.get(handle, {}).values():
                job.tell(event)

    def _tell(self, event: Any) -> None:
        if isinstance(event, Sources):
            event = replace(event, passages=tuple((placed(passage), prior) for passage, prior in event.passages))
        self._told.setdefault(event.question, {})[type(event)] = event
        for job in self._jobs[event.question]:
            if job.tell is not None:
                job.tell(event)

    def _end(self, handle: int, result: Any) -> None:
        self._told.pop(handle, None)
        for job in self._jobs.pop(handle):
            if isinstance(result, Exception):
                job.result.set_exception(result)
            else:
                job.result.set_result(result)
