"""`latentrag index import`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from latentrag.addresses import memory_path
from latentrag.cli import arguments as arg
from latentrag.cli.index import MemoryPath, load_encoder, resumable
from latentrag.cli.output import print_json, print_line, say
from latentrag.options import PassageEncoderOptions


def import_(
    memory: MemoryPath,
    source: Annotated[
        Path,
        typer.Argument(
            help="Parquet files with embeddings, a folder that datasets saved, or JSON lines as BEIR has them."
        ),
    ],
    *,
    encoder: PassageEncoderOptions,
    vectors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The vectors: .npy, .npz or a flat faiss index.  [default: in or beside it]"),
    ] = None,
    passages_per_commit: Annotated[
        int, typer.Option("--commit-every", metavar="PASSAGES", min=1, help="Passages per commit.")
    ] = 65_536,
    as_json: arg.AsJson = False,
) -> None:
    """Take over passages with the vectors that an encoder has made of them elsewhere.

    The encoder is named: a sample is encoded again, and vectors of another one are refused. Interrupted or killed, the
    same command goes on after its last commit.
    """
    from latentrag.memory.importing import import_vectors
    from latentrag.memory.sources import read_source

    path = memory_path(memory)
    count, batches = read_source(source, vectors)
    if sys.stderr.isatty():  # with the bar that follows
        say(f"{count:,} passages in {source}")
    with resumable():
        done = import_vectors(
            path,
            batches,
            load_encoder(encoder),
            passages_per_commit=passages_per_commit,
            progress=sys.stderr.isatty(),
        )
    after = done.memory
    if as_json:
        facts = {"memory": str(path), "version": after.version, "added": done.added, "unchanged": done.unchanged}
        print_json({**facts, "passages": len(after)})
        return
    unchanged = f", {done.unchanged} were there already" if done.unchanged else ""
    print_line(f"{path} version {after.version}: imported {done.added}{unchanged}; {len(after)} passages in all")
