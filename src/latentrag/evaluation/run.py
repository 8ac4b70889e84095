"""Measuring a model on examples: retrieve, answer, score, write a row; as often interrupted as need be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from latentrag.asking import Asking, check_decoding
from latentrag.errors import InputError, ModelError, OptionError, exceeds_memory
from latentrag.evaluation.collecting import check_recall_at, collected, of_example
from latentrag.evaluation.metrics import DECODERS, METRICS, Row, Said, stored
from latentrag.evaluation.report import RECALL_AT, Report
from latentrag.model import Read, checked, checked_questions, closed_book
from latentrag.options import DecodingOptions
from latentrag.protocols import Scores, is_filtered
from latentrag.rag import Rag
from latentrag.training.data import Example
from latentrag.training.tasks import OPEN_QA, TASKS, Task
from latentrag.types import Asked, Decoding, Retrieved, Variant

if TYPE_CHECKING:
    from latentrag.evaluation.metrics import Decoder

FORMAT = 2
BATCH_SIZE = 8
_DEPEND_ON_BATCH = {"bfloat16", "float16", "int8"}


@dataclass(frozen=True, slots=True)
class Plan:
    """How every example is measured. ``depth`` passages are retrieved, the generator reads the first ``k``; both are
    None for closed book. ``signals``: whether what an answer's confidence is made of is kept."""

    variant: Variant
    decoding: Decoding
    options: DecodingOptions
    k: int | None
    depth: int | None
    signals: bool = False

    @property
    def asking(self) -> Asking:
        """How each example is answered."""
        return Asking(self.k or 0, self.variant, self.options, self.decoding)


def evaluate(
    rag: Rag,
    examples: Sequence[Example],
    out: Path | None = None,
    *,
    k: int | None = None,
    variant: Variant | None = None,
    decoding: Decoding = "exact",
    options: DecodingOptions | None = None,
    batch_size: int | None = None,
    recall_at: Sequence[int] = RECALL_AT,
    closed_book: bool = False,
    task: str = OPEN_QA,
    signals: bool = False,
    about: Mapping[str, object] | None = None,
    progress: bool = False,
) -> Report:
    """How well the model retrieves, answers and predicts the first answer.

    A row holds: id, x, answers, pattern, titles · text, log_prob: what the model
    answers, and log p(text|x) · log_likelihood, num_tokens: log p(y|x) of the first answer y, nats, over so many
    tokens · memory_version; null for closed book · a value for each metric of the task. For open-domain questions:
    exact_match, f1 · rank, title_rank: of the first passage that holds an answer, and of the first one of an article of
    ``titles``, from 1; null if none was retrieved · unspaced_rank: as rank, for answers in scripts without spaces
    between words (``metrics.contains_unspaced``).

    Where an example has a pattern, exact_match and rank are about matches of it, and f1 and log_likelihood are null.

    Args:
        examples: with ids that differ; a slice of ``read_examples(…).rows``, say.
        out: RUN.jsonl, which gets a row as soon as its batch is done; RUN.json beside it gets settings and report.
            Rows that are there already are kept, so that an interrupted evaluation goes on.
        k, variant: as for ``rag.answer``; None: the model's own, and of a smaller memory all passages.
            Where a condition leaves fewer than k, these are read.
        options: None: ``rag.options()``. Of samples one is drawn for each question, by its id and the seed.
        batch_size: questions answered together; None: 8 where no result depends on it, else 1. In half precision and
            in eight bits an answer depends a little on the questions beside it: with 8 the log p of tiny models moved
            by up to 0.2 nats and 2 of 60 answers changed. One alone is what ``rag.answer`` gives. In float32 log p
            moves by less than 1e-5; with llama.cpp it does not.
        recall_at: as many passages are retrieved as the largest of these, as far as the memory goes; the generator
            reads k.
        closed_book: no passages: the generator alone.
        task: a name in ``TASKS``.
        signals: keep in each row what a confidence is made of (``confidence.signals``). A model that is calibrated for
            these settings has a ``confidence`` in each row, too.
        about: what else to keep with the settings, as JSON values. An evaluation goes on only with the same.
        progress: a bar with the time left on stderr, if that is a terminal.
    Raises: InputError for options that cannot be or that differ from those of ``out``; DataError for files, and for
        an example that cannot be asked or scored; ModelError if the model's probabilities are not numbers.
    """
    depends_on_batch = _depends_on_batch(rag.generator)
    batch_size = (1 if depends_on_batch else BATCH_SIZE) if batch_size is None else batch_size
    check_recall_at(recall_at)
    measures = TASKS[task]
    if measures.decoder is None:
        raise InputError(f"the task {task} has no decoder; measure it with --retrieval-only")
    decoder = DECODERS[measures.decoder]
    plan = _plan(rag, k, variant, decoding, options or rag.options(), recall_at, closed_book=closed_book)
    plan = replace(plan, signals=signals)
    settings = _settings(rag, plan, task, {**(about or {}), "batch_size": batch_size if depends_on_batch else None})
    return collected(
        examples,
        out,
        settings,
        lambda batch: _measured(rag, plan, decoder, measures, batch),
        batch_size=batch_size,
        recall_at=_retrieved_at(recall_at, plan),
        progress=progress,
    )


def _retrieved_at(recall_at: Sequence[int], plan: Plan) -> list[int]:
    """The k for which as many passages were retrieved; that which the generator reads is one of them."""
    if plan.k is None or plan.depth is None:
        return []
    return sorted(k for k in {*recall_at, plan.k} if k <= plan.depth)


def _plan(
    rag: Rag,
    k: int | None,
    variant: Variant | None,
    decoding: Decoding,
    options: DecodingOptions,
    recall_at: Sequence[int],
    *,
    closed_book: bool,
) -> Plan:
    variant = checked(variant or rag.variant)
    check_decoding(variant, decoding, options)
    if options.sample:
        options = replace(options, num_beams=1, num_best=1)
    if closed_book:
        if k is not None:
            raise InputError("k has no effect, since closed book reads no passages; leave it out")
        return Plan(variant, decoding, options, None, None)
    memory = rag.retriever.memory
    size = len(memory)
    k = (min(rag.k, size) or rag.k) if k is None else k
    if k < 1:
        raise OptionError("{k}={given}; needed 1 or more, or closed_book", given=k)
    deepest = max(recall_at)
    if is_filtered(memory):
        memory.require_some()
        k = min(k, size)
    if k > size:
        raise exceeds_memory(k, size)
    return Plan(variant, decoding, options, k, max(k, min(deepest, size)))


def _depends_on_batch(generator: Scores) -> bool:
    """Whether an answer depends on the questions beside it by more than float32's last bits."""
    facts: Callable[[], Mapping[str, object]] = getattr(generator, "facts", dict)
    return facts().get("dtype") in _DEPEND_ON_BATCH


def _settings(rag: Rag, plan: Plan, task: str, about: Mapping[str, object]) -> dict[str, object]:
    """What makes rows comparable. The batch size is among it where they depend on it."""
    memory = rag.retriever.memory
    settings = {
        "format": FORMAT,
        **({} if task == OPEN_QA else {"task": task}),  # runs from before there were tasks go on
        **about,
        "closed_book": plan.k is None,
        "memory_version": memory.version if plan.k else None,
        # Memories of other packages need not name what they hold.
        "memory_identity": getattr(memory, "identity", None) if plan.k else None,
        **{name: value for name, value in asdict(plan).items() if name != "signals" or value},
    }
    # As it will be read back: JSON has lists where we have tuples.
    return dict(json.loads(json.dumps(settings)))


@torch.no_grad()
def _measured(rag: Rag, plan: Plan, decoder: Decoder, task: Task, batch: Sequence[Example]) -> list[Row]:
    retrieved, read = _read(rag, plan, [example.question for example in batch])
    answers = decoder(rag, read, plan, batch)
    gold = _gold(plan, batch, read)
    metrics = [METRICS[name] for name in task.metrics]
    passages = [[] for _ in batch] if retrieved is None else retrieved.passages
    rows = []
    for b, (example, answer) in enumerate(zip(batch, answers, strict=True)):
        text, log_prob, known = Said(*answer)
        log_p, num_tokens = gold.get(b, (None, None))
        _check_finite(example, log_prob, log_p)
        rows.append(
            {
                "id": example.id,
                **of_example(example),
                "text": text,
                "log_prob": log_prob,
                **known,
                "log_likelihood": log_p,
                "num_tokens": num_tokens,
                "memory_version": retrieved.version if retrieved is not None else None,
                **stored(metrics, example, text, passages[b]),
            }
        )
    return rows


def _read(rag: Rag, plan: Plan, x: Sequence[Asked]) -> tuple[Retrieved | None, Read[Scores]]:
    """What was retrieved, None for closed book, and the questions with the first K of it, which the generator reads."""
    if plan.k is None or plan.depth is None:
        return None, closed_book(rag.generator, x)
    questions = checked_questions(x)
    retrieved = rag.model.retrieve(questions, plan.depth).whole()
    return retrieved, rag.model.read_of(questions, retrieved.between(0, plan.k))


def _gold(plan: Plan, batch: Sequence[Example], read: Read[Scores]) -> dict[int, tuple[float, int]]:
    """log p(y|x) of the first answer and its number of tokens, for the places of the batch that have an answer."""
    places = [b for b, example in enumerate(batch) if example.answers and not example.pattern]
    if not places:
        return {}
    targets = read.generator.targets([batch[b].answers[0] for b in places])
    log_p = read.rows(places).evidence(targets).log_likelihood(plan.variant)
    return dict(zip(places, zip(log_p.tolist(), targets.mask.sum(dim=1).tolist(), strict=True), strict=True))


def _check_finite(example: Example, *log_probs: float | None) -> None:
    if not all(math.isfinite(each) for each in log_probs if each is not None):
        raise ModelError(f"example {example.id}: log p(y|x) is not a finite number; the model's weights are damaged")
