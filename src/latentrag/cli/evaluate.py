"""`latentrag eval` and `compare`: a model measured on a file of questions, and two of these runs side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentrag.cli import arguments as arg
from latentrag.cli.output import print_json, say
from latentrag.errors import InputError
from latentrag.options import (
    AnswerOptions,
    DecodingOptions,
    Given,
    GivenOptions,
    RankingOptions,
    RowOptions,
    SystemOptions,
    options_of,
)

if TYPE_CHECKING:
    from latentrag.evaluation.report import Report


def evaluate(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] DATA",
            help="Questions with answers: JSON lines or an array, also gzipped. A model before it replaces -m.",
        ),
    ],
    system: SystemOptions,
    reading: RowOptions,
    given: GivenOptions,
    ranking: RankingOptions,
    how: AnswerOptions,
    decoding: Given[DecodingOptions],
    closed_book: Annotated[bool, typer.Option("--closed-book", help="Answer without passages.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions, this many. Default: all.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="Questions answered together. Except in float32 an answer depends a little on those beside it. "
            "[default: 8 in float32, else 1]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File RUN.jsonl for a row per question; the same command continues an interrupted run."),
    ] = None,
    curve: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.svg",
            help="Draw how many of the surest answers are right, by confidence or else by log p. Needs "
            "latentrag[report].",
        ),
    ] = None,
    as_json: arg.AsJson = False,
) -> None:
    """Measure a model: exact match, F1, recall, likelihood, each with its 95 % interval.

    Question files as NQ-open, DPR, KILT and FlashRAG have them are read. Rows with a title, that of an article
    which holds the answer, also measure title recall. --task has other metrics for other rows; --retrieval-only
    measures retrieval alone.
    """
    data, system = _data_and_system(what, system)
    if "num_best" in decoding:
        raise InputError("--best has no effect, since the best answer alone is measured; leave it out")
    if decoding.get("sample") and "num_beams" in decoding:
        raise InputError("--beams has no effect with --sample, since one answer each is drawn; leave it out")
    _check_curve(curve, reading)
    common: Any = {"system": system, "how": how, "limit": limit, "batch_size": batch_size, "out": out}
    with _kept(out):
        if ranking.retrieval_only:
            from latentrag.cli.retrieval import measured

            decodes = {options_of(DecodingOptions)[name].flags[-1]: True for name in decoding}
            unused = {"--closed-book": closed_book, "--dtype": system.place.dtype != "auto", **decodes}
            unused |= {f"--{name}": getattr(system.model, name) is not None for name in ("instruction", "template")}
            unused["--curve"] = curve is not None
            of_values = ("null_passage", "set_size", "set_bonus", "rewrites", "neighbours")
            unused |= {f"--{name.replace('_', '-')}": getattr(system.model, name) is not None for name in of_values}
            result = measured(data, ranking, reading, given, unused=unused, **common)
        else:
            result = _measured(data, reading, given, decoding, closed_book=closed_book, **common)
    if result.num_wordless:
        say(
            f"{result.num_wordless} of {len(result.rows)} questions have an answer that is only articles, punctuation "
            "or signs; such an answer is compared as it stands"
        )
    if curve is not None:
        from latentrag.evaluation.figures import risk_coverage_curve

        found: Any = result.details["confidence"]
        words = "confidence" if found["by"] == "confidence" else "log p"
        risk_coverage_curve(found["risk_coverage"], curve, by=words)
    if as_json:
        print_json(result.as_record())
    else:
        _show(result)


def _check_curve(curve: Path | None, reading: RowOptions) -> None:
    """Before anything is measured. Raises: InputError for another task; ModelError without matplotlib."""
    if curve is None:
        return
    from latentrag.training.tasks import OPEN_QA

    if reading.task != OPEN_QA:
        raise InputError(f"--curve is for the task {OPEN_QA}, whose answers are right or wrong; leave it out")
    if curve.suffix != ".svg":
        raise InputError(f"--curve {curve} does not end with .svg; name such a file")
    from latentrag.evaluation.figures import pyplot_of_svg

    pyplot_of_svg()


@contextmanager
def _kept(out: Path | None) -> Iterator[None]:
    """Says after Ctrl-C what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "nothing is kept without --out" if out is None else f"{out} has the rows so far"
        say(f"{kept}; the same command {'starts again' if out is None else 'continues from there'}")
        raise


def _measured(
    data: Path,
    reading: RowOptions,
    given: GivenOptions,
    decoding: Given[DecodingOptions],
    *,
    system: SystemOptions,
    how: AnswerOptions,
    closed_book: bool,
    limit: int | None,
    batch_size: int | None,
    out: Path | None,
) -> Report:
    from latentrag.cli.retrieval import of_given, place_of, with_given
    from latentrag.evaluation.run import evaluate as run
    from latentrag.training.rows import reads, usable
    from latentrag.training.tasks import read_task

    if closed_book:
        _check_closed_book(system, given)
    _check_chooses(reading, how, decoding)
    system, passage_encoder = of_given(system, given)
    examples = read_task(data, reading, passages_from=given.passages_from, say=say).rows[:limit]
    examples, num_given = with_given(examples, given, system, reading, data=data)
    rag = arg.open_rag(system, num_given=num_given, passage_encoder=passage_encoder)
    examples = usable(
        examples,
        name=data,
        question=reads(None if closed_book else rag.retriever, rag.generator),
        y=rag.generator.targets,
        answers="first",
        skip_bad=reading.skip_bad,
        say=say,
    )
    about: dict[str, object] = {
        **arg.about_run(system, reading, keyed=out is not None),
        "memory": None if num_given is not None else place_of(system),
        "retriever": type(rag.retriever).__name__,
        **({"passages_from": given.passages_from} if given.passages_from else {}),
        **({"passage_encoder": passage_encoder} if passage_encoder else {}),
    }
    return run(
        rag,
        examples,
        out,
        **asdict(how),
        options=rag.options(**decoding),
        batch_size=batch_size,
        closed_book=closed_book,
        task=reading.task,
        about=about,
        progress=True,
    )


def _check_chooses(reading: RowOptions, how: AnswerOptions, decoding: Given[DecodingOptions]) -> None:
    """Raises: InputError for an option of decoding where one of several given texts is chosen."""
    from latentrag.training.tasks import TASKS

    if TASKS[reading.task].decoder != "choose":
        return
    flags = [options_of(DecodingOptions)[name].flags[-1] for name in decoding]
    if how.decoding != "exact":
        flags.insert(0, "--decoding")
    for flag in flags[:1]:
        raise InputError(
            f"{flag} has no effect on the task {reading.task}, which chooses one of the given texts; leave it out"
        )


def _check_closed_book(system: SystemOptions, given: GivenOptions) -> None:
    """Raises: InputError for an option of passages."""
    of_passages = {"--as-of": system.version.as_of, "--passages-from": given.passages_from}
    of_passages["--where"] = system.which.where
    for name in (
        "retriever",
        "reranker",
        "candidates",
        "null_passage",
        "set_size",
        "set_bonus",
        "rewrites",
        "neighbours",
    ):
        of_passages[f"--{name.replace('_', '-')}"] = getattr(system.model, name)
    for flag, value in of_passages.items():
        if value is not None:
            raise InputError(f"{flag} has no effect, since closed book reads no passages; leave it out")


def compare(
    ours: Annotated[Path, typer.Argument(metavar="A.jsonl", help="Rows that `latentrag eval --out` wrote.")],
    theirs: Annotated[Path, typer.Argument(metavar="B.jsonl", help="Rows of the same questions.")],
    as_json: arg.AsJson = False,
) -> None:
    """Whether one evaluation is better than another, question by question.

    p: how often signs drawn at random make as large a difference; exact for shares.
    """
    from latentrag.evaluation.compare import compare as compared

    result = compared(ours, theirs)
    if as_json:
        print_json(result.as_record())
        return
    from latentrag.cli.render import show_rows, terminal

    rows = []
    for name, measure in result.differences.items():
        scale, digits = (1, 3) if name.startswith("log_") else (100, 1)
        values = (measure.ours, measure.theirs)
        numbers = [f"{scale * value:.{digits}f}" for value in values]
        gain = f"{scale * measure.difference:+.{digits}f}"
        span = _span(measure.low, measure.high, f"+.{digits}f", scale)
        p = "<0.001" if measure.p < 0.001 else f"{measure.p:.3f}"
        won = "-" if measure.wins is None else f"{measure.wins}/{measure.losses}"
        rows.append((*numbers, gain, span, p, won, _words(name)))
    show_rows(["A", "B", "A − B", "95 % interval", "p", "won/lost", "measure"], rows, terminal())


def _data_and_system(what: Sequence[str], system: SystemOptions) -> tuple[Path, SystemOptions]:
    if len(what) > 2:
        raise InputError(f"got {len(what)} names ({' '.join(what)}); needed one file of questions, before it a model")
    if len(what) == 1:
        return Path(what[0]), system
    if system.model.model is not None:
        raise InputError(f"got the models {what[0]} and {system.model.model}; give one")
    return Path(what[-1]), replace(system, model=replace(system.model, model=what[0]))


def _show(found: Report) -> None:
    from latentrag.cli.render import show_rows, terminal

    rows = []
    for name, estimate in found.estimates.items():
        scale, digits = (1, 3) if name.startswith("log_") else (100, 1)
        mean, unit = f"{scale * estimate.mean:.{digits}f}", "nats" if scale == 1 else "%"
        span = _span(estimate.low, estimate.high, f".{digits}f", scale)
        rows.append((f"{mean} {unit}", span, f"{estimate.num_examples:,}", _words(name)))
    show_rows(["mean", "95 % interval", "questions", "measure"], rows, terminal())
    confusion: Any = found.details.get("confusion", {})
    if confusion:
        table = [(right, *(str(number) for number in given.values())) for right, given in confusion.items()]
        show_rows(["right, then given", *confusion], table, terminal())
    sureness: Any = found.details.get("confidence", {})
    if sureness.get("by") == "confidence":
        show_risk_coverage(sureness["risk_coverage"])


def show_risk_coverage(points: Sequence[Mapping[str, Any]]) -> None:
    """The accuracy of the surest answers."""
    from latentrag.cli.render import percent, show_rows, terminal

    rows = [(percent(p["coverage"]), percent(p["accuracy"]), f"{p['threshold']:.2f}") for p in points]
    show_rows(["the surest", "are right", "from a confidence of"], rows, terminal())


def _span(low: float | None, high: float | None, digits: str, scale: int) -> str:
    from latentrag.evaluation.intervals import FEWEST_UNBOUNDED
    from latentrag.evaluation.resampling import FEWEST_POOLED

    if low is None or high is None:  # log p, or a measure of all examples together
        return f"none below {FEWEST_UNBOUNDED if scale == 1 else FEWEST_POOLED}"
    return f"[{scale * low:{digits}}, {scale * high:{digits}}]"


_SPELT = {
    "log_likelihood": "log p",
    "r_precision": "R-precision",
    "rouge_l": "ROUGE-L",
    "q_bleu_1": "Q-BLEU-1",
    "bleu_1": "BLEU-1",
    "bleu": "BLEU",
    "ndcg": "nDCG",
    "mrr": "MRR",
    "kilt": "KILT",
    "f1": "F1",
    "@": " at ",
    "_": " ",
}


def _words(name: str) -> str:
    """A measure's name for people."""
    for part, words in _SPELT.items():
        name = name.replace(part, words)
    return name
