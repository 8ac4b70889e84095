"""The rows of a memory's table: its columns, passages as rows and rows as passages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from latentrag.errors import DataError
from latentrag.memory.manifest import Manifest
from latentrag.types import Passage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

MANIFEST_KEY = b"latentrag.manifest"
PASSAGE_COLUMNS = ["id", "text", "title", "source", "start", "end", "page", "origin"]


def schema(manifest: Manifest) -> pa.Schema:
    """The columns; vectors are fp16, offsets and page as in ``Passage``. The manifest is their metadata.

    A memory that is older than `index sync` has no ``origin`` until its first sync; null there means added by hand.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("title", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("start", pa.int64(), nullable=False),
            pa.field("end", pa.int64(), nullable=False),
            pa.field("page", pa.int32(), nullable=True),
            pa.field("vector", pa.list_(pa.float16(), manifest.dimension), nullable=False),
            pa.field("origin", pa.string(), nullable=True),
        ],
        metadata={MANIFEST_KEY: manifest.to_json().encode()},
    )


def to_record_batch(
    columns: pa.Schema, passages: Sequence[Passage], vectors: npt.NDArray[np.float16]
) -> pa.RecordBatch:
    """Rows with these columns. vectors: (n, D). Raises: DataError for a value that its column cannot hold."""
    import pyarrow as pa

    names = [name for name in columns.names if name != "vector"]
    try:
        arrays = {
            name: pa.array([getattr(passage, name) for passage in passages], columns.field(name).type) for name in names
        }
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        raise DataError(
            f"one of {passages[0].id!r} to {passages[-1].id!r} cannot be stored ({error}); correct it"
        ) from error
    values = pa.array(vectors.ravel())
    arrays["vector"] = pa.FixedSizeListArray.from_arrays(values, columns.field("vector").type.list_size)
    return pa.RecordBatch.from_arrays([arrays[name] for name in columns.names], schema=columns)


def to_passages(rows: pa.RecordBatch | pa.Table) -> list[Passage]:
    """The passages of these rows; one without an origin was added by hand."""
    *names, origin = PASSAGE_COLUMNS
    columns = [rows[name].to_pylist() for name in names]
    origins = rows[origin].to_pylist() if origin in rows.schema.names else [None] * rows.num_rows
    columns.append([each or "" for each in origins])
    return [Passage(*values) for values in zip(*columns, strict=True)]


def gathered(batches: Iterable[pa.RecordBatch], num_rows: int) -> Iterator[list[pa.RecordBatch]]:
    """Groups of batches with at least ``num_rows`` rows each; the last may have fewer."""
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(map(len, group)) >= num_rows:
            yield group
            group = []
    if group:
        yield group
