"""`latentrag index push` and `pull`: a memory given away, and taken over."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from latentrag.addresses import memory_path
from latentrag.cli import arguments as arg
from latentrag.cli.index import MemoryPath
from latentrag.cli.output import print_json, print_line
from latentrag.options import VersionOptions


def push(
    memory: MemoryPath,
    destination: Annotated[str, typer.Argument(help="A new folder, or hf://datasets/USER/NAME.")],
    version: VersionOptions,
    as_json: arg.AsJson = False,
) -> None:
    """Write one version of a memory as Parquet files with a list of their hashes, for others to pull.

    A repository that is made on the hub is private; make it public there if that is what you want.
    """
    from latentrag.memory.exchange import push as run
    from latentrag.memory.stores import LISTING

    path = memory_path(memory)
    with _shown_progress("writing passages") as on_passages:
        listing = run(
            path, destination, version="served" if version.as_of is None else version.as_of, on_passages=on_passages
        )
    if as_json:
        files = [{"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in listing.files]
        record = {"version": listing.version, "passages": listing.num_passages, "listing": LISTING, "files": files}
        print_json({"memory": str(path), "destination": destination, **record})
        return
    print_line(
        f"{path} version {listing.version}: pushed {listing.num_passages} passages to {destination}, "
        f"{len(listing.files)} files and {LISTING}, {listing.size_bytes / 1e6:.1f} MB"
    )


def pull(
    source: Annotated[str, typer.Argument(help="A folder that was pushed to, or hf://datasets/USER/NAME[@REVISION].")],
    memory: Annotated[str, typer.Argument(metavar="MEMORY", help="Path of the new memory.")],
    as_json: arg.AsJson = False,
) -> None:
    """Make a memory from what somebody pushed. Every file's hash is checked before anything is put in place.

    Interrupted, the same command goes on with what it has.
    """
    from latentrag.memory.exchange import pull as run

    path = Path(memory).expanduser()
    with _shown_progress("checking passages") as on_passages:
        pulled = run(source, path, on_passages=on_passages)
    if as_json:
        record = {"version": pulled.version, "passages": len(pulled), "encoder": pulled.card.encoder}
        print_json({"memory": str(path), "source": source, **record})
        return
    print_line(
        f"{path} version {pulled.version}: pulled {len(pulled)} passages from {source}, "
        f"encoded by {pulled.card.encoder}"
    )


@contextmanager
def _shown_progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error, where somebody looks on."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
