"""`latentrag eval --retrieval-only`: what is retrieved, measured without a generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrag import assemble
from latentrag.addresses import MEMORIES, memory_for, memory_path, opener
from latentrag.cli import arguments as arg
from latentrag.cli.output import say, working
from latentrag.errors import InputError
from latentrag.options import (
    AnswerOptions,
    GivenOptions,
    RankingOptions,
    RowOptions,
    SystemOptions,
)

if TYPE_CHECKING:
    from latentrag.evaluation.report import Report
    from latentrag.evaluation.trec import Qrels
    from latentrag.training.data import Example

_GENERATOR = ("variant", "decoding")


def with_given(
    examples: tuple[Example, ...],
    given: GivenOptions,
    system: SystemOptions,
    reading: RowOptions,
    *,
    data: Path,
) -> tuple[tuple[Example, ...], int | None]:
    """The examples with the passages that come with them, and how many those are at most; None: the memory is searched.

    Args:
        data: their file, for messages.
    Raises: InputError for a version of a memory that is not read.
    """
    from latentrag.assemble.given import with_texts
    from latentrag.training.given import IDS

    if given.passages_from is None:
        return examples, None
    if given.passages_from.startswith(IDS):
        with working("reading the passages in the memory"):
            opened = assemble.memory_at(_address(system), version=system.version.as_of)
            examples = with_texts(examples, opened, name=data, skip_bad=reading.skip_bad, say=say)
    elif system.version.as_of is not None:
        raise InputError("--as-of has no effect, since the passages come with the questions; leave it out")
    return examples, max(len(example.given) for example in examples)


def _address(system: SystemOptions) -> str:
    return memory_for(system.memory.memory, system.model.model)


def place_of(system: SystemOptions) -> str:
    """What a run is known by: the path of a memory, or its address."""
    memory = _address(system)
    return memory if opener(memory, MEMORIES) else str(memory_path(memory))


def of_given(system: SystemOptions, given: GivenOptions) -> tuple[SystemOptions, str | None]:
    """The system, and what encodes the passages that come with the questions where --passage-encoder names it beside a
    whole model."""
    model = system.model
    if given.passages_from is None or model.encoder is not None or model.passage_encoder is None:
        return system, None
    return replace(system, model=replace(model, passage_encoder=None)), model.passage_encoder


def measured(
    data: Path,
    ranking: RankingOptions,
    reading: RowOptions,
    given: GivenOptions,
    *,
    system: SystemOptions,
    how: AnswerOptions,
    unused: Mapping[str, object],
    limit: int | None,
    batch_size: int | None,
    out: Path | None,
) -> Report:
    """The report on a file of questions or a BEIR folder; files of TREC are written where wanted.

    Args:
        unused: options by flag that only a generator uses, and whether they were given.
    Raises: InputError for one of these that was given.
    """
    from latentrag.evaluation.retrieval import (
        BATCH_SIZE,
        check_written,
        evaluate_retrieval,
        evaluate_run,
        qrels_of,
        run_of,
    )
    from latentrag.evaluation.trec import read_run, write_qrels, write_run

    _check(ranking, how, unused, given, system)
    examples, qrels = _examples(data, ranking, reading, given, limit)
    about: dict[str, object] = {"prefix_field": reading.prefix_field, "reading": reading.task}
    common: dict[str, Any] = {"unit": ranking.by, "qrels": qrels}
    system, passage_encoder = of_given(system, given)
    check_written(examples, ranking.run_out, ranking.qrels_out, **common)
    if ranking.run_in is not None:
        about["run"] = ranking.run_in.name
        result = evaluate_run(read_run(ranking.run_in), examples, out, about=about, **common)
    else:
        source, model = arg.model_source(system.model), system.model
        examples, num_given = with_given(examples, given, system, reading, data=data)
        with working("loading the retriever and its memory"), arg.uncollected():
            retriever = assemble.load_retriever(
                source,
                memory=system.memory.memory,
                version=system.version.as_of,
                num_given=num_given,
                where=system.which.where,
                passage_encoder=passage_encoder,
                retriever=model.retriever,
                reranker=model.reranker,
                candidates=model.candidates,
                device=system.place.device,
                encoder_device=system.place.encoder_device,
            )
        examples = _usable(examples, data, retriever, reading)
        about |= {
            "model": source if isinstance(source, str) else str(source.encoder),
            "model_files": assemble.content_key(source) if out is not None else None,
            "memory": None if num_given is not None else place_of(system),
            "retriever": type(retriever).__name__,
            "passages_from": given.passages_from,
            **arg.about_prior(system, keyed=out is not None),
        }
        result = evaluate_retrieval(
            retriever,
            examples,
            out,
            k=how.k,
            batch_size=batch_size or BATCH_SIZE,
            about=about,
            readings=assemble.load_readings(source),
            progress=True,
            **common,
        )
    if ranking.run_out is not None:
        write_run(ranking.run_out, run_of(result.rows))
    if ranking.qrels_out is not None:
        write_qrels(ranking.qrels_out, qrels_of(result.rows))
    return result


def _check(
    ranking: RankingOptions,
    how: AnswerOptions,
    unused: Mapping[str, object],
    given: GivenOptions,
    system: SystemOptions,
) -> None:
    of_answers = {f"--{name}": getattr(how, name) != getattr(AnswerOptions(), name) for name in _GENERATOR}
    for flag, is_given in {**of_answers, **unused}.items():
        if is_given:
            raise InputError(f"{flag} has no effect with --retrieval-only, which opens no generator; leave it out")
    if ranking.run_in is None:
        return
    found = {"-k": how.k, "--as-of": system.version.as_of, "--where": system.which.where}
    found |= {f"--{name}": getattr(system.model, name) for name in ("retriever", "reranker", "candidates")}
    for flag, value in {**found, "--passages-from": given.passages_from}.items():
        if value is not None:
            raise InputError(f"{flag} has no effect with --run-in, which holds what was retrieved; leave it out")


def _examples(
    data: Path, ranking: RankingOptions, reading: RowOptions, given: GivenOptions, limit: int | None
) -> tuple[tuple[Example, ...], Qrels | None]:
    """The questions, and the judgements if there are any."""
    from latentrag.evaluation.beir import files_of
    from latentrag.evaluation.retrieval import judged
    from latentrag.evaluation.trec import read_qrels
    from latentrag.training.tasks import OPEN_QA, RETRIEVAL, TASKS, read_task

    path = ranking.qrels
    if data.is_dir():
        data, of_folder = files_of(data, needs_qrels=path is None)
        path = path or of_folder
    # A question needs no answer here; other tasks have rows that only they read.
    task = RETRIEVAL if reading.task == OPEN_QA else reading.task
    formats = ("to-find",) if "to-ask" in TASKS[task].formats else None
    reading = replace(reading, task=task)
    examples = read_task(data, reading, passages_from=given.passages_from, formats=formats, say=say).rows
    if path is None:
        return examples[:limit], None
    qrels = read_qrels(path)
    kept = judged(examples, qrels)
    if len(kept) < len(examples):
        say(f"{len(examples) - len(kept)} of {len(examples)} questions were not judged in {path}; they are left out")
    return kept[:limit], qrels


def _usable(examples: tuple[Example, ...], data: Path, retriever: object, reading: RowOptions) -> tuple[Example, ...]:
    from latentrag.training.rows import reads, usable

    return usable(
        examples,
        name=data,
        question=reads(retriever),
        y=lambda _: None,
        answers="first",
        skip_bad=reading.skip_bad,
        say=say,
    )
