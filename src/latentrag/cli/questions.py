"""`latentrag make-questions`: pairs to train on, from a memory alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentrag import assemble
from latentrag.addresses import memory_for
from latentrag.cli import arguments as arg
from latentrag.cli.output import print_json, print_line, say, working
from latentrag.options import FilterOptions, GeneratorOptions, MakingOptions, VersionOptions

if TYPE_CHECKING:
    from latentrag.questions import Made


def make_questions(
    memory: Annotated[str, typer.Argument(help="The memory: a path, or demo.")],
    *,
    out: Annotated[
        Path, typer.Option(help="File PAIRS.jsonl for the pairs; the same command continues an interrupted run.")
    ],
    version: VersionOptions,
    which: FilterOptions,
    generator: GeneratorOptions,
    making: MakingOptions,
    prompt: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON file with what asks for pairs, as docs/questions.md shows it."),
    ] = None,
    as_json: arg.AsJson = False,
) -> None:
    """Make questions with answers from a memory's passages, to train on.

    The generator writes a question and a short answer to passages drawn at random. A pair stays if the answer stands in
    the passage, if the generator gives it again when asked the question, and if no kept question is nearly the same.
    """
    from latentrag.questions import Prompt, Writer
    from latentrag.questions import make_questions as make

    asks = Prompt.read(prompt)
    with working("loading the generator and the memory"), arg.uncollected():
        opened = assemble.memory_at(memory_for(memory, generator.model), version=version.as_of)
        if which.where is not None:
            opened = assemble.some_of(opened, which.where)
        writer = Writer(assemble.load_generator(generator.model, device=generator.device, dtype=generator.dtype), asks)
    about = {
        "model": generator.model,
        "model_files": assemble.content_key(generator.model),
        "memory": memory,
        **({"where": which.where} if which.where else {}),
        "dtype": generator.dtype,
        "prompt": asdict(asks),
    }
    try:
        made = make(writer, opened, out, **asdict(making), about=about, progress=True)
    except KeyboardInterrupt:
        say(f"{out} has the pairs so far; the same command continues from there")
        raise
    if made.num_pairs < making.number:
        say(f"warning: {made.num_pairs} of {making.number} pairs: every passage of the memory has been tried")
    if as_json:
        print_json(made.as_record())
    else:
        _show(made, out)


def _show(made: Made, out: Path) -> None:
    from latentrag.cli.render import percent, show_rows, terminal
    from latentrag.questions.keeping import REASONS

    print_line(f"{out}: {made.num_pairs} pairs, from {made.num_tried} passages that were tried")
    rows = [
        (f"{made.dropped[reason]:,}", percent(made.dropped[reason] / made.num_tried), why)
        for reason, why in REASONS.items()
        if made.dropped[reason]
    ]
    if rows:
        show_rows(["dropped", "share", "because"], rows, terminal())
