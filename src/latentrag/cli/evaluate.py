"""`latentrag eval`: a model measured on a file of questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentrag.cli import arguments as arg
from latentrag.cli.output import print_json, say
from latentrag.config import DEMO, resolve_memory, resolve_model
from latentrag.errors import InputError

if TYPE_CHECKING:
    from latentrag.assemble import ModelSpec
    from latentrag.evaluation import Report
    from latentrag.training.data import Example


def evaluate(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] DATA",
            help="Questions with answers: JSON lines or an array, also gzipped. Before it, in place of -m, a model.",
        ),
    ],
    memory: arg.MemoryName = DEMO,
    model: arg.ModelName = None,
    encoder: arg.EncoderName = None,
    generator: arg.GeneratorName = None,
    passage_encoder: arg.PassageEncoderName = None,
    retriever: arg.RetrieverName = None,
    k: arg.NumPassages = None,
    variant: arg.VariantName = None,
    decoding: arg.DecodingName = "exact",
    beams: Annotated[int | None, typer.Option(help="Hypotheses kept alive; 1 is greedy.")] = None,
    max_tokens: arg.MaxTokens = None,
    closed_book: arg.ClosedBook = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions handled together.")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="RUN.jsonl for a row a question; the same command goes on with it.")
    ] = None,
    skip_bad: arg.SkipBad = False,
    as_of: arg.AsOf = None,
    dtype: arg.DtypeName = "auto",
    as_json: arg.AsJson = False,
) -> None:
    """Measure a model: exact match, F1, recall, likelihood, each with its 95 % interval.

    Question files as NQ-open, DPR, KILT and FlashRAG have them are read. Rows with a title, that of the article
    which holds the answer, also measure title recall.
    """
    from latentrag.evaluation.run import evaluate as run

    data, model = _data_and_model(what, model)
    source = arg.model_source(model, encoder=encoder, generator=generator, passage_encoder=passage_encoder)
    examples = _examples(data, skip_bad=skip_bad)[:limit]
    rag = arg.open_rag(source, memory=memory, version=as_of, retriever=retriever, dtype=dtype)
    about = {"model": _name(source), "model_files": _stamp(source), "memory": str(resolve_memory(memory))}
    try:
        found = run(
            rag,
            examples,
            None if out is None else out.expanduser(),
            k=k,
            variant=variant,
            decoding=decoding,
            options=rag.options(num_beams=beams, max_tokens=max_tokens),
            batch_size=batch_size,
            closed_book=closed_book,
            about={**about, "retriever": type(rag.retriever).__name__, "dtype": dtype},
            progress=True,
        )
    except KeyboardInterrupt:
        kept = "nothing is kept without --out" if out is None else f"{out} has the rows so far"
        say(f"{kept}; the same command {'begins anew' if out is None else 'goes on from there'}")
        raise
    if as_json:
        print_json(found.as_record())
    else:
        _show(found)


def _data_and_model(what: Sequence[str], model: str | None) -> tuple[Path, str | None]:
    if len(what) > 2:
        raise InputError(f"got {len(what)} names ({' '.join(what)}); needed one file of questions, before it a model")
    if len(what) == 2 and model is not None:
        raise InputError(f"got the models {what[0]} and {model}; give one")
    return Path(what[-1]), what[0] if len(what) == 2 else model


def _examples(data: Path, *, skip_bad: bool) -> Sequence[Example]:
    from latentrag.training.data import described, read_examples

    found = read_examples(data, skip_bad=skip_bad)
    if found.skipped:
        say(f"warning: {data}: {described(found.skipped, of=len(found) + len(found.skipped))}; they are left out")
    return found.rows


def _name(source: str | ModelSpec) -> str:
    return source if isinstance(source, str) else f"{source.encoder} + {source.generator}"


def _stamp(source: str | ModelSpec) -> str:
    """Changes when files of the model change, so that rows of two models under one name are not mixed."""
    import hashlib

    names: list[Any] = [source] if isinstance(source, str) else [source.encoder, source.generator]
    folders = [Path(place) for place in map(resolve_model, names)]
    stamps = [entry for folder in folders if folder.is_dir() for entry in _entries(folder)]
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]


def _entries(folder: Path) -> Iterator[str]:
    """Name, size and time of every file."""
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        status = path.stat()
        yield f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}"


def _show(found: Report) -> None:
    from latentrag.cli.render import show_rows, terminal

    rows = []
    for name, estimate in found.estimates.items():
        scale, digits = (1, 3) if name.startswith("log_") else (100, 1)
        mean, low, high = (f"{scale * each:.{digits}f}" for each in (estimate.mean, estimate.low, estimate.high))
        unit = "nats" if scale == 1 else "%"
        rows.append((f"{mean} {unit}", f"[{low}, {high}]", f"{estimate.num_examples:,}", words(name)))
    show_rows(["mean", "95 % interval", "questions", "measure"], rows, terminal())


def words(name: str) -> str:
    """A measure's name for people."""
    return name.replace("log_likelihood", "log p").replace("_", " ").replace("f1", "F1").replace("@", " at ")
