"""The rows that a data file of the table holds, whichever version needs it: those of deleted passages too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latentrag.memory import files
from latentrag.memory.rows import PASSAGE_COLUMNS, to_passages
from latentrag.types import Passage

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_READ = 8_192


def ids_of_file(folder: Path, name: str) -> set[str]:
    """The ids of a data file's rows, those of deleted passages too."""
    return {key for batch in _physical(folder, name, ["id"]) for key in batch["id"].to_pylist()}


def passages_of_file(folder: Path, name: str) -> Iterator[Passage]:
    """A data file's rows, those of deleted passages too."""
    for batch in _physical(folder, name, PASSAGE_COLUMNS):
        yield from to_passages(batch)


def _physical(folder: Path, name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    from lance.file import LanceFileReader

    with files.reading(folder):
        file = str(folder / name)
        present = set(LanceFileReader(file).metadata().schema.names)  # an older file has no origins
        kept = [name for name in columns if name in present]
        yield from LanceFileReader(file, columns=kept).read_all(batch_size=ROWS_PER_READ).to_batches()
