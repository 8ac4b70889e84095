"""Requests as jobs for the model, and how a batch of them is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from latentrag import io
from latentrag.errors import OptionError
from latentrag.model import checked, checked_questions
from latentrag.serving.batching import Batcher, Job, together
from latentrag.serving.metrics import SECONDS, SIZES, Metrics
from latentrag.serving.places import all_placed, placed
from latentrag.serving.table import AnswerTable, Request
from latentrag.types import Classification, Found, Question, Score, Variant

if TYPE_CHECKING:
    from latentrag.asking import HowToAnswer
    from latentrag.rag import Rag
    from latentrag.serving.options import ServeOptions


TIDIED_EVERY_S = 10.0
"""Passages that are kept lie between what was needed for a moment: without this the process grows for minutes."""
Groups = Sequence[Sequence[Job]]
"""Jobs that are done together, those that want the same result side by side."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What a job asks. ``work`` does a batch of jobs with the same key: a result for each group, in order."""

    asked: Any
    work: Callable[[Groups], Sequence[Any]]


class Engine:
    """The model behind a queue. Its methods check what can be checked and return at once."""

    def __init__(self, options: ServeOptions, metrics: Metrics) -> None:
        self._options, self._metrics = options, metrics
        self._next_tidying = 0.0
        self.batcher = Batcher(_work, options, table=AnswerTable(), on_batch=self._note)

    def answer(
        self, rag: Rag, question: str | Question, how: HowToAnswer, *, tell: Callable[[Any], None] | None = None
    ) -> Job:
        """An ``Answer``, about which ``tell`` gets ``Sources`` and then ``Begun``, each with more tokens than the last.

        Raises: InputError for what cannot be; Refused.
        """
        asking = rag.asking(**how)
        (x,) = checked_questions([question])
        rag.confidence(asking, conversation=x.is_conversation)  # refused before it waits
        options = asking.options
        pairs = self._pairs(rag, asking.k, options.num_beams, "{num_beams}")
        # An answer under way is of the version that was served when it began: who asks since wants another.
        key: Hashable = ("answer", id(rag), rag.retriever.memory.version, asking)
        if asking.without:
            key = object()  # other questions have other passages
        asked, same = Request(rag, question, asking), None if options.sample else question
        return self.batcher.submit(Job(key, pairs, asked, tell, same, takes_steps=True))

    def score(
        self, rag: Rag, x: str | Question, y: str, *, k: int | None, variant: Variant | None, sentences: bool = False
    ) -> Job:
        """A ``Score``. Raises: InputError; Refused."""
        chosen, k = checked(variant or rag.variant), k or rag.k
        checked_questions([x])
        request = _Request((x, y), partial(_scores, rag, k=k, variant=chosen, sentences=sentences))
        pairs = self._pairs(rag, k)
        return self._submit(("score", id(rag), k, chosen, sentences), pairs, request, same=(x, y))

    def classify(
        self, rag: Rag, question: str | Question, labels: Sequence[str], *, k: int | None, variant: Variant | None
    ) -> Job:
        """A ``Classification``. Raises: InputError; Refused."""
        chosen, k = checked(variant or rag.variant), k or rag.k
        checked_questions([question])
        pairs = self._pairs(rag, k, len(labels), "labels")
        request = _Request(question, partial(_classifications, rag, labels=labels, k=k, variant=chosen))
        return self._submit(object(), pairs, request)

    def embed(self, encode: Callable[[Sequence[str]], torch.Tensor], texts: Sequence[str]) -> Job:
        """Vectors (B, D) of texts. Raises: Refused."""
        return self._submit(object(), 1, _Request((encode, texts), _vectors))

    def search(self, rag: Rag, question: str | Question, *, k: int | None) -> Job:
        """``Found``. Raises: InputError; Refused."""
        k = k or rag.k
        checked_questions([question])
        return self._submit(("search", id(rag), k), 1, _Request(question, partial(_found, rag, k=k)), same=question)

    def _pairs(self, rag: Rag, k: int, number: int = 1, what: str | None = None) -> int:
        """Values of z times ``number`` of ``what``.

        Raises: InputError for more than decoding has memory for, with what would do.
        """
        most, values = self._options.max_rows, rag.model.values
        num_values = values.number(k)
        pairs = num_values * number
        if pairs <= most:
            return pairs
        of_kinds = {"sets of two": values.bonus, '"no passage"': values.null}
        kinds = " and ".join(kind for kind, value in of_kinds.items() if value is not None)
        beside = f" ({num_values} with {kinds})" if kinds else ""
        fewer_k = next((n for n in range(k - 1, 0, -1) if values.number(n) * number <= most), 1)
        with_these, or_fewer = "", ""
        if what:
            with_these = f" with {what}={number}"
            or_fewer = f" or {what} to {most // num_values}" if num_values <= most else ""
        raise OptionError(
            f"{{k}}={k}{beside}{with_these} makes {pairs} pairs; this server computes {most} at once; lower "
            f"{{k}} to {fewer_k}{or_fewer}"
        )

    def _submit(
        self,
        key: Hashable,
        rows: int,
        request: _Request,
        *,
        same: Hashable | None = None,
    ) -> Job:
        return self.batcher.submit(Job(key, rows, request, same=same))

    def _note(self, size: int, seconds: float) -> None:
        self._metrics.observe("latentrag_batch_size", size, SIZES)
        self._metrics.observe("latentrag_batch_seconds", seconds, SECONDS)
        now = time.monotonic()
        if now >= self._next_tidying:
            self._next_tidying = now + TIDIED_EVERY_S
            io.give_back_memory()


@torch.no_grad()
def _work(batch: Sequence[Job]) -> Sequence[Any]:
    groups = together(batch)
    results = batch[0].request.work(groups)
    of_job = {id(job): result for jobs, result in zip(groups, results, strict=True) for job in jobs}
    return [of_job[id(job)] for job in batch]


def _asked(groups: Groups) -> list[Any]:
    return [jobs[0].request.asked for jobs in groups]


def _scores(rag: Rag, groups: Groups, *, k: int, variant: Variant, sentences: bool) -> list[Score]:
    x, y = zip(*_asked(groups), strict=True)
    return rag.score_batch(x, y, k=k, variant=variant, sentences=sentences)


def _classifications(
    rag: Rag, groups: Groups, *, labels: Sequence[str], k: int, variant: Variant
) -> list[Classification]:
    return [all_placed(rag.classify(question, labels, k=k, variant=variant)) for question in _asked(groups)]


def _vectors(groups: Groups) -> list[torch.Tensor]:
    return [encode(texts).float().cpu() for encode, texts in _asked(groups)]


def _found(rag: Rag, groups: Groups, *, k: int) -> list[Found]:
    return found_together(rag, _asked(groups), k)


def found_together(rag: Rag, x: Sequence[str | Question], k: int) -> list[Found]:
    """The passages of several questions at once."""
    return [
        replace(found, passages=tuple((placed(passage), score, prior) for passage, score, prior in found.passages))
        for found in rag.retrieve_batch(x, k=k)
    ]
