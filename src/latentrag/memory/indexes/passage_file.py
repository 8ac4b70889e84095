"""The passages beside an index, so that what was found is read at once: one record a row, each with its checksum.

The table keeps every column apart, in blocks, which suits who reads many rows; a few rows from anywhere take it
milliseconds, as long as a search of a million. A record is four bytes, the CRC-32 of position, row id and the rest,
and the passage's fields as a JSON array. The table stays the truth: nothing is read here that it has not, and what is
damaged here is read there.
"""

from __future__ import annotations

import json
import os
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np

from latentrag.errors import IndexDamagedError
from latentrag.types import Passage

if TYPE_CHECKING:
    import numpy.typing as npt

_CHECKSUM_BYTES = 4


def record(passage: Passage, position: int, row_id: int) -> bytes:
    """A row of the file."""
    fields = json.dumps(astuple(passage), ensure_ascii=False, separators=(",", ":")).encode()
    return _checksum(fields, position, row_id) + fields


def _checksum(fields: bytes, position: int, row_id: int) -> bytes:
    where = position.to_bytes(8, "little") + row_id.to_bytes(8, "little")
    return zlib.crc32(fields, zlib.crc32(where)).to_bytes(_CHECKSUM_BYTES, "little")


class PassageFileWriter:
    """Appends rows, and where each ends. A context manager, which closes the files."""

    def __init__(self, path: Path, ends_path: Path) -> None:
        self._num_rows = self._num_bytes = 0
        self._file: BinaryIO = path.open("xb")
        try:
            self._ends: BinaryIO = ends_path.open("xb")
        except OSError:
            self._file.close()
            raise

    def append(self, row_ids: npt.NDArray[np.int64], passages: Sequence[Passage]) -> None:
        """row_ids: (n,), of the n passages."""
        each = zip(passages, row_ids.tolist(), strict=True)
        records = [record(passage, self._num_rows + i, row_id) for i, (passage, row_id) in enumerate(each)]
        ends = self._num_bytes + np.cumsum([len(one) for one in records], dtype=np.int64)
        self._file.write(b"".join(records))
        self._ends.write(ends.astype("<i8").tobytes())
        self._num_rows += len(records)
        self._num_bytes = int(ends[-1]) if records else self._num_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file, self._ends:  # both are closed, whichever cannot be written
            pass


@dataclass(frozen=True, eq=False)
class PassageFile:
    """Passages by position. It stays readable after its folder was removed, as long as this object lives.

    Attributes:
        ends: (N,) where each record ends; a memory map.
    """

    path: Path
    ends: npt.NDArray[np.int64]
    descriptor: int

    @classmethod
    def open(cls, path: Path, ends_path: Path, *, num_rows: int) -> PassageFile:
        """Raises: IndexDamagedError if a size is wrong; OSError."""
        if ends_path.stat().st_size != 8 * num_rows:
            raise IndexDamagedError(ends_path, f"has {ends_path.stat().st_size} bytes, needed {8 * num_rows}")
        ends = np.memmap(ends_path, dtype="<i8", mode="r", shape=(num_rows,))
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        opened = cls(path, ends, descriptor)
        weakref.finalize(opened, os.close, descriptor)
        found, needed = os.fstat(descriptor).st_size, int(ends[-1])
        if found != needed:
            raise IndexDamagedError(path, f"has {found} bytes, needed {needed}")
        return opened

    def read(self, positions: npt.NDArray[np.int64], row_ids: npt.NDArray[np.int64]) -> dict[int, Passage]:
        """The passages at these positions, which are those of these rows, by row id. Raises: IndexDamagedError."""
        ends = self.ends[positions].tolist()
        starts = np.where(positions > 0, self.ends[np.maximum(positions - 1, 0)], 0).tolist()
        rows = zip(self._records(starts, ends), positions.tolist(), row_ids.tolist(), strict=True)
        return {row_id: self._passage(data, position, row_id) for data, position, row_id in rows}

    def _records(self, starts: list[int], ends: list[int]) -> list[bytes]:
        """As many bytes of each as there are."""
        if starts[1:] == ends[:-1] and starts:  # one after the other
            data = os.pread(self.descriptor, ends[-1] - starts[0], starts[0])
            return [data[start - starts[0] : end - starts[0]] for start, end in zip(starts, ends, strict=True)]
        spans = [(start, end - start) for start, end in zip(starts, ends, strict=True)]
        if hasattr(os, "posix_fadvise"):  # the disk works on all of them while the first is awaited
            for start, size in spans:
                os.posix_fadvise(self.descriptor, start, size, os.POSIX_FADV_WILLNEED)
        return [os.pread(self.descriptor, size, start) for start, size in spans]

    def _passage(self, data: bytes, position: int, row_id: int) -> Passage:
        checksum, fields = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
        if checksum != _checksum(fields, position, row_id):
            raise IndexDamagedError(self.path, f"is damaged in row {position}")
        return Passage(*json.loads(fields))
