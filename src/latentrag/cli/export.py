"""`latentrag export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentrag import assemble
from latentrag.cli.output import say, working


def export(
    model: Annotated[str, typer.Argument(help="A model that latentrag saved: a folder, or demo.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, which must not exist yet or hold an exported model.")],
) -> None:
    """Write a model as plain folders of its libraries, its adapter merged into the weights.

    OUT/generator is then a folder for transformers, OUT/query_encoder one for sentence-transformers or transformers;
    OUT itself is a model for latentrag still.
    """
    with working("merging and writing the model"):
        changed = assemble.export(model, out)
    if changed:
        say("the adapter worked on questions and answers alone; merged it reads passages too, so probabilities change")
    say(f"the model is in {out}")
