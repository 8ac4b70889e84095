"""A version of a memory, written where others can pull it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentrag.errors import MemoryStoreError
from latentrag.io import sha256_of_file
from latentrag.memory.exchange import rows
from latentrag.memory.exchange.listing import LISTING, ListedFile, Listing, file_name
from latentrag.memory.exchange.stores import open_store
from latentrag.memory.table import Table
from latentrag.memory.versions import resolve

OnPassages = Callable[[int, int], None]
"""Called with how many passages are done, and how many there are."""


def push(
    memory: Path,
    destination: str,
    *,
    version: int | str | None = None,
    hub: Any = None,
    on_passages: OnPassages | None = None,
) -> Listing:
    """Write one version of a memory as Parquet files and ``memory.json``, which lists them with sizes and hashes.

    Of the memory's other versions, of what was deleted, and of where its files lay on this machine, nothing is
    written, except what the passages themselves say.

    Args:
        destination: a folder that is new or empty, or ``hf://datasets/USER/NAME``. A repository that does not exist
            is made, as a private one; one that holds a memory gets a new commit.
        version: a number, a tag or a date, as ``Memory.open`` takes it; None: the newest.
        hub: a ``huggingface_hub.HfApi``; None: one with the user's own settings.
    Raises: MemoryStoreError; InputError if the destination holds something else; FetchError if it cannot be written.
    """
    table = Table.open(memory, resolve(memory, version))
    num_passages = len(table)
    if not num_passages:
        raise MemoryStoreError(f"{memory} has no passages at version {table.version}; push one that has some")
    store = open_store(destination, hub=hub)
    store.check_free()
    with store.scratch() as folder:
        written, done = [], 0
        for path, num_rows in rows.write_files(table, folder):
            written.append((path, num_rows))
            done += num_rows
            if on_passages is not None:
                on_passages(done, num_passages)
        files = [
            _listed(path.rename(folder / file_name(i, len(written))), num_rows)
            for i, (path, num_rows) in enumerate(written)
        ]
        listing = Listing(table.version, done, table.manifest, tuple(files))
        (folder / LISTING).write_text(listing.to_json(), "utf-8")
        store.publish(folder, f"latentrag memory, version {table.version}, {done} passages")
    return listing


def _listed(path: Path, num_passages: int) -> ListedFile:
    return ListedFile(path.name, path.stat().st_size, sha256_of_file(path), num_passages)
