"""`latentrag index push` and `pull`: a memory given away, and taken over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from latentrag.addresses import is_object, memory_path
from latentrag.cli import arguments as arg
from latentrag.cli.index import MemoryPath
from latentrag.cli.output import print_json, print_line
from latentrag.errors import InputError
from latentrag.io import Progress, progress
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
    with progress("writing passages", None) as bar:
        listing = run(path, destination, version=version.as_of or "served", on_passages=_shown_on(bar))
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

    if is_object(memory):
        raise InputError(
            f"pull makes a memory in a folder, got {memory}; give a path, or add the passages to {memory} with "
            "`latentrag index import`, which reads what was pushed"
        )
    path = Path(memory).expanduser()
    with progress("checking passages", None) as bar:
        pulled = run(source, path, on_passages=_shown_on(bar))
    if as_json:
        record = {"version": pulled.version, "passages": len(pulled), "encoder": pulled.card.encoder}
        print_json({"memory": str(path), "source": source, **record})
        return
    print_line(
        f"{path} version {pulled.version}: pulled {len(pulled)} passages from {source}, "
        f"encoded by {pulled.card.encoder}"
    )


def _shown_on(bar: Progress) -> Callable[[int, int], None]:
    return lambda done, total: bar.update(completed=done, total=total)
