"""`latentrag train`: retriever and generator together, from questions and answers alone."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentrag.cli import arguments as arg
from latentrag.cli.output import print_json, say
from latentrag.config import DEMO
from latentrag.types import Objective, Variant

if TYPE_CHECKING:
    from latentrag.training.loop import Outcome
    from latentrag.training.options import TrainingOptions

Freeze = Literal["none", "retriever", "generator"]
Choice = Literal["first", "sample"]
Chosen = Literal["warmup", "hindsight"]
Scope = Literal["question", "all"]


def train(
    data: arg.QuestionFile,
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log, and in the end model/.")],
    memory: arg.MemoryName = DEMO,
    model: arg.ModelName = None,
    encoder: arg.EncoderName = None,
    generator: arg.GeneratorName = None,
    passage_encoder: arg.PassageEncoderName = None,
    retriever: arg.RetrieverName = None,
    dev: Annotated[Path | None, typer.Option(help="Questions to evaluate on; the best step's model is kept.")] = None,
    dev_limit: Annotated[int, typer.Option(min=1, help="Only the first so many of them.")] = 200,
    variant: Annotated[
        Variant, typer.Option(help="One passage explains the whole answer, or each token may lean on another.")
    ] = "sequence",
    objective: Annotated[Objective, typer.Option(help="nll is the paper's; the others teach the retriever apart.")] = (
        "nll"
    ),
    k: Annotated[int, typer.Option("-k", "--k", "--passages", min=1, help="Passages retrieved for a question.")] = 5,
    hindsight: Annotated[
        int | None,
        typer.Option(
            min=0, help="More passages, sought with the answer; default: as -k, while the retriever is alone."
        ),
    ] = None,
    hindsight_steps: Annotated[
        int | None, typer.Option(min=1, help="Only in so many steps at the start; default with --hindsight: all.")
    ] = None,
    closed_book: arg.ClosedBook = False,
    freeze: Annotated[Freeze, typer.Option(help="A side that is not trained.")] = "none",
    epochs: Annotated[float, typer.Option(min=0.0, help="How often every example is seen.")] = 1.0,
    steps: Annotated[int | None, typer.Option(min=1, help="In place of --epochs: optimiser steps.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a step, over all processes.")] = 16,
    micro_batch_size: Annotated[int, typer.Option(min=1, help="Examples in a forward pass; less needs less RAM.")] = 8,
    lr_retriever: Annotated[float, typer.Option(min=0.0, help="Highest learning rate of the query encoder.")] = 5e-5,
    lr_generator: Annotated[
        float, typer.Option(min=0.0, help="Of the generator; 0: 2e-4 for an adapter, 3e-5 for all weights.")
    ] = 0.0,
    warmup_steps: Annotated[int | None, typer.Option(min=0, help="Rates rise so long; default: 5 % of all.")] = None,
    warmup_generator: Annotated[
        int | None,
        typer.Option(min=0, help="Steps in which the generator learns alone; default: a fifth for encoder-decoders."),
    ] = None,
    warmup_retriever: Annotated[
        int | None, typer.Option(min=0, help="The query encoder alone; default: half, at most 200, for causal ones.")
    ] = None,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="AdamW's.")] = 1e-3,
    clip: Annotated[float, typer.Option(help="Highest norm of the gradient of either side.")] = 1.0,
    label_smoothing: Annotated[float, typer.Option(help="Of the marginal distribution; for nll.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="Of the retriever's targets; for pdist and loop.")] = 1.0,
    answers: Annotated[Choice, typer.Option(help="Which of several answers is learned in an epoch.")] = "first",
    lora: Annotated[
        int | None, typer.Option(min=0, help="Rank of an adapter; 0: all weights; default: 16 for large causal models.")
    ] = None,
    lora_scope: Annotated[
        Scope | None, typer.Option(help="Whether it works on passages too; question is faster, and the default.")
    ] = None,
    keep_preamble: Annotated[bool, typer.Option("--keep-preamble", help="Keep the prompt's worked examples.")] = False,
    refresh_every: Annotated[
        int, typer.Option(min=0, help="Train the passage encoder too, and re-encode the memory after so many steps.")
    ] = 0,
    eval_every: Annotated[int, typer.Option(min=1, help="Steps between evaluations on --dev.")] = 100,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of order, answers drawn and the adapter's first weights.")] = 0,
    autocast: Annotated[bool, typer.Option("--autocast", help="Compute in bfloat16 with float32 weights.")] = False,
    recompute: Annotated[bool, typer.Option("--recompute", help="Less RAM for more time.")] = False,
    passage_cache: Annotated[
        float, typer.Option(min=0.0, help="GB of RAM for passages as the generator has read them.")
    ] = 2.0,
    passage_cache_folder: Annotated[Path | None, typer.Option(help="Keeps them on disk too, for later runs.")] = None,
    dtype: arg.TrainingDtypeName = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    skip_bad: arg.SkipBad = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    as_json: arg.AsJson = False,
) -> None:
    """Train retriever and generator together.

    Nothing says which passage to retrieve: the likelihood of the answers, summed over the passages, teaches the
    query encoder which of them help, and the generator how to use them. Several processes: accelerate launch
    --module latentrag train …
    """
    from latentrag.train_run import Setup
    from latentrag.train_run import train as run
    from latentrag.training.options import TrainingOptions

    def options(num_examples: int) -> TrainingOptions:
        num_steps = steps if steps is not None else max(1, round(epochs * num_examples / batch_size))
        return TrainingOptions(
            variant=variant,
            objective=objective,
            k=k,
            hindsight=hindsight or 0,
            hindsight_steps=hindsight_steps,
            closed_book=closed_book,
            freeze="retriever" if retriever == "bm25" and freeze == "none" else freeze,
            num_steps=num_steps,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            lr_retriever=lr_retriever,
            lr_generator=lr_generator,
            warmup_steps=warmup_steps if warmup_steps is not None else num_steps // 20,
            warmup_generator=warmup_generator or 0,
            warmup_retriever=warmup_retriever or 0,
            weight_decay=weight_decay,
            clip=clip,
            label_smoothing=label_smoothing,
            temperature=temperature,
            answers=answers,
            seed=seed,
            eval_every=eval_every,
            save_every=save_every,
            refresh_every=refresh_every,
            autocast=autocast,
        )

    left_out: dict[Chosen, bool] = {
        "warmup": warmup_generator is None and warmup_retriever is None,
        "hindsight": hindsight is None,
    }
    setup = Setup(
        data=data.expanduser(),
        memory=memory,
        model=arg.model_source(model, encoder=encoder, generator=generator, passage_encoder=passage_encoder),
        out=out.expanduser(),
        dev=None if dev is None else dev.expanduser(),
        dev_limit=dev_limit,
        retriever=retriever,
        lora=lora,
        lora_scope=lora_scope,
        keep_preamble=keep_preamble,
        dtype=dtype,
        recompute=recompute,
        passage_cache_bytes=round(passage_cache * 2**30),
        passage_cache_folder=None if passage_cache_folder is None else passage_cache_folder.expanduser(),
        choose=[name for name, absent in left_out.items() if absent],
        skip_bad=skip_bad,
        device=device,
    )
    outcome = run(setup, options, resume=resume, progress=True, say=say)
    if not outcome.finished:
        say(f"stopped after step {outcome.step}; go on with: {_resuming()}")
        raise typer.Exit(130)
    _report(outcome, out / "model", memory, as_json=as_json)


def _resuming() -> str:
    given = [each for each in sys.argv[1:] if each != "--resume"]
    return shlex.join(["latentrag", *given, "--resume"])


def _report(outcome: Outcome, model: Path, memory: str, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "step": outcome.step,
                "nll": outcome.last_nll,
                "best_step": outcome.best_step,
                "best_nll_per_token": outcome.best_nll_per_token,
                "model": str(model),
            }
        )
        return
    if outcome.best_step is not None:
        say(f"best step {outcome.best_step}: {outcome.best_nll_per_token:.4f} nats per token on --dev")
    asked = ["latentrag", "ask", "-m", str(model), *(() if memory == DEMO else ("-i", memory)), "QUESTION"]
    say(f"the model is in {model}; ask it with: {shlex.join(asked)}")
