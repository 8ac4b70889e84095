"""Rows of an evaluation, a batch at a time: those that are there already are kept, the others are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from latentrag import io
from latentrag.errors import DataError, InputError
from latentrag.evaluation.metrics import Row
from latentrag.evaluation.report import Report, append, begun, finish, report
from latentrag.training.data import Example

_ALWAYS = ("x", "answers", "pattern", "titles")

Measured = Callable[[Sequence[Example]], list[Row]]
"""The rows of a batch. InputError for one with an example that cannot be used."""


def collected(
    examples: Sequence[Example],
    out: Path | None,
    settings: Mapping[str, object],
    measured: Measured,
    *,
    batch_size: int,
    recall_at: Sequence[int],
    progress: bool,
) -> Report:
    """The report on all examples.

    Args:
        out: RUN.jsonl, which gets the rows; None: nothing is kept.
        settings: what makes rows comparable, as JSON values.
    Raises: InputError for no example, two of one id, a batch size below 1, or rows of other settings or examples;
        DataError for files, and for an example that cannot be used.
    """
    _check(examples, batch_size)
    kept: AbstractContextManager[dict[str, Row]] = nullcontext({}) if out is None else begun(out, settings)
    with kept as done:
        todo = [example for example in examples if not _is_done(example, done, out)]
        num_done = len(examples) - len(todo)
        with io.progress("evaluating", len(examples), wanted=progress, completed=num_done) as bar:
            for start in range(0, len(todo), batch_size):
                rows = _rows(measured, todo[start : start + batch_size])
                if out is not None:
                    append(out, rows)
                done.update((row["id"], row) for row in rows)
                bar.advance(len(rows))
        result = report([done[example.id] for example in examples], settings, recall_at=recall_at)
        if out is not None:
            finish(out, result)
    return result


def check_recall_at(recall_at: Sequence[int]) -> None:
    """Raises: InputError for numbers of passages that cannot be."""
    if not recall_at or min(recall_at) < 1:
        raise InputError(f"recall_at={list(recall_at)}; needed numbers of passages, each 1 or more")


def of_example(example: Example) -> Row:
    """What a row has of its example: what its answer and its measures depend on."""
    known = _of_example(example)
    return {name: value for name, value in known.items() if value or name in _ALWAYS}


def _of_example(example: Example) -> Row:
    """The same with what is empty. Rows leave that out, so that a row from before there was a name has it empty."""
    return {
        "x": example.x,
        "history": [[turn.role, _digest(turn.text)] for turn in example.history],
        "answers": list(example.answers),
        "pattern": example.pattern or None,
        "titles": list(example.titles),
        "choices": list(example.choices),
        "relevant": list(example.passages),
        "title_sets": [list(each) for each in example.title_sets],
        "relevant_sets": [list(each) for each in example.passage_sets],
        "given": [[passage.id, _digest(f"{passage.title}\0{passage.text}")] for passage in example.given],
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(examples: Sequence[Example], batch_size: int) -> None:
    if not examples:
        raise InputError("got no example; needed at least one")
    if len({example.id for example in examples}) < len(examples):
        raise InputError("two examples have the same id; give each its own")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}; needed 1 or more")


def _is_done(example: Example, done: Mapping[str, Row], out: Path | None) -> bool:
    row = done.get(example.id)
    if row is None:
        return False
    for name, value in _of_example(example).items():
        before = row.get(name, [])
        if (before or None) != (value or None):
            raise InputError(
                f"{out} has another example with the id {example.id}: {name}={before!r}, now {value!r}; name "
                "another file for other data"
            )
    return True


def _rows(measured: Measured, batch: Sequence[Example]) -> list[Row]:
    """The batch's rows at once; one by one if an example cannot be used, so that it can be named."""
    try:
        return measured(batch)
    except InputError as error:
        if len(batch) == 1:
            raise DataError(f"example {batch[0].id}: {error}") from error
        return [row for example in batch for row in _rows(measured, [example])]
