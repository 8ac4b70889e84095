"""Measuring a model on examples: retrieve, answer, score, write a row; as often interrupted as need be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from latentrag import io
from latentrag.decoding import run
from latentrag.decoding.answering import before_stop
from latentrag.errors import DataError, InputError, ModelError
from latentrag.evaluation.metrics import DECODERS, METRICS, OPEN_QA, TASKS, Row, Task
from latentrag.evaluation.report import RECALL_AT, Report, append, begun, finish, report
from latentrag.model import Read, checked, checked_questions, closed_book
from latentrag.options import DecodingOptions
from latentrag.protocols import Scores
from latentrag.rag import Rag, check_decoding
from latentrag.training.data import Example
from latentrag.types import Decoding, Retrieved, Variant

FORMAT = 2
BATCH_SIZE = 8
_DEPEND_ON_BATCH = {"bfloat16", "float16", "int8"}


@dataclass(frozen=True, slots=True)
class Plan:
    """How every example is measured. ``depth`` passages are retrieved, the generator reads the first ``k``; both are
    None for closed book."""

    variant: Variant
    decoding: Decoding
    options: DecodingOptions
    k: int | None
    depth: int | None


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
        k, variant: as for ``rag.answer``; None: the model's own.
        options: None: ``rag.options()``.
        batch_size: questions answered together; None: 8 where no result depends on it, else 1. In half precision and
            in eight bits an answer depends a little on the questions beside it: with 8 the log p of tiny models moved
            by up to 0.2 nats and 2 of 60 answers changed. One alone is what ``rag.answer`` gives. In float32 log p
            moves by less than 1e-5; with llama.cpp it does not.
        recall_at: as many passages are retrieved as the largest of these, as far as the memory goes; the generator
            reads k.
        closed_book: no passages: the generator alone.
        task: a name in ``TASKS``.
        about: what else to keep with the settings, as JSON values. An evaluation goes on only with the same.
        progress: a bar with the time left on stderr, if that is a terminal.
    Raises: InputError for options that cannot be or that differ from those of ``out``; DataError for files, and for
        an example that cannot be asked or scored; ModelError if the model's probabilities are not numbers.
    """
    depends_on_batch = _depends_on_batch(rag.generator)
    batch_size = (1 if depends_on_batch else BATCH_SIZE) if batch_size is None else batch_size
    _check(examples, batch_size, recall_at)
    measures = TASKS[task]
    plan = _plan(rag, k, variant, decoding, options or rag.options(), recall_at, closed_book=closed_book)
    settings = _settings(rag, plan, task, {**(about or {}), "batch_size": batch_size if depends_on_batch else None})
    kept: AbstractContextManager[dict[str, Row]] = nullcontext({}) if out is None else begun(out, settings)
    with kept as done:
        todo = [example for example in examples if not _is_done(example, done, out)]
        num_done = len(examples) - len(todo)
        with io.progress("evaluating", len(examples), wanted=progress, completed=num_done) as bar:
            for start in range(0, len(todo), batch_size):
                rows = _rows(rag, plan, measures, todo[start : start + batch_size])
                if out is not None:
                    append(out, rows)
                done.update((row["id"], row) for row in rows)
                bar.advance(len(rows))
        result = report([done[example.id] for example in examples], settings, recall_at=_retrieved_at(recall_at, plan))
        if out is not None:
            finish(out, result)
    return result


def _retrieved_at(recall_at: Sequence[int], plan: Plan) -> list[int]:
    """The k for which as many passages were retrieved; that which the generator reads is one of them."""
    if plan.k is None or plan.depth is None:
        return []
    return sorted(k for k in {*recall_at, plan.k} if k <= plan.depth)


def _check(examples: Sequence[Example], batch_size: int, recall_at: Sequence[int]) -> None:
    if not examples:
        raise InputError("got no example; needed at least one")
    if len({example.id for example in examples}) < len(examples):
        raise InputError("two examples have the same id; give each its own")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}; needed 1 or more")
    if not recall_at or min(recall_at) < 1:
        raise InputError(f"recall_at={list(recall_at)}; needed numbers of passages, each 1 or more")


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
    if closed_book:
        if k is not None:
            raise InputError("k has no effect, since closed book reads no passages; leave it out")
        return Plan(variant, decoding, options, None, None)
    k = rag.k if k is None else k
    if k < 1:
        raise InputError(f"k={k}; needed 1 or more, or closed_book")
    deepest = max(recall_at)
    size = len(rag.retriever.memory)
    if k > size:
        raise InputError(f"k={k} exceeds the memory's {size} passages; lower k or add passages")
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
        **asdict(plan),
    }
    # As it will be read back: JSON has lists where we have tuples.
    return dict(json.loads(json.dumps(settings)))


def _is_done(example: Example, done: Mapping[str, Row], out: Path | None) -> bool:
    row = done.get(example.id)
    if row is None:
        return False
    for name, value in _of_example(example).items():
        if row.get(name) != value:
            raise InputError(
                f"{out} has another example with the id {example.id}: {name}={row.get(name)!r}, now {value!r}; name "
                "another file for other data"
            )
    return True


def _of_example(example: Example) -> Row:
    """What a row has of its example, and what its measures depend on."""
    return {
        "x": example.x,
        "answers": list(example.answers),
        "pattern": example.pattern or None,
        "titles": list(example.titles),
    }


def _rows(rag: Rag, plan: Plan, task: Task, batch: Sequence[Example]) -> list[Row]:
    """The batch's rows at once; one by one if an example cannot be used, so that it can be named."""
    try:
        return _measured(rag, plan, task, batch)
    except InputError as error:
        if len(batch) == 1:
            raise DataError(f"example {batch[0].id}: {error}") from error
        return [row for example in batch for row in _rows(rag, plan, task, [example])]


@torch.no_grad()
def _measured(rag: Rag, plan: Plan, task: Task, batch: Sequence[Example]) -> list[Row]:
    retrieved, read = _read(rag, plan, [example.x for example in batch])
    answers = DECODERS[task.decoder](rag, read, plan)
    gold = _gold(plan, batch, read)
    metrics = [METRICS[name] for name in task.metrics]
    passages = [[] for _ in batch] if retrieved is None else retrieved.passages
    rows = []
    for b, (example, (text, log_prob)) in enumerate(zip(batch, answers, strict=True)):
        log_p, num_tokens = gold.get(b, (None, None))
        _check_finite(example, log_prob, log_p)
        rows.append(
            {
                "id": example.id,
                **_of_example(example),
                "text": text,
                "log_prob": log_prob,
                "log_likelihood": log_p,
                "num_tokens": num_tokens,
                "memory_version": retrieved.version if retrieved is not None else None,
                **{metric.key: metric.value(example, text, passages[b]) for metric in metrics},
            }
        )
    return rows


def searched(rag: Rag, read: Read[Scores], plan: Plan) -> list[tuple[str, float]]:
    """The best answers that the decoder finds, as texts with log p(text|x): a ``Decoder``."""
    search = rag.search(read, variant=plan.variant, decoding=plan.decoding, options=plan.options)
    best = [hypotheses[0] for hypotheses in run(search)]
    stop = plan.options.stop
    return [(before_stop(rag.generator.text(one.ids), stop).strip(), one.log_prob) for one in best]


def _read(rag: Rag, plan: Plan, x: Sequence[str]) -> tuple[Retrieved | None, Read[Scores]]:
    """What was retrieved, None for closed book, and the questions with the first K of it, which the generator reads."""
    if plan.k is None or plan.depth is None:
        return None, closed_book(rag.generator, x)
    questions = checked_questions(x)
    retrieved = rag.retriever.retrieve(questions, plan.depth)
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
