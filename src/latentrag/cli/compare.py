"""`latentrag compare`: two evaluations of the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentrag.cli import arguments as arg
from latentrag.cli.output import print_json


def compare(
    ours: Annotated[Path, typer.Argument(metavar="A.jsonl", help="Rows that `latentrag eval --out` wrote.")],
    theirs: Annotated[Path, typer.Argument(metavar="B.jsonl", help="Rows of the same questions.")],
    as_json: arg.AsJson = False,
) -> None:
    """Whether one evaluation is better than another: paired bootstrap over their questions."""
    from latentrag.evaluation import compare as compared

    found = compared(ours.expanduser(), theirs.expanduser())
    if as_json:
        print_json(found.as_record())
        return
    from latentrag.cli.evaluate import words
    from latentrag.cli.render import show_rows, terminal

    rows = []
    for name, each in found.differences.items():
        scale, digits = (1, 3) if name.startswith("log_") else (100, 1)
        values = (each.ours, each.theirs)
        numbers = [f"{scale * value:.{digits}f}" for value in values]
        signed = [f"{scale * value:+.{digits}f}" for value in (each.difference, each.low, each.high)]
        p = "<0.001" if each.p < 0.001 else f"{each.p:.3f}"
        rows.append((*numbers, signed[0], f"[{signed[1]}, {signed[2]}]", p, f"{each.wins}/{each.losses}", words(name)))
    show_rows(["A", "B", "A − B", "95 % interval", "p", "won/lost", "measure"], rows, terminal())
