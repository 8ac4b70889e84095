"""One version of a memory given away and taken over: Parquet files for the rows, and a JSON file with their hashes.

``push`` writes what anybody can read and check; ``pull`` checks everything before it makes a memory of it.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentrag import io
from latentrag.errors import FetchError, MemoryStoreError
from latentrag.memory import history
from latentrag.memory.memory import Memory
from latentrag.memory.schema import EncoderCard, schema, to_passages, with_all_columns
from latentrag.memory.storage import Place, storage_of
from latentrag.memory.stores import LISTING, Store, open_store
from latentrag.memory.table import Table
from latentrag.memory.version_files import changing, is_free

FORMAT = 1
MAX_LISTING_BYTES = 64_000_000
ROWS_PER_FILE = 65_536
"""About 130 MB at 768 dimensions and 100 words."""
ROWS_PER_BATCH = 8_192
_SHA256 = re.compile(r"[0-9a-f]{64}")

OnPassages = Callable[[int, int], None]
"""Called with how many passages are done, and how many there are."""


# The listing


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of the memory. ``name`` is nothing but a name: no folder, and of the one kind there is."""

    name: str
    size_bytes: int
    sha256: str
    num_passages: int


@dataclass(frozen=True, slots=True)
class Listing:
    """What a pushed memory is.

    Attributes:
        version: that was pushed.
        num_passages: in all files.
        card: what encoded the passages.
        files: in the order of the passages.
    """

    version: int
    num_passages: int
    card: EncoderCard
    files: tuple[ListedFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> str:
        fields = {"format": FORMAT, "kind": "latentrag memory", **asdict(self)}
        fields["manifest"] = fields.pop("card")
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, raw: bytes, place: str) -> Listing:
        """The reverse of ``to_json``; trusts nothing.

        Raises: FetchError, naming ``place``, if it is no listing, of another format, or names any other file than
            ``push`` writes: in another folder, of another type, twice.
        """
        try:
            fields = json.loads(raw)
            version = fields["format"] if isinstance(fields, dict) else None
            if version == FORMAT:
                return _listing(fields, place)
        except (ValueError, KeyError, TypeError, RecursionError, MemoryStoreError) as error:
            raise FetchError(f"{place} cannot be used ({error!r}); ask who published it to push it again") from error
        raise FetchError(f"{place} has format {version!r}, needed {FORMAT}; update latentrag or have it pushed again")


def file_name(i: int, num_files: int) -> str:
    """The name of the i-th of so many files, from 0."""
    return f"passages-{i:05}-of-{num_files:05}.parquet"


def _listing(fields: dict[str, Any], place: str) -> Listing:
    files = tuple(ListedFile(**each) for each in fields["files"])
    for i, file in enumerate(files):
        expected = file_name(i, len(files))
        if file.name != expected:
            raise FetchError(f"{place} names {file.name!r}, needed {expected}; nothing of it is used, do not trust it")
        if not _SHA256.fullmatch(file.sha256) or not _is_count(file.size_bytes) or not _is_count(file.num_passages):
            raise FetchError(
                f"{place} has no size, number of passages and sha256 for {file.name}; have it pushed again"
            )
    listing = Listing(
        version=fields["version"],
        num_passages=fields["num_passages"],
        card=EncoderCard.from_json(json.dumps(fields["manifest"])),
        files=files,
    )
    whole = sum(file.num_passages for file in files)
    if not _is_count(listing.version) or listing.num_passages != whole:
        raise FetchError(f"{place} names files of {whole} passages, says {listing.num_passages}; have it pushed again")
    card = listing.card
    is_named = isinstance(card.encoder, str) and isinstance(card.fingerprint, str)
    if not (is_named and _is_count(card.dimension) and _is_count(card.max_tokens) and card.scale > 0):
        raise FetchError(f"{place} does not say what encoded the passages ({card}); have it pushed again")
    return listing


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


# Rows


def write_files(table: Table, folder: Path) -> Iterator[ListedFile]:
    """Write every row of a version, in order; yields each file when it is finished.

    Deleted rows are not in a version's rows, and nothing else of the table is written. The same rows make the same
    bytes, so that pushing twice sends nothing twice.
    """
    columns = schema(table.card).remove_metadata()
    num_left, num_files = len(table), -(-len(table) // ROWS_PER_FILE)
    batches = (with_all_columns(batch, columns) for batch in table.record_batches())
    rows = columns.empty_table()
    for i in range(num_files):
        num_rows = min(num_left, ROWS_PER_FILE)
        while len(rows) < num_rows:
            rows = pa.concat_tables([rows, pa.Table.from_batches([next(batches)])])
        path = folder / file_name(i, num_files)
        whole = rows[:num_rows].combine_chunks()
        pq.write_table(
            whole, path, compression="zstd", use_dictionary=["source", "origin"], row_group_size=ROWS_PER_BATCH
        )
        yield ListedFile(path.name, path.stat().st_size, io.sha256_of_file(path), num_rows)
        rows, num_left = rows[num_rows:], num_left - num_rows


def read_file(path: Path, card: EncoderCard, num_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file, which may come from anybody.

    Raises: FetchError if they are not ``num_rows`` passages with vectors of this encoder's dimension.
    """
    columns = schema(card)
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow
            needed = [name for name in columns.names if name != "fields" or name in present.names]  # older have none
            if present.names != needed or present.types != [columns.field(name).type for name in needed]:
                raise _unusable(path, f"needed columns {', '.join(needed)}, vectors of {card.dimension}")
            if file.metadata.num_rows != num_rows:
                raise _unusable(path, f"{file.metadata.num_rows} rows, its listing says {num_rows}")
            for batch in file.iter_batches(ROWS_PER_BATCH):
                batch.validate(full=True)
                whole = with_all_columns(batch, columns)
                _check(whole, path)
                yield whole
    except (pa.ArrowException, OSError) as error:
        raise _unusable(path, str(error).splitlines()[0]) from error


def _check(batch: pa.RecordBatch, path: Path) -> None:
    for column in batch.schema:
        if batch[column.name].null_count and not column.nullable:
            raise _unusable(path, f"a row without {column.name}")
    vectors = batch["vector"].flatten()
    if vectors.null_count or not np.isfinite(vectors.to_numpy(zero_copy_only=False)).all():
        raise _unusable(path, "a vector that is not finite")
    try:
        to_passages(batch)
    except ValueError as error:
        raise _unusable(path, f"fields that are not JSON, {error}") from error


def _unusable(path: Path, what: str) -> FetchError:
    return FetchError(f"{path.name} holds no passages that can be used ({what}); ask who published it")


# Push and pull


def push(
    memory: Place,
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
    storage = storage_of(memory)
    table = Table.open(storage, history.number_of(storage, version))
    num_passages = len(table)
    if not num_passages:
        raise MemoryStoreError(f"{table.path} has no passages at version {table.version}; push one that has some")
    store = open_store(destination, hub=hub)
    store.check_free()
    try:
        store.scratch_parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".latentrag-push-", dir=store.scratch_parent) as scratch:
            folder = Path(scratch) / "memory"
            folder.mkdir()  # a folder of its own, because only its owner can read the scratch
            files: list[ListedFile] = []
            for file in write_files(table, folder):
                files.append(file)
                if on_passages is not None:
                    on_passages(sum(written.num_passages for written in files), num_passages)
            listing = Listing(table.version, num_passages, table.card, tuple(files))
            (folder / LISTING).write_text(listing.to_json(), "utf-8")
            store.publish(folder, f"latentrag memory, version {table.version}, {num_passages} passages")
    except OSError as error:
        raise FetchError(
            f"{store.scratch_parent} cannot be written ({error.strerror or error}); make room, or choose another "
            "destination, or for the hub another TMPDIR"
        ) from error
    return listing


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
        scratch.mkdir(parents=True, exist_ok=True)
        listing = _fetch_listing(store, scratch)
        _check_room(listing, scratch)
        _fetch_files(store, listing, scratch, on_passages)
    except OSError as error:
        raise FetchError(f"{scratch} cannot be written ({error.strerror or error}); make room") from error
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
    sha256 = io.sha256_of_file(path)
    return None if sha256 == file.sha256 else f"sha256 {sha256}, its listing says {file.sha256}"


def _make(listing: Listing, scratch: Path, memory: Path, *, change: str) -> None:
    """The memory from files that match their listing. Raises: FetchError if they hold no memory nevertheless."""
    ids: set[str] = set()

    def all_rows() -> Iterator[pa.RecordBatch]:
        for file in listing.files:
            for batch in read_file(scratch / file.name, listing.card, file.num_passages):
                new = batch["id"].to_pylist()
                before = len(ids)
                ids.update(new)
                if len(ids) != before + len(new) or "" in ids:
                    raise FetchError(f"{file.name} has an id that is empty or comes twice; ask who published it")
                yield batch

    made = scratch / "memory.lance"
    if made.exists():  # of a pull that was killed
        shutil.rmtree(made)
    with changing(memory):
        table = Table.create(made, listing.card)
        with table.writing():
            table.commit(table.stage(all_rows()), removed_ids=(), change=change)
        if memory.exists():
            memory.rmdir()  # the empty folder
        made.rename(memory)
        io.sync_folder(memory.absolute().parent)
