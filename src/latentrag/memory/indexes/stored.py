"""An index whose vectors and passages lie on disk, in files of records; a proposer in RAM chooses which are read.

A full read of these files would cost more than the search that it protects. So every record carries a checksum of its
content, position and row id, which is verified whenever it is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentrag import io
from latentrag.errors import IndexDamagedError
from latentrag.memory.indexes.index import Hits, LiveRows, Places, Proposer, Rows, best, exact_scores, stacked
from latentrag.types import KEPT_ATTRIBUTES, Passage

if TYPE_CHECKING:
    import numpy.typing as npt

BLOCK_BYTES = 8 << 20
"""How much is read at a time when all rows are wanted."""
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class RecordFile:
    """Reads records by where they begin and end. Stays readable after the file was removed, as long as it lives."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Raises: IndexDamagedError if the file has another size; OSError."""
        self.path = path
        self._handle = os.open(path, _OPEN_FLAGS)
        weakref.finalize(self, os.close, self._handle)
        # Where reading moves the handle's position, one thread reads at a time.
        self._turn = contextlib.nullcontext() if hasattr(os, "pread") else threading.Lock()
        actual = os.fstat(self._handle).st_size
        if actual != size_bytes:
            raise IndexDamagedError(path, f"has {actual} bytes, needed {size_bytes}")

    def read(self, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> bytes:
        """The records that begin and end at these bytes, one after the other. Raises: IndexDamagedError."""
        with self._turn:
            if len(starts) > 1 and (starts[1:] == ends[:-1]).all():
                data = io.pread(self._handle, int(ends[-1] - starts[0]), int(starts[0]))
            else:
                data = self._read_scattered(starts.tolist(), (ends - starts).tolist())
        if len(data) != int((ends - starts).sum()):
            raise IndexDamagedError(self.path, "ends early")
        return data

    def _read_scattered(self, starts: list[int], sizes: list[int]) -> bytes:
        spans = list(zip(starts, sizes, strict=True))
        if hasattr(os, "posix_fadvise"):  # the disk fetches the others while the first is awaited
            for start, size in spans:
                os.posix_fadvise(self._handle, start, size, os.POSIX_FADV_WILLNEED)
        return b"".join(io.pread(self._handle, size, start) for start, size in spans)


# Vectors

_WORD_BYTES = 8
_STEP = 0x9E3779B97F4A7C15  # the golden ratio in 64 bits: its odd multiples are far apart
_POSITION = 0xD1B54A32D192ED03
_ROW = 0x8CB92BA72F3D8DD7


def vector_bytes(dimension: int) -> int:
    """Bytes a row takes on disk: D fp16 numbers, padded to words of eight bytes, and one word more, the checksum."""
    return _num_padded(dimension) * 2 + _WORD_BYTES


def _num_padded(dimension: int) -> int:
    return -(-dimension // 4) * 4


def _checksums(
    words: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64], row_ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """(n,) of (n, W) words: Σ odd constant · word + position and row id, each times its own, modulo 2⁶⁴.

    Any one wrong word changes the sum for certain, for an odd number has an inverse; so do a wrong position and a row
    id that is not the one that was written.
    """
    steps = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(_STEP) | np.uint64(1)
    places = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_POSITION)
    names = (row_ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_ROW)
    sums: npt.NDArray[np.uint64] = (words * steps).sum(axis=1, dtype=np.uint64) + places + names
    return sums


def vector_records(vectors: npt.NDArray[np.float16], row_ids: npt.NDArray[np.int64], *, first_position: int) -> bytes:
    """The records of (n, D) vectors of these rows (n,), to be appended to a file."""
    num_rows, dimension = vectors.shape
    numbers = np.zeros((num_rows, _num_padded(dimension)), "<f2")
    numbers[:, :dimension] = vectors
    words = numbers.view("<u8")
    sums = _checksums(words, np.arange(first_position, first_position + num_rows), row_ids)
    return np.column_stack([words, sums]).astype("<u8").tobytes()


class VectorFile:
    """Vectors by position.

    Attributes:
        row_ids: (N,) by position.
    """

    def __init__(self, path: Path, *, dimension: int, row_ids: npt.NDArray[np.int64]) -> None:
        """Raises: IndexDamagedError if the size is wrong; OSError."""
        self.dimension, self.row_ids = dimension, row_ids
        self._record_bytes = vector_bytes(dimension)
        self._records = RecordFile(path, len(row_ids) * self._record_bytes)

    @property
    def path(self) -> Path:
        return self._records.path

    def __len__(self) -> int:
        return len(self.row_ids)

    def read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(n, D) of the rows at these positions. Raises: IndexDamagedError."""
        starts = positions * self._record_bytes
        data = self._records.read(starts, starts + self._record_bytes)
        words = np.frombuffer(data, "<u8").reshape(len(positions), self._record_bytes // _WORD_BYTES)
        wrong = _checksums(words[:, :-1], positions, self.row_ids[positions]) != words[:, -1]
        if wrong.any():
            raise IndexDamagedError(self.path, f"is damaged in row {int(positions[int(wrong.argmax())])}")
        numbers = words[:, :-1].copy().view("<f2")  # (n, D padded)
        return np.ascontiguousarray(numbers[:, : self.dimension], dtype=np.float32)

    def blocks(self) -> Iterator[Rows]:
        """All rows in order. Raises: IndexDamagedError."""
        for positions in _blocks(len(self), self._record_bytes):
            yield Rows(self.row_ids[positions], self.read(positions).astype(np.float16))


def _blocks(num_rows: int, record_bytes: int) -> Iterator[npt.NDArray[np.int64]]:
    """All positions in order, as many at a time as BLOCK_BYTES hold."""
    step = max(1, BLOCK_BYTES // record_bytes)
    for start in range(0, num_rows, step):
        yield np.arange(start, min(start + step, num_rows))


# Passages

_CRC_BYTES = 4
TYPICAL_PASSAGE_BYTES = 1_024


def passage_records(passages: Sequence[Passage], row_ids: npt.NDArray[np.int64], *, first_position: int) -> list[bytes]:
    """The records of the passages of these rows (n,): a CRC-32, then the passage's attributes as a JSON array.

    ``fields``, the last of them, is left out where a passage has none, as it is in older files.
    """
    records = []
    for position, (passage, row_id) in enumerate(zip(passages, row_ids.tolist(), strict=True), first_position):
        names = KEPT_ATTRIBUTES if passage.fields else KEPT_ATTRIBUTES[:-1]
        values = [getattr(passage, name) for name in names]
        content = json.dumps(values, ensure_ascii=False, separators=(",", ":"), default=dict).encode()
        records.append(_crc(content, position, row_id) + content)
    return records


def _crc(content: bytes, position: int, row_id: int) -> bytes:
    where = position.to_bytes(8, "little") + row_id.to_bytes(8, "little")
    return zlib.crc32(content, zlib.crc32(where)).to_bytes(_CRC_BYTES, "little")


class PassageFile:
    """Passages by position, so that what a search found is read at once.

    The table keeps every column apart, in blocks, which suits reading many rows; a few scattered rows take it
    milliseconds, as long as a search of a million. The table stays the truth.
    """

    def __init__(self, path: Path, ends_path: Path, *, num_rows: int) -> None:
        """Args: ends_path: of the file that says where each record ends.

        Raises: IndexDamagedError if a size is wrong; OSError.
        """
        self._ends = mapped_numbers(ends_path, num_rows)
        self._records = RecordFile(path, int(self._ends[-1]))

    @property
    def path(self) -> Path:
        return self._records.path

    def read(self, positions: npt.NDArray[np.int64], row_ids: npt.NDArray[np.int64]) -> dict[int, Passage]:
        """The passages at these positions, which are those of these rows, by row id. Raises: IndexDamagedError."""
        ends: npt.NDArray[np.int64] = np.asarray(self._ends[positions])
        starts = np.where(positions > 0, self._ends[np.maximum(positions - 1, 0)], 0)
        data, begin, passages = self._records.read(starts, ends), 0, {}
        rows = zip((ends - starts).tolist(), positions.tolist(), row_ids.tolist(), strict=True)
        for size, position, row_id in rows:
            content = data[begin + _CRC_BYTES : begin + size]
            if data[begin : begin + _CRC_BYTES] != _crc(content, position, row_id):
                raise IndexDamagedError(self.path, f"is damaged in row {position}")
            passages[row_id] = Passage(*json.loads(content))
            begin += size
        return passages


def mapped_numbers(path: Path, num_numbers: int) -> npt.NDArray[np.int64]:
    """A file of int64 numbers as a memory map.

    Raises: IndexDamagedError if it has another size; FileNotFoundError.
    """
    size_bytes = path.stat().st_size
    if size_bytes != 8 * num_numbers:
        raise IndexDamagedError(path, f"has {size_bytes} bytes, needed {8 * num_numbers}")
    return np.memmap(path, dtype="<i8", mode="r", shape=(num_numbers,))


# The index


@dataclass(frozen=True, slots=True)
class StoredIndex:
    """Candidates from ``proposer``, rescored from ``vectors``.

    Candidates are proposed query by query: for a batch faiss may multiply matrices, whose last bits would let the
    other queries of the batch decide between near ties.

    Attributes:
        places: positions by row id.
        texts: the passages of the same rows.
    """

    kind: str
    proposer: Proposer
    vectors: VectorFile
    places: Places
    texts: PassageFile
    live: LiveRows | None = None

    @property
    def row_ids(self) -> npt.NDArray[np.int64]:
        return self.vectors.row_ids

    def __len__(self) -> int:
        return len(self.vectors) if self.live is None else self.live.count

    def without(self, row_ids: npt.NDArray[np.int64]) -> StoredIndex:
        return replace(self, live=LiveRows.of(len(self.row_ids), self.places.of_rows(row_ids)))

    def only(self, row_ids: npt.NDArray[np.int64]) -> StoredIndex:
        kept = self.places.of_rows(row_ids[self.places.known(row_ids)])
        return replace(self, live=LiveRows.alone(len(self.row_ids), kept))

    def rows(self, row_ids: npt.NDArray[np.int64]) -> Rows:
        """Some of its rows, by their ids. Raises: IndexDamagedError."""
        return Rows(row_ids, self.vectors.read(self.places.of_rows(row_ids)).astype(np.float16))

    def vectors_of(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Raises: IndexDamagedError if one is not what was written."""
        return self.vectors.read(self.places.of_rows(row_ids))

    def passages(self, row_ids: npt.NDArray[np.int64]) -> dict[int, Passage]:
        """Raises: IndexDamagedError if one is not what was written."""
        stored = row_ids[self.places.known(row_ids)]
        return self.texts.read(self.places.of_rows(stored), stored)

    def verify_records(self) -> None:
        """Read every vector and every passage. Raises: IndexDamagedError if one is not what was written."""
        for _ in self.vectors.blocks():
            pass
        for positions in _blocks(len(self.row_ids), TYPICAL_PASSAGE_BYTES):
            self.texts.read(positions, self.row_ids[positions])

    def search(self, q: npt.NDArray[np.float32], k: int) -> Hits:
        """The K rows of largest d·q among those proposed. q: (B, D) float32, B ≥ 1; 1 ≤ k ≤ len(self).

        Raises: IndexDamagedError if a vector read is not what was written.
        """
        q = np.ascontiguousarray(q, dtype=np.float32)
        return stacked([self._search_one(one, k) for one in q])

    def _search_one(self, q: npt.NDArray[np.float32], k: int) -> Hits:
        if self.live is not None and self.live.are_few:
            positions = np.flatnonzero(self.live.mask)
            vectors = self.vectors.read(positions)
            return best(self.row_ids[positions], vectors, exact_scores(vectors, q), k)
        num = min(self.proposer.num_rescored(k), len(self))
        scaled = q / (np.abs(q).max() or 1.0)  # which rows are best is the same, and squares stay finite
        positions = np.sort(self.proposer.propose(scaled, num, self.live))
        if len(positions) < k:  # in a graph, say, some rows may be linked from nowhere
            positions = self._scan(q, k)
        vectors = self.vectors.read(positions)  # (candidates, D)
        return best(self.row_ids[positions], vectors, exact_scores(vectors, q), k)

    def _scan(self, q: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
        """Positions of the K best, from every vector on disk."""
        blocks = [exact_scores(block.vectors.astype(np.float32), q) for block in self.vectors.blocks()]
        scores = np.concatenate(blocks)  # (N,)
        if self.live is not None:
            scores[~self.live.mask] = -np.inf
        return np.lexsort((np.arange(len(scores)), -scores))[:k]
