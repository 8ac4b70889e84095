"""Rows of a memory in Parquet files: typed columns, no code, readable by anything that reads Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentrag.errors import FetchError
from latentrag.memory.manifest import Manifest
from latentrag.memory.rows import schema
from latentrag.memory.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_FILE = 65_536
"""About 130 MB at 768 dimensions and 100 words."""
ROWS_PER_BATCH = 8_192


def write_files(table: Table, folder: Path) -> Iterator[tuple[Path, int]]:
    """Write every row of a version, in order; yields each finished file and its number of rows.

    Deleted rows are not in a version's rows, and nothing else of the table is written. The same rows make the same
    bytes, so that pushing twice sends nothing twice.
    """
    import pyarrow.parquet as pq

    columns = schema(table.manifest).remove_metadata()
    batches = _sized(table, columns)
    batch = next(batches, None)
    i = 0
    while batch is not None:
        path, num_rows = folder / f"{i}.parquet", 0
        with pq.ParquetWriter(path, columns, compression="zstd", use_dictionary=["source", "origin"]) as writer:
            while batch is not None and num_rows < ROWS_PER_FILE:
                writer.write_batch(batch)
                num_rows += len(batch)
                batch = next(batches, None)
        yield path, num_rows
        i += 1


def read_file(path: Path, manifest: Manifest, num_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file, which may come from anybody.

    Raises: FetchError if they are not ``num_rows`` passages with vectors of this manifest's dimension.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = schema(manifest)
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow
            if found.names != columns.names or found.types != columns.types:
                raise _wrong(path, f"needed columns {', '.join(columns.names)}, vectors of {manifest.dimension}")
            if file.metadata.num_rows != num_rows:
                raise _wrong(path, f"{file.metadata.num_rows} rows, its listing says {num_rows}")
            for batch in file.iter_batches(ROWS_PER_BATCH):
                batch.validate(full=True)
                _check(batch, columns, path)
                yield batch.cast(columns)
    except (pa.ArrowException, OSError) as error:
        raise _wrong(path, str(error).splitlines()[0]) from error


def _sized(table: Table, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Every row, in batches that end where a file does."""
    import pyarrow as pa

    pending: list[pa.RecordBatch] = []
    for batch in table.record_batches():
        pending.append(_with_all(batch, columns))
        while sum(map(len, pending)) >= ROWS_PER_BATCH:
            rows = pa.Table.from_batches(pending).combine_chunks()
            yield rows[:ROWS_PER_BATCH].to_batches()[0]
            pending = rows[ROWS_PER_BATCH:].to_batches()
    if sum(map(len, pending)):
        yield pa.Table.from_batches(pending).combine_chunks().to_batches()[0]


def _with_all(batch: pa.RecordBatch, columns: pa.Schema) -> pa.RecordBatch:
    """The batch with all columns; a memory that was never synced may lack ``origin``."""
    import pyarrow as pa

    arrays = [
        batch[name] if name in batch.schema.names else pa.nulls(len(batch), columns.field(name).type)
        for name in columns.names
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def _check(batch: pa.RecordBatch, columns: pa.Schema, path: Path) -> None:
    for name in columns.names:
        if batch[name].null_count and not columns.field(name).nullable:
            raise _wrong(path, f"a row without {name}")
    vectors = batch["vector"].flatten()
    if vectors.null_count or not np.isfinite(vectors.to_numpy(zero_copy_only=False)).all():
        raise _wrong(path, "a vector that is not finite")


def _wrong(path: Path, what: str) -> FetchError:
    return FetchError(f"{path.name} holds no passages that can be used ({what}); ask who published it")
