"""`latentrag fit-prior`: the weights of a prior of experts, from questions and answers."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentrag import assemble
from latentrag.addresses import memory_for
from latentrag.cli import arguments as arg
from latentrag.cli.output import print_json, say
from latentrag.errors import InputError
from latentrag.options import RowOptions, SystemOptions

if TYPE_CHECKING:
    from latentrag.evaluation.prior import FittedPrior

HYBRID = "hybrid"


def fit_prior(
    data: arg.QuestionFiles,
    system: SystemOptions,
    reading: RowOptions,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the model with the fitted prior.")],
    number: Annotated[
        int, typer.Option("-n", "--number", min=1, help="Questions to fit on, drawn at random from all.")
    ] = 300,
    scored: Annotated[
        int,
        typer.Option(
            min=2, help="Candidates of a question that the generator scores at most: half by vectors, half by words."
        ),
    ] = 12,
    biases: Annotated[
        list[str] | None,
        typer.Option(
            "--bias",
            metavar="NAME",
            help="Fit a bias, too: title (the share of its title's words that are in the question) or recency (years "
            "of the field date); may be repeated.",
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN.jsonl",
            help="File for the generator's scores; the same command continues an interrupted run, and another fit uses "
            "them again. [default: the folder of --out with .prior.jsonl after its name]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for the questions and for cross-validation.")] = 0,
    as_json: arg.AsJson = False,
) -> None:
    """Fit how much vectors, words and a reranker count in the prior, from questions and answers.

    The marginal likelihood of the answers decides; no passage is labelled. The generator scores the candidates once,
    which takes as long as reading them; the fit takes seconds. Use questions that nothing will be measured on.
    """
    from latentrag.evaluation.prior import check_number, fit
    from latentrag.evaluation.prior import scored as run

    kind = system.model.retriever
    if kind not in {None, HYBRID}:
        raise InputError(f"--retriever {kind} has no effect: fit-prior fits a hybrid prior; leave it out")
    arg.refuse_rewrites(system.model, "fit-prior")
    system = replace(system, model=replace(system.model, retriever=HYBRID))
    rag = arg.open_rag(system)
    retriever = assemble.experts_of(rag, biases or ())
    assemble.check_save(rag, out)
    examples = [each for each in arg.usable_examples(data, reading, rag, number=number, seed=seed) if each.answers]
    check_number(len(examples), "questions with an answer as text (patterns alone cannot be fitted to)")
    rows = out.with_name(f"{out.name}.prior.jsonl") if rows is None else rows
    about = {
        **arg.about_run(system, reading),
        "memory": memory_for(system.memory.memory, system.model.model),
        "memory_version": retriever.memory.version,
        "memory_identity": getattr(retriever.memory, "identity", None),
        "null_passage": rag.null_passage,
    }
    started = time.perf_counter()
    try:
        found = run(rag, retriever, examples, rows, num=scored // 2, about=about, progress=True)
    except KeyboardInterrupt:
        say(f"{rows} has the scores so far; the same command continues from there")
        raise
    scoring_s = time.perf_counter() - started
    fitted = fit(found, retriever.settings()["weights"], k=rag.k, variant=rag.variant, seed=seed)
    assemble.save(assemble.with_weights(rag, fitted.weights), out)
    if as_json:
        print_json({"model": str(out), "scores": str(rows), "scoring_s": scoring_s, **asdict(fitted)})
    else:
        _show(fitted, out, scoring_s)


def _show(fitted: FittedPrior, out: Path, scoring_s: float) -> None:
    from latentrag.cli.render import show_rows, terminal

    rows = [
        (f"{fitted.before[name]:.3f}", f"{weight:.3f}", f"{weight * fitted.deviations[name]:.2f}", name)
        for name, weight in fitted.weights.items()
    ]
    show_rows(["before", "fitted", "nats between candidates", "expert"], rows, terminal())
    for gain, over in ((fitted.gain, "the weights before"), (fitted.gain_over_dense, "vectors alone")):
        span = "" if gain.low is None else f" [{gain.low:+.3f}, {gain.high:+.3f}]"
        say(f"held out, log p(y|x) of a question against {over}: {gain.mean:+.3f} nats{span}")
    silent = f", {fitted.num_silent} more that no candidate answers left out" if fitted.num_silent else ""
    say(
        f"{fitted.num_questions} questions{silent}; scored in {scoring_s:.1f} s, fitted in {fitted.wall_s:.1f} s "
        f"(ridge {fitted.ridge:g}, 5-fold cross-validation)"
    )
    say(f"the model is in {out}")
