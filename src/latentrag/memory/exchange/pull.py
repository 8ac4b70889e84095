"""A memory from where somebody pushed it: checked first, then put in place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrag.errors import FetchError, MemoryStoreError
from latentrag.io import sha256_of_file
from latentrag.memory.building import is_free, new_memory
from latentrag.memory.exchange import rows
from latentrag.memory.exchange.listing import LISTING, ListedFile, Listing
from latentrag.memory.exchange.push import OnPassages
from latentrag.memory.exchange.stores import Store, open_store
from latentrag.memory.memory import Memory
from latentrag.memory.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

MAX_LISTING_BYTES = 64_000_000


def pull(source: str, memory: Path, *, hub: Any = None, on_passages: OnPassages | None = None) -> Memory:
    """A new memory from a place that ``push`` wrote to.

    Every file is fetched and has to match its size and hash before anything is made of it, and the memory appears
    when it is whole. What has been fetched stays beside it until then (``.NAME.pulling``), so that an interrupted
    pull goes on. Nothing that is there is overwritten, and nothing of the source is run.

    Args:
        source: a folder, or ``hf://datasets/USER/NAME``, perhaps with ``@REVISION``.
        memory: a path that is free.
        hub: a ``huggingface_hub.HfApi``; None: one with the user's own settings.
    Raises: MemoryStoreError if something is at ``memory``; InputError for an address of another kind; FetchError if
        the source cannot be reached, is no memory, or does not match its own listing.
    """
    if not is_free(memory):
        raise MemoryStoreError(f"{memory} exists already; open it, or choose a path that is free")
    store = open_store(source, hub=hub)
    scratch = memory.absolute().parent / f".{memory.name}.pulling"
    try:
        listing = _fetch(store, scratch, on_passages)
    finally:
        if not any(scratch.glob("passages-*.parquet")):  # nothing that a later pull could go on with
            shutil.rmtree(scratch, ignore_errors=True)
    try:
        _make(listing, scratch, memory, change=f"pulled from {store.name}, version {listing.version} there")
    except FetchError:  # the files are as listed and yet no memory
        shutil.rmtree(scratch)
        raise
    shutil.rmtree(scratch)
    return Memory.open(memory)


def _fetch(store: Store, scratch: Path, on_passages: OnPassages | None) -> Listing:
    """All files into ``scratch``, each checked."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        listing = _fetch_listing(store, scratch)
        _check_room(listing, scratch)
        _fetch_files(store, listing, scratch, on_passages)
    except OSError as error:
        raise FetchError(f"{scratch} cannot be written ({error.strerror or error}); make room") from error
    return listing


def _fetch_listing(store: Store, scratch: Path) -> Listing:
    (scratch / LISTING).unlink(missing_ok=True)
    store.fetch(LISTING, scratch)
    path = scratch / LISTING
    if path.stat().st_size > MAX_LISTING_BYTES:
        raise FetchError(f"{LISTING} of {store.name} has {path.stat().st_size} bytes; no memory needs so many")
    listing = Listing.from_json(path.read_bytes(), f"{LISTING} of {store.name}")
    names = {file.name for file in listing.files}
    for file in scratch.glob("passages-*"):
        if file.name not in names:  # of another listing, fetched before
            file.unlink()
    return listing


def _check_room(listing: Listing, scratch: Path) -> None:
    present = sum(file.stat().st_size for file in scratch.glob("passages-*"))
    needed = 2 * listing.size_bytes - present  # the files, and the table that is made of them
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise FetchError(f"the memory needs {needed} bytes of disk, {scratch.parent} has {free}; make room")


def _fetch_files(store: Store, listing: Listing, scratch: Path, on_passages: OnPassages | None) -> None:
    done = 0
    for file in listing.files:
        path = scratch / file.name
        if not (path.is_file() and _mismatch(path, file) is None):
            path.unlink(missing_ok=True)
            store.fetch(file.name, scratch)
            wrong = _mismatch(path, file)
            if wrong is not None:
                path.unlink()
                raise FetchError(f"{file.name} of {store.name} has {wrong}; pull again, or ask who published it")
        done += file.num_passages
        if on_passages is not None:
            on_passages(done, listing.num_passages)


def _mismatch(path: Path, file: ListedFile) -> str | None:
    """How a file differs from what the listing says of it; None if it does not."""
    size_bytes = path.stat().st_size
    if size_bytes != file.size_bytes:
        return f"{size_bytes} bytes, its listing says {file.size_bytes}"
    sha256 = sha256_of_file(path)
    return None if sha256 == file.sha256 else f"sha256 {sha256}, its listing says {file.sha256}"


def _make(listing: Listing, scratch: Path, memory: Path, *, change: str) -> None:
    """The memory from files that match their listing. Raises: FetchError if they hold no memory nevertheless."""
    ids: set[str] = set()

    def all_rows() -> Iterator[pa.RecordBatch]:
        for file in listing.files:
            for batch in rows.read_file(scratch / file.name, listing.manifest, file.num_passages):
                new = batch["id"].to_pylist()
                before = len(ids)
                ids.update(new)
                if len(ids) != before + len(new) or "" in ids:
                    raise FetchError(f"{file.name} has an id that is empty or comes twice; ask who published it")
                yield batch

    with new_memory(memory) as new:
        table = Table.create(new, listing.manifest)
        with table.writing():
            table.commit(table.stage(all_rows()), removed_ids=(), change=change)
