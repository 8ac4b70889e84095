"""The fp16 vectors beside an index, from which candidates are rescored: one record a row, each with its checksum.

A record is the D numbers, padded with zeros to whole words of eight bytes, and one word more: the checksum. A full
read of the file would cost more than the search it protects, so every record is checked when it is read.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np

from latentrag.errors import IndexDamagedError
from latentrag.memory.indexes.protocol import Places, Rows

if TYPE_CHECKING:
    import numpy.typing as npt

WORD_BYTES = 8
BLOCK_BYTES = 8 << 20
"""What is read at a time when all rows are wanted."""

_STEP = 0x9E3779B97F4A7C15  # the golden ratio in 64 bits: its odd multiples are far apart
_PLACE = 0xD1B54A32D192ED03
_ROW = 0x8CB92BA72F3D8DD7


def record_bytes(dimension: int) -> int:
    """Bytes a row takes on disk."""
    return _padded(dimension) * 2 + WORD_BYTES


def _padded(dimension: int) -> int:
    """Numbers of a record: D and what fills the last word."""
    return -(-dimension // 4) * 4


def _checksums(
    words: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64], row_ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """(n,) of (n, W) words: Σ odd constant · word + position and row id, each times its own, modulo 2⁶⁴.

    Any one wrong word changes the sum for certain, for an odd number has an inverse; so do a wrong place and a row id
    that is not the one that was written.
    """
    steps = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(_STEP) | np.uint64(1)
    places = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_PLACE)
    names = (row_ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_ROW)
    sums: npt.NDArray[np.uint64] = (words * steps).sum(axis=1, dtype=np.uint64) + places + names
    return sums


class VectorFileWriter:
    """Appends rows. A context manager, which closes the file."""

    def __init__(self, path: Path, dimension: int) -> None:
        self.num_rows = 0
        self._dimension = dimension
        self._file: BinaryIO = path.open("xb")

    def append(self, row_ids: npt.NDArray[np.int64], vectors: npt.NDArray[np.float16]) -> None:
        """row_ids: (n,); vectors: (n, D)."""
        numbers = np.zeros((len(vectors), _padded(self._dimension)), "<f2")
        numbers[:, : self._dimension] = vectors
        words = numbers.view("<u8")
        positions = np.arange(self.num_rows, self.num_rows + len(vectors))
        sums = _checksums(words, positions, row_ids)
        self._file.write(np.column_stack([words, sums]).astype("<u8").tobytes())
        self.num_rows += len(vectors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


@dataclass(frozen=True, eq=False)
class VectorFile:
    """Rows by position. It stays readable after its folder was removed, as long as this object lives.

    Attributes:
        places: of the rows; their ids are a memory map.
    """

    path: Path
    dimension: int
    places: Places
    descriptor: int

    @classmethod
    def open(cls, path: Path, *, dimension: int, row_ids: npt.NDArray[np.int64]) -> VectorFile:
        """Raises: IndexDamagedError if the size is wrong; OSError."""
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        opened = cls(path, dimension, Places.of(row_ids), descriptor)
        weakref.finalize(opened, os.close, descriptor)
        found, needed = os.fstat(descriptor).st_size, len(row_ids) * record_bytes(dimension)
        if found != needed:
            raise IndexDamagedError(path, f"has {found} bytes, needed {needed}")
        return opened

    @property
    def row_ids(self) -> npt.NDArray[np.int64]:
        """(N,) by position."""
        return self.places.row_ids

    def __len__(self) -> int:
        return len(self.row_ids)

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(n, D) of the rows at these positions. Raises: IndexDamagedError."""
        size = record_bytes(self.dimension)
        if len(positions) > 1 and (np.diff(positions) == 1).all():  # one after the other
            return self._checked(os.pread(self.descriptor, len(positions) * size, int(positions[0]) * size), positions)
        offsets = (positions * size).tolist()
        if hasattr(os, "posix_fadvise"):  # the disk works on all of them while the first is awaited
            for offset in offsets:
                os.posix_fadvise(self.descriptor, offset, size, os.POSIX_FADV_WILLNEED)
        return self._checked(b"".join(os.pread(self.descriptor, size, offset) for offset in offsets), positions)

    def blocks(self) -> Iterator[Rows]:
        """All rows in order. Raises: IndexDamagedError."""
        size = record_bytes(self.dimension)
        step = max(1, BLOCK_BYTES // size)
        for start in range(0, len(self), step):
            positions = np.arange(start, min(start + step, len(self)))
            data = os.pread(self.descriptor, len(positions) * size, start * size)
            yield Rows(self.row_ids[positions], self._checked(data, positions).astype(np.float16))

    def _checked(self, data: bytes, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        size = record_bytes(self.dimension)
        if len(data) != len(positions) * size:
            raise IndexDamagedError(self.path, "ends early")
        words = np.frombuffer(data, "<u8").reshape(len(positions), size // WORD_BYTES)
        wrong = _checksums(words[:, :-1], positions, self.row_ids[positions]) != words[:, -1]
        if wrong.any():
            raise IndexDamagedError(self.path, f"is damaged in row {int(positions[int(wrong.argmax())])}")
        numbers = words[:, :-1].copy().view("<f2")  # (n, D padded)
        return np.ascontiguousarray(numbers[:, : self.dimension], dtype=np.float32)
