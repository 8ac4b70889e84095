"""Retrieval measured alone: no generator, no answer; what was retrieved against answers, titles and judgements."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from latentrag.errors import DataError, InputError, OptionError, exceeds_memory
from latentrag.evaluation.collecting import check_recall_at, collected, of_example
from latentrag.evaluation.metrics import METRICS, Row, stored
from latentrag.evaluation.ranking import Unit, ranked, relevance
from latentrag.evaluation.report import RECALL_AT, Report
from latentrag.evaluation.trec import Qrels, Runs, check_names
from latentrag.model import checked_questions
from latentrag.protocols import Retriever, is_filtered
from latentrag.readings import ReadingWeights, retrieve
from latentrag.training.data import Example
from latentrag.training.tasks import RETRIEVAL, TASKS

FORMAT = 1
BATCH_SIZE = 8


def evaluate_retrieval(
    retriever: Retriever,
    examples: Sequence[Example],
    out: Path | None = None,
    *,
    k: int | None = None,
    recall_at: Sequence[int] = RECALL_AT,
    unit: Unit | None = None,
    qrels: Qrels | None = None,
    batch_size: int = BATCH_SIZE,
    about: Mapping[str, object] | None = None,
    readings: ReadingWeights | None = None,
    progress: bool = False,
) -> Report:
    """How well what is relevant is retrieved.

    A row holds what ``evaluate`` writes of the example, and retrieved: [id, title, logit] of each passage, best first ·
    unit · grades: of what was judged, where there are judgements · rank, title_rank, unspaced_rank, memory_version.

    Args:
        out: as for ``evaluate``.
        k: passages retrieved, where that is more than ``recall_at`` needs; all where a condition leaves fewer.
        recall_at: the k of recall@k; as far as the memory goes.
        unit: what is ranked; None: passages where there are ids of them, else titles.
        qrels: judgements in place of the passages that the examples name. An example that was not judged is not
            measured by them.
        about: as for ``evaluate``.
        readings: how probable each reading of a conversation is; None: by the default weights.
    Raises: as ``evaluate``; DataError for examples that say nothing of what is relevant.
    """
    check_recall_at(recall_at)
    memory = retriever.memory
    size = len(memory)
    if k is not None and k < 1:
        raise OptionError("{k}={given}; needed 1 or more", given=k)
    if is_filtered(memory):
        memory.require_some()
        k = None if k is None else min(k, size)
    if (k or 1) > size:
        raise exceeds_memory(k or 1, size)
    depth = min(size, max(*recall_at, k or 1))
    examples, unit = _with_judged(examples, qrels), _unit(examples, unit, qrels)
    weights = readings or ReadingWeights.of()
    metrics = [METRICS[name] for name in TASKS[RETRIEVAL].metrics]

    @torch.no_grad()
    def measured(batch: Sequence[Example]) -> list[Row]:
        found = retrieve(retriever, checked_questions([example.question for example in batch]), depth, weights).whole()
        logits = found.logits.tolist()
        rows = []
        for b, (example, passages) in enumerate(zip(batch, found.passages, strict=True)):
            retrieved = [[z.id, z.title, logit] for z, logit in zip(passages, logits[b], strict=False)]
            row = _row(example, retrieved, unit, qrels, found.version)
            rows.append({**row, **stored(metrics, example, "", passages)})
        return rows

    settings = {
        **_settings(unit, qrels, about),
        "memory_version": memory.version,
        "memory_identity": getattr(memory, "identity", None),
        "depth": depth,
    }
    at = sorted(each for each in {*recall_at, *([k] if k else [])} if each <= depth)
    return collected(examples, out, settings, measured, batch_size=batch_size, recall_at=at, progress=progress)


def evaluate_run(
    runs: Runs,
    examples: Sequence[Example],
    out: Path | None = None,
    *,
    recall_at: Sequence[int] = RECALL_AT,
    unit: Unit | None = None,
    qrels: Qrels | None = None,
    about: Mapping[str, object] | None = None,
) -> Report:
    """The same of a run that another system made, whose texts are not known: without recall of answers.

    A question that is not in the run counts as one for which nothing was found, as with trec_eval's option -c.

    Args:
        runs: as ``trec.read_run`` reads them.
        out, recall_at, unit, qrels, about: as for ``evaluate_retrieval``.
    Raises: as ``evaluate_retrieval``; DataError for a run that has none of the examples, and for examples of which
        nothing is known but answers.
    """
    check_recall_at(recall_at)
    examples, unit = _with_judged(examples, qrels), _unit(examples, unit, qrels, has_texts=False)
    if not any(example.id in runs for example in examples):
        raise DataError(
            f"the run has none of the {len(examples)} questions, {examples[0].id} first; needed one over their ids"
        )

    empty: Row = {str(METRICS[name].key): None for name in TASKS[RETRIEVAL].metrics}

    def retrieved(example: Example) -> list[list[object]]:
        found = runs.get(example.id, ())
        if unit != "title":
            return [[name, name, score] for name, score in found]
        title_of = {_spelt(title, unit): title for title in example.titles}
        return [[name, title_of.get(_spelt(name, unit), name.replace("_", " ")), score] for name, score in found]

    def measured(batch: Sequence[Example]) -> list[Row]:
        return [{**empty, **_row(example, retrieved(example), unit, qrels, None)} for example in batch]

    settings = {**_settings(unit, qrels, about), "depth": max(recall_at)}
    at = sorted(recall_at)
    return collected(examples, out, settings, measured, batch_size=len(examples), recall_at=at, progress=False)


def run_of(rows: Sequence[Row]) -> Runs:
    """What was retrieved in rows, as ``trec.write_run`` takes it: each passage, document or title once."""
    found: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        scores: dict[str, float] = {}
        for each in row["retrieved"]:
            for name in ranked([each], row.get("relevant", ()), row["unit"]):  # one, or none without a title
                scores.setdefault(_spelt(name, row["unit"]), each[2])
        found[row["id"]] = list(scores.items())
    return found


def qrels_of(rows: Sequence[Row]) -> Qrels:
    """What is relevant in rows, as ``trec.write_qrels`` takes it."""
    found = {row["id"]: (relevance(row, row["unit"])[0], row["unit"]) for row in rows}
    return {
        id_: {_spelt(name, unit): grade for name, grade in grades.items()}
        for id_, (grades, unit) in found.items()
        if grades
    }


def check_written(
    examples: Sequence[Example], run: Path | None, judgements: Path | None, *, unit: Unit | None, qrels: Qrels | None
) -> None:
    """What can be known before anything is measured of whether files of TREC can be written about these examples.

    Args:
        run, judgements: the files; None: not wanted.
        unit, qrels: as for ``evaluate_retrieval``.
    Raises: DataError for an id that such files cannot hold.
    """
    if run is not None:
        check_names(run, [example.id for example in examples])
    if judgements is not None:
        known, unit = _with_judged(examples, qrels), _unit(examples, unit, qrels)
        found = qrels_of([_row(example, (), unit, qrels, None) for example in known])
        check_names(judgements, [*found, *(name for judged in found.values() for name in judged)])


def _spelt(name: str, unit: Unit) -> str:
    """A name in TREC's files, which have no white space: titles have "_" there."""
    return "".join("_" if each.isspace() else each for each in name) if unit == "title" else name


def judged(examples: Sequence[Example], qrels: Qrels) -> tuple[Example, ...]:
    """The examples that were judged, as trec_eval counts no others. Raises: DataError if there is none."""
    found = tuple(example for example in examples if example.id in qrels)
    if not found:
        raise DataError(
            f"none of the {len(examples)} questions was judged, {examples[0].id} first; needed judgements of their ids"
        )
    return found


def _with_judged(examples: Sequence[Example], qrels: Qrels | None) -> Sequence[Example]:
    """The examples with what was judged in place of the passages that they name."""
    if qrels is None:
        return examples
    return [
        replace(example, passages=tuple(sorted(qrels.get(example.id, ()))), passage_sets=()) for example in examples
    ]


def _unit(examples: Sequence[Example], unit: Unit | None, qrels: Qrels | None, *, has_texts: bool = True) -> Unit:
    """What is ranked. has_texts: of the passages, in which answers can be looked for."""
    has_ids = qrels is not None or any(example.passages for example in examples)
    has_titles = any(example.titles for example in examples)
    known: Mapping[Unit, bool] = {"passage": has_ids, "document": has_ids, "title": has_titles}
    if unit is None:
        unit = "passage" if has_ids else "title"
    other = next((name for name, is_known in known.items() if is_known), None)
    if not known[unit] and other is not None:
        raise InputError(f"no row says which {unit}s are relevant; use --by {other}, or give judgements with --qrels")
    if not known[unit] and not has_texts:
        raise DataError(
            "no row says what is relevant: no title or passage, and a run has no texts in which to look for "
            "answers; give judgements with --qrels"
        )
    if not known[unit] and not any(example.answers or example.pattern for example in examples):
        raise DataError("no row says what is relevant: no answer, title or passage; give judgements with --qrels")
    return unit


def _row(
    example: Example, retrieved: Sequence[Sequence[object]], unit: Unit, qrels: Qrels | None, version: int | None
) -> Row:
    row = {"id": example.id, **of_example(example), "retrieved": [*map(list, retrieved)], "unit": unit}
    if qrels is not None:
        row["grades"] = dict(qrels.get(example.id, {}))
    return {**row, "memory_version": version}


def _settings(unit: Unit, qrels: Qrels | None, about: Mapping[str, object] | None) -> dict[str, object]:
    judgements = None if qrels is None else hashlib.sha256(json.dumps(qrels, sort_keys=True).encode()).hexdigest()[:16]
    settings = {"format": FORMAT, "task": RETRIEVAL, "unit": unit, "judgements": judgements, **(about or {})}
    return dict(json.loads(json.dumps(settings)))
