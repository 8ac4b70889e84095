"""`latentrag calibrate`: from what is known of an answer to the probability that it is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentrag import assemble
from latentrag.asking import Asking
from latentrag.cli import arguments as arg
from latentrag.cli.evaluate import show_risk_coverage
from latentrag.cli.output import print_json, say
from latentrag.errors import InputError
from latentrag.options import (
    AnswerOptions,
    DecodingOptions,
    Given,
    RowOptions,
    SystemOptions,
    chosen_options,
)

if TYPE_CHECKING:
    from latentrag.confidence import Calibration
    from latentrag.evaluation.confidence import Fitted
    from latentrag.rag import Rag
    from latentrag.training.data import Example


def calibrate(
    data: arg.QuestionFiles,
    system: SystemOptions,
    reading: RowOptions,
    how: AnswerOptions,
    decoding: Given[DecodingOptions],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Save the calibrated model here. [default: the model's own folder]"),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN.jsonl",
            help="File for a row per question; the same command continues an interrupted run. "
            "[default: the model's folder with .calibration.jsonl after its name]",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions, this many. Default: all.")] = None,
    as_json: arg.AsJson = False,
) -> None:
    """Learn from questions with answers how sure an answer of the model is.

    Afterwards every answer has the probability that it is right, for the same memory, prompt, -k, variant and decoding;
    --abstain-below uses it. What is learned from questions alone says nothing of conversations, and the reverse. The
    questions should be like those that will be asked, and none that the model was trained on.
    """
    from latentrag.evaluation.confidence import fit
    from latentrag.evaluation.run import evaluate

    _check(reading, decoding)
    source = arg.model_source(system.model)
    folder = _folder(source, out)
    if system.model.reranker is not None and _is(source, folder):
        raise InputError("--reranker is to become a part of the calibrated model; name a folder for it by --out")
    rows = folder.with_name(f"{folder.name}.calibration.jsonl") if rows is None else rows
    rag = arg.open_rag(system)
    check = assemble.check_save_settings if _is(source, folder) else assemble.check_save
    check(rag, folder)
    rag.calibration = None
    rag.variant, rag.k = how.variant or rag.variant, how.k or rag.k
    examples = arg.usable_examples(data, reading, rag, limit=limit)
    is_conversation = _are_conversations(examples)
    options, about = rag.options(**decoding), arg.about_run(system, reading)
    try:
        result = evaluate(
            rag, examples, rows, decoding=how.decoding, options=options, signals=True, about=about, progress=True
        )
    except KeyboardInterrupt:
        say(f"{rows} has the rows so far; the same command continues from there")
        raise
    fitted = fit(
        [row["signals"] for row in result.rows],
        [bool(row["exact_match"]) for row in result.rows],
        [math.exp(row["log_prob"]) for row in result.rows],
        rag.signal_settings(Asking(rag.k, rag.variant, options, how.decoding), conversation=is_conversation),
    )
    _save(rag, source, folder, fitted.calibration, decoding)
    record = {"model": str(folder), "questions": len(result.rows), "weights": dict(fitted.calibration.weights)}
    if as_json:
        print_json({**record, "before": fitted.before.as_record(), "after": fitted.after.as_record()})
    else:
        _show(fitted, folder)


def _check(reading: RowOptions, decoding: Mapping[str, object]) -> None:
    """Raises: InputError for questions that cannot be judged, and for options without effect."""
    from latentrag.training.tasks import OPEN_QA

    if reading.task != OPEN_QA:
        raise InputError(
            f"--task {reading.task}: calibrate takes questions whose right answers are texts; needed {OPEN_QA}"
        )
    if "num_best" in decoding:
        raise InputError("--best has no effect, since the best answer alone is judged; leave it out")
    if decoding.get("sample"):
        raise InputError("--sample has no effect, since the best answer alone is judged; leave it out")


def _are_conversations(examples: Sequence[Example]) -> bool:
    """Raises: InputError where some are and others are not: a calibration is for one of both."""
    found = sum(bool(example.history) for example in examples)
    if 0 < found < len(examples):
        raise InputError(
            f"{found} of {len(examples)} questions are conversations; needed all or none, since an answer's confidence "
            "is another thing in each; calibrate with one kind"
        )
    return found > 0


def _folder(source: str | assemble.ModelSpec, out: Path | None) -> Path:
    """Where the calibrated model goes."""
    if out is not None:
        return out
    if isinstance(source, str) and (Path(source) / assemble.FILE_NAME).is_file():
        return Path(source)
    raise InputError("this model is no folder that latentrag saved; name one for the calibrated model by --out")


def _save(
    rag: Rag,
    source: str | assemble.ModelSpec,
    folder: Path,
    calibration: Calibration,
    decoding: Mapping[str, object],
) -> None:
    """With what it was calibrated for as the model's own settings. A folder of its own is changed in place."""
    rag.calibration = calibration
    rag.defaults = {**chosen_options(rag.defaults), **decoding}
    if _is(source, folder):
        assemble.save_settings(rag, folder)
    else:
        assemble.save(rag, folder)


def _is(source: str | assemble.ModelSpec, folder: Path) -> bool:
    """Whether the folder is the model's own."""
    return isinstance(source, str) and folder.exists() and folder.resolve() == Path(source).resolve()


def _show(fitted: Fitted, folder: Path) -> None:
    from latentrag.cli.render import show_rows, terminal

    before, after = fitted.before, fitted.after
    rows = [
        ("Brier score", f"{before.brier:.3f}", f"{after.brier:.3f}"),
        ("Brier skill", _number(before.brier_skill, "+.3f"), _number(after.brier_skill, "+.3f")),
        ("calibration error (ECE)", f"{before.ece:.3f}", f"{after.ece:.3f}"),
        ("  if the probabilities were true", f"{before.ece_if_true:.3f}", f"{after.ece_if_true:.3f}"),
        ("AUROC", _number(before.auroc, ".3f"), _number(after.auroc, ".3f")),
    ]
    show_rows(["", "p(y|x)", "calibrated, cross-validated"], rows, terminal())
    show_risk_coverage([asdict(each) for each in after.risk_coverage])
    say(f"{folder} has the calibration, from {fitted.calibration.num_questions} questions")


def _number(value: float | None, digits: str) -> str:
    return "–" if value is None else f"{value:{digits}}"
