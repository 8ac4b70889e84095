"""Passages whose vectors were made elsewhere, read in batches: Parquet and Arrow files with a column of vectors, or
texts and vectors in files beside each other. Nothing pickled is opened."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from latentrag.errors import DataError, InputError
from latentrag.types import Passage

Batch = tuple[list[Passage], npt.NDArray[np.float32]]
"""Passages and their d(z), (n, D)."""

ROWS = 1_024
_IDS = ("id", "_id", "passage_id", "docid")
_TEXTS = ("text", "passage", "contents")
_VECTORS = ("embeddings", "embedding", "vector", "vectors", "emb")
_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")
_ARRAYS = (".npy", ".npz")
_INDEXES = (".faiss", ".index")


def read_source(source: Path, vectors: Path | None = None) -> tuple[int, Iterator[Batch]]:
    """What a source holds.

    Args:
        source: a Parquet file or a folder of them; a folder that datasets saved (Arrow files); a corpus as BEIR has it
            (JSON lines with _id, title, text), or the folder with its corpus.jsonl.
        vectors: .npy, .npz (one array) or a faiss index whose vectors are stored whole (Flat, HNSW over Flat), in the
            order of the passages; None: the source's own column, for JSON lines the .npy or .npz of the same name.
    Returns: the number of passages, and their batches, in order.
    Raises: InputError for a source of another kind; DataError for one that is damaged or has not a vector for each
        passage, here or while it is read.
    """
    source = _corpus_of(source)
    if not source.exists():
        raise InputError(f"no file or folder at {source}; name the passages to import")
    if source.suffix in _PICKLED:
        raise InputError(f"{source} may be pickled, which can run code when opened; save it as .npy or Parquet first")
    if source.name.endswith((".jsonl", ".jsonl.gz")):
        count, texts = _count_lines(source), _json_lines(source)
        vectors = vectors or _beside(source)
    else:
        count, texts = _tables(source, with_vectors=vectors is None)
    if vectors is None:
        return count, texts
    num_vectors, blocks = _open_vectors(vectors)
    if num_vectors != count:
        raise DataError(f"{source} has {count:,} passages, {vectors} {num_vectors:,} vectors; needed one for each")
    return count, _beside_each_other(texts, blocks)


def _corpus_of(source: Path) -> Path:
    found = [source / name for name in ("corpus.jsonl", "corpus.jsonl.gz") if (source / name).is_file()]
    return found[0] if found else source


def _beside(source: Path) -> Path:
    stem = source.name.removesuffix(".gz").removesuffix(".jsonl")
    for suffix in _ARRAYS:
        if (source.with_name(stem + suffix)).is_file():
            return source.with_name(stem + suffix)
    raise InputError(f"{source} has no vectors: there is no {stem}.npy or {stem}.npz beside it; name them by --vectors")


def _beside_each_other(texts: Iterator[Batch], blocks: Callable[[int], npt.NDArray[np.float32]]) -> Iterator[Batch]:
    for passages, _ in texts:
        yield passages, blocks(len(passages))


# Texts


def _json_lines(path: Path) -> Iterator[Batch]:
    none = np.empty((0, 0), np.float32)
    batch: list[Passage] = []
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                batch.append(_passage(row, number - 1))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(f"{path}, line {number}: no passage with _id and text ({error!r})") from error
            if len(batch) == ROWS:
                yield batch, none
                batch = []
    if batch:
        yield batch, none


def _count_lines(path: Path) -> int:
    with _opened(path) as file:
        return sum(1 for line in file if line.strip())


def _opened(path: Path) -> IO[bytes]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    file: IO[bytes] = opened(path, "rb")
    return file


def _passage(row: dict[str, Any], number: int) -> Passage:
    id_name = next((name for name in _IDS if name in row), None)
    text = row[next((name for name in _TEXTS if name in row), "text")]
    title = row.get("title") or ""
    if not isinstance(text, str) or not isinstance(title, str):
        raise TypeError("text and title")
    return Passage(str(number if id_name is None else row[id_name]), text, title, end=len(text))


# Tables


def _tables(source: Path, *, with_vectors: bool) -> tuple[int, Iterator[Batch]]:
    files = [source] if source.is_file() else sorted([*source.glob("*.parquet"), *source.glob("*.arrow")])
    known = [file for file in files if file.suffix in (".parquet", ".arrow")]
    if not known or known != files:
        raise InputError(
            f"{source} is nothing that can be imported; needed Parquet files, a folder that datasets saved, or "
            "JSON lines with .npy beside them"
        )
    try:
        count = sum(_num_rows(file) for file in files)
        _columns(_schema(files[0]).names, files[0], with_vectors=with_vectors)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(files[0], error) from error
    return count, _rows(files, with_vectors=with_vectors)


def _rows(files: list[Path], *, with_vectors: bool) -> Iterator[Batch]:
    number = 0
    for file in files:
        try:
            for batch in _record_batches(file):
                names = _columns(batch.schema.names, file, with_vectors=with_vectors)
                rows = batch.select([name for name in names.values() if name != names.get("vector")]).to_pylist()
                passages = [
                    _passage({kind: row[name] for kind, name in names.items() if name in row}, number + place)
                    for place, row in enumerate(rows)
                ]
                vectors = np.empty((0, 0), np.float32)
                if with_vectors:
                    vectors = _matrix(batch[names["vector"]], file)
                yield passages, vectors
                number += len(passages)
        except (pa.ArrowException, OSError, TypeError) as error:
            raise _damaged(file, error) from error


def _record_batches(file: Path) -> Iterator[pa.RecordBatch]:
    if file.suffix == ".parquet":
        with pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(ROWS)
        return
    with pa.memory_map(str(file)) as mapped:
        for batch in pa.ipc.open_stream(mapped):
            for start in range(0, len(batch), ROWS):
                yield batch.slice(start, ROWS)


def _num_rows(file: Path) -> int:
    if file.suffix == ".parquet":
        return int(pq.read_metadata(file).num_rows)
    with pa.memory_map(str(file)) as mapped:
        return sum(len(batch) for batch in pa.ipc.open_stream(mapped))


def _schema(file: Path) -> pa.Schema:
    if file.suffix == ".parquet":
        return pq.read_schema(file)
    with pa.memory_map(str(file)) as mapped:
        return pa.ipc.open_stream(mapped).schema


def _columns(present: list[str], file: Path, *, with_vectors: bool) -> dict[str, str]:
    """Which column holds what: id, text, title, vector."""
    wanted = {"id": _IDS, "text": _TEXTS, "title": ("title",)} | ({"vector": _VECTORS} if with_vectors else {})
    found = {
        kind: next(name for name in names if name in present)
        for kind, names in wanted.items()
        if any(name in present for name in names)
    }
    for kind in ("text", *(["vector"] if with_vectors else [])):
        if kind not in found:
            needed = " or ".join(wanted[kind])
            raise DataError(f"{file} has the columns {', '.join(present)}; needed one called {needed}")
    return found


def _matrix(column: pa.Array, file: Path) -> npt.NDArray[np.float32]:
    """A column of lists as (n, D)."""
    if column.null_count:
        raise DataError(f"{file} has a passage without a vector; needed one for each")
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or _is_fixed(column.type)):
        raise DataError(f"{file} has vectors of the type {column.type}, needed lists of numbers")
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if len(column) and len(values) % len(column):
        raise DataError(f"{file} has vectors of several lengths; needed one length")
    matrix: npt.NDArray[np.float32] = values.reshape(len(column), -1)
    return matrix


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


# Vectors in files of their own


def _open_vectors(path: Path) -> tuple[int, Callable[[int], npt.NDArray[np.float32]]]:
    """How many there are, and what gives the next n of them."""
    if path.suffix in _INDEXES:
        return _index(path)
    if path.suffix not in _ARRAYS:
        raise InputError(f"{path} holds no vectors that can be read; needed .npy, .npz or a faiss index")
    try:
        return _array(path)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise _damaged(path, error) from error


def _array(path: Path) -> tuple[int, Callable[[int], npt.NDArray[np.float32]]]:
    """A .npy file is mapped, of .npz the one array is read whole."""
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        with np.load(path, allow_pickle=False) as arrays:
            if len(arrays.files) != 1:
                raise DataError(f"{path} has the arrays {', '.join(arrays.files)}; needed one")
            array = arrays[arrays.files[0]]
    if array.dtype.kind != "f" or array.ndim != 2:
        raise DataError(f"{path} is an array {array.shape} of {array.dtype}; needed (passages, dimensions) of floats")
    done = 0

    def following(count: int) -> npt.NDArray[np.float32]:
        nonlocal done
        vectors: npt.NDArray[np.float32] = array[done : done + count].astype(np.float32)
        done += count
        return vectors

    return len(array), following


def _index(path: Path) -> tuple[int, Callable[[int], npt.NDArray[np.float32]]]:
    import faiss

    try:
        index = faiss.read_index(str(path))
        storage = faiss.downcast_index(index.storage) if isinstance(index, faiss.IndexHNSW) else index
    except RuntimeError as error:
        raise _damaged(path, error) from error
    if not isinstance(storage, faiss.IndexFlat):
        kind = type(index).__name__
        raise InputError(f"{path} is a {kind}, which does not keep vectors whole; needed Flat, or HNSW over Flat")
    done = 0

    def following(count: int) -> npt.NDArray[np.float32]:
        nonlocal done
        vectors: npt.NDArray[np.float32] = storage.reconstruct_n(done, count)
        done += count
        _ = index  # owns the storage
        return vectors

    return int(storage.ntotal), following


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({str(error).splitlines()[0] if str(error) else error!r}); fetch it again")
