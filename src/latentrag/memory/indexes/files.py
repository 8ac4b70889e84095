"""Index files in MEMORY/_indexes: how they are published, found, trusted and thrown away.

A folder of its own holds each index:

    index.json      what it is of (version, encoder, fragments, parameters), sizes and checksums
    index.faiss     what proposes candidates; beside it with ivf-rabitq bonuses.f32, and in newer ones effort.json
    row_ids.i64     row id of each position
    vectors.f16     what they are rescored from
    passages.json   what is handed out, and passage_ends.i64, where each of them ends; older indexes have neither

It is made under a scratch name, flushed to the disk, and renamed when it is whole. Nothing in it is needed to read the
memory: whoever finds it missing or damaged builds it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentrag.errors import IndexDamagedError, MemoryStoreError
from latentrag.io import sha256_of_file, sync_folder, sync_tree
from latentrag.memory.files import has_version
from latentrag.memory.indexes.changes import Fragment
from latentrag.types import IndexKind

if TYPE_CHECKING:
    import numpy.typing as npt

FOLDER = "_indexes"
FORMAT = 1
DESCRIPTION = "index.json"
ROW_IDS, VECTORS = "row_ids.i64", "vectors.f16"
PASSAGES, PASSAGE_ENDS = "passages.json", "passage_ends.i64"
LOCK = ".lock"
SCRATCH = ".scratch-"
STORED_KINDS = ("sq8", "ivf-rabitq", "hnsw")
LARGEST_DESCRIPTION = 64 << 20


@dataclass(frozen=True, slots=True)
class Description:
    """What an index was made from.

    Attributes:
        version: of the table.
        fingerprint: of the passage encoder.
        parameters: of its kind, as numbers.
        fragments: of the version, in the order of the rows.
    """

    kind: IndexKind
    version: int
    fingerprint: str
    dimension: int
    num_rows: int
    parameters: dict[str, int]
    fragments: list[Fragment]

    @property
    def name(self) -> str:
        """Of its folder: equal descriptions, equal names."""
        digest = hashlib.sha256(_canonical(asdict(self))).hexdigest()
        return f"{self.kind}-{self.version}-{digest[:12]}"


@dataclass(frozen=True, slots=True)
class Published:
    """An index that is there.

    Attributes:
        files: name → (size in bytes, SHA-256; "" for those whose rows carry their own).
        asked_ns: when it was last asked for, in the file system's time.
    """

    folder: Path
    description: Description
    files: dict[str, tuple[int, str]]
    asked_ns: int

    @property
    def num_bytes(self) -> int:
        """On disk."""
        return sum(size for size, _ in self.files.values())

    @property
    def ram_bytes(self) -> int:
        """Of the files that are read whole."""
        return sum(
            size for name, (size, _) in self.files.items() if name not in {ROW_IDS, VECTORS, PASSAGES, PASSAGE_ENDS}
        )


def find(memory: Path) -> tuple[list[Published], list[IndexDamagedError]]:
    """The indexes of a memory, the one last asked for first, and what was found damaged. Other folders are left."""
    found: list[Published] = []
    damaged: list[IndexDamagedError] = []
    for folder in sorted((memory / FOLDER).glob("*-*-*/")):
        if folder.name.startswith("."):
            continue
        try:
            found.append(_described(folder))
        except FileNotFoundError:
            continue  # thrown away at this moment by somebody else, or nothing of ours
        except IndexDamagedError as error:
            damaged.append(error)
    return sorted(found, key=lambda each: each.asked_ns, reverse=True), damaged


def _described(folder: Path) -> Published:
    file = folder / DESCRIPTION
    status = file.stat()
    if status.st_size > LARGEST_DESCRIPTION:
        raise IndexDamagedError(file, "is too large")
    try:
        record = json.loads(file.read_bytes())
        checksum = record.pop("checksum")
        whole = checksum == hashlib.sha256(_canonical(record)).hexdigest() and record.pop("format") == FORMAT
        files = {name: (int(size), str(digest)) for name, (size, digest) in record.pop("files").items()}
        pieces = [Fragment(tuple(names), deletions, rows) for names, deletions, rows in record.pop("fragments")]
        description = Description(**record, fragments=pieces)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IndexDamagedError(file, "is damaged, or of another format") from error
    if not whole or description.kind not in STORED_KINDS or not _are_names(files):
        raise IndexDamagedError(file, "is damaged, or of another format")
    return Published(folder, description, files, status.st_mtime_ns)


def _are_names(names: Iterable[str]) -> bool:
    """Of files in the folder itself, those that every index has among them."""
    given = set(names)
    has_passages = len(given & {PASSAGES, PASSAGE_ENDS})
    return {ROW_IDS, VECTORS} <= given and has_passages != 1 and all(name == Path(name).name for name in given)


def verify(published: Published) -> None:
    """Check sizes and checksums, before anything is parsed.

    Raises: IndexDamagedError; FileNotFoundError if it was thrown away meanwhile.
    """
    for name, (size, digest) in published.files.items():
        file = published.folder / name
        found = file.stat().st_size
        if found != size:
            raise IndexDamagedError(file, f"has {found} bytes, needed {size}")
        if digest and sha256_of_file(file) != digest:
            raise IndexDamagedError(file, "has the wrong checksum")


def row_ids(published: Published) -> npt.NDArray[np.int64]:
    """(N,) by position; a memory map. Their checksum is verified by ``verify`` only.

    Raises: IndexDamagedError; FileNotFoundError if it was thrown away meanwhile.
    """
    file, num_rows = published.folder / ROW_IDS, published.description.num_rows
    if file.stat().st_size != 8 * num_rows:
        raise IndexDamagedError(file, f"has {file.stat().st_size} bytes, needed {8 * num_rows}")
    return np.memmap(file, dtype="<i8", mode="r", shape=(num_rows,))


@contextmanager
def publishing(memory: Path, description: Description) -> Iterator[Path]:
    """A scratch folder to write the files into; it becomes the index when all went well, and vanishes if not.

    Older indexes of the same kind are thrown away then. Call it with ``building`` held.

    Raises: MemoryStoreError if the place cannot be written.
    """
    root = memory / FOLDER
    try:
        scratch = root / f"{SCRATCH}{description.name}"
        scratch.mkdir()
        try:
            # Looked for once the scratch is there: who removes versions for good removes it afterwards.
            if not has_version(memory, description.version):
                raise MemoryStoreError(f"version {description.version} of {memory} is gone; build the index of another")
            yield scratch
            _finish(scratch, description)
            target = root / description.name
            if target.exists():
                discard(target)
            scratch.rename(target)
            sync_folder(root)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise _unwritable(root, error) from error
    for other in find(memory)[0]:
        if other.description.kind == description.kind and other.folder != target:
            discard(other.folder)


def _unwritable(root: Path, error: OSError) -> MemoryStoreError:
    return MemoryStoreError(
        f"{root} cannot be written ({error.strerror or error}); make room or get the right to write there, "
        "or search with the index flat"
    )


def _finish(scratch: Path, description: Description) -> None:
    """Write the description, and have the disk keep everything."""
    files: dict[str, tuple[int, str]] = {}
    for file in sorted(scratch.iterdir()):
        has_its_own = file.name in {VECTORS, PASSAGES}
        files[file.name] = (file.stat().st_size, "" if has_its_own else sha256_of_file(file))
    record: dict[str, Any] = {"format": FORMAT, **asdict(description), "files": files}
    record["checksum"] = hashlib.sha256(_canonical(record)).hexdigest()
    (scratch / DESCRIPTION).write_bytes(_canonical(record))
    sync_tree(scratch)


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


@contextmanager
def building(memory: Path) -> Iterator[None]:
    """One builder at a time, in this and other processes; others wait. What a killed one left is removed.

    Raises: MemoryStoreError if the place cannot be written.
    """
    import fcntl

    root = memory / FOLDER
    try:
        if not root.exists():
            root.mkdir(exist_ok=True)
            sync_folder(memory)
        lock = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _unwritable(root, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however that ends
        for left in root.glob(f"{SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(lock)


def ask_for(published: Published) -> None:
    """Prefer it to indexes of other kinds, as one just built."""
    with contextlib.suppress(OSError):  # where it may not be written the order stays as it is
        os.utime(published.folder / DESCRIPTION)


def discard(folder: Path) -> None:
    """Throw an index away, at once for all who look for it. One that may not be removed is left."""
    gone = folder.with_name(f"{SCRATCH}{folder.name}-{os.getpid()}")
    with contextlib.suppress(OSError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def discard_all(memory: Path) -> None:
    """Throw away every index of a memory, with the vectors in it."""
    if (memory / FOLDER).is_dir():
        with building(memory):
            for folder in (memory / FOLDER).glob("*-*-*/"):
                discard(folder)
