"""`latentrag train`: retriever and generator together, from questions and answers alone."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentrag.addresses import memory_for
from latentrag.cli import arguments as arg
from latentrag.cli.output import EXIT_USER, print_json, say
from latentrag.errors import OtherProcessError
from latentrag.options import DEMO, FilterOptions, Given, MemoryOptions, ModelOptions
from latentrag.training.options import RunOptions, TrainingOptions

if TYPE_CHECKING:
    from latentrag.training.loop import Outcome


def train(
    data: arg.QuestionFiles,
    *,
    memory: MemoryOptions,
    which: FilterOptions,
    model: ModelOptions,
    run_options: RunOptions,
    training: Given[TrainingOptions],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    as_json: arg.AsJson = False,
) -> None:
    """Train retriever and generator together, from questions and answers alone.

    No passage is labelled as the right one: the likelihood of the answers, summed over the passages, teaches the query
    encoder which passages help, and the generator how to use them. Several processes: accelerate launch
    --module latentrag train …
    """
    from latentrag.assemble.runs import Setup
    from latentrag.assemble.runs import train as run

    if model.retriever == "bm25":
        training.setdefault("freeze", "retriever")
    address = memory_for(memory.memory, model.model)
    setup = Setup(
        data=tuple(data),
        memory=address,
        where=which.where,
        model=arg.model_source(model),
        **arg.loading(model),
        **asdict(run_options),
    )
    speaks = os.environ.get("RANK", "0") == "0"  # of several processes the first alone
    try:
        outcome = run(setup, training, resume=resume, progress=True, say=say if speaks else lambda _: None)
    except OtherProcessError:
        raise typer.Exit(EXIT_USER) from None
    if not outcome.finished:
        if speaks:
            say(f"stopped after step {outcome.step}; continue with: {resuming()}")
        raise typer.Exit(130)
    if speaks:
        _report(outcome, run_options.out / "model", address, as_json=as_json)


def resuming() -> str:
    """The command that continues this run; one of several processes is started by a launcher again."""
    given = sys.argv[1:]
    command = ["latentrag"]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        parent = Path(f"/proc/{os.getppid()}/cmdline")
        words = os.fsdecode(parent.read_bytes()).split("\0")[:-1] if parent.exists() else []
        known = len(words) > len(given) and words[-len(given) :] == given
        usual = f"accelerate launch --num_processes {os.environ['WORLD_SIZE']} --module latentrag"
        command = words[: -len(given)] if known else usual.split()
    return shlex.join([*command, *(each for each in given if each != "--resume"), "--resume"])


def _report(outcome: Outcome, model: Path, memory: str, *, as_json: bool) -> None:
    best, untrained = outcome.best_nll_per_token, outcome.untrained_nll_per_token
    if best is not None and untrained is not None and best >= untrained:
        say(
            f"warning: training made the model no better: {untrained:.4f} nats per token on --dev before the first "
            f"step, {best:.4f} at the best; lower --lr-retriever and --lr-generator, or train on more examples"
        )
    if as_json:
        print_json(
            {
                "step": outcome.step,
                "nll": outcome.last_nll,
                "best_step": outcome.best_step,
                "best_nll_per_token": outcome.best_nll_per_token,
                "untrained_nll_per_token": outcome.untrained_nll_per_token,
                "model": str(model),
            }
        )
        return
    if outcome.best_step is not None:
        say(f"best step {outcome.best_step}: {best:.4f} nats per token on --dev")
    asked = ["latentrag", "ask", "-m", str(model), *(() if memory == DEMO else ("-i", memory)), "QUESTION"]
    say(f"the model is in {model}; ask it with: {shlex.join(asked)}")
