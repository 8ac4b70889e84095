"""The folder of a memory's indexes: how they are published, listed, trusted and thrown away.

Each index has a folder of its own in it:

    index.json      what it was made from (version, encoder, fragments, parameters), sizes and checksums
    row_ids.i64     row id of each position
    vectors.f16     the vectors that candidates are rescored from
    passages.json   the passages, and passage_ends.i64, where the record of each ends
    effort.json     how thoroughly it has to be searched, and the recall that was measured
    index.faiss     what proposes candidates, with other files of the kind's own

It is made under a scratch name, forced to the disk, and renamed when it is whole. Nothing in it is needed to read the
memory: an index that is missing or damaged is built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from latentrag import io
from latentrag.errors import IndexDamagedError, MemoryStoreError
from latentrag.memory.indexes.changes import Fragment

FOLDER = "_indexes"
FORMAT = 1
DESCRIPTION = "index.json"
ROW_IDS, VECTORS = "row_ids.i64", "vectors.f16"
PASSAGES, PASSAGE_ENDS = "passages.json", "passage_ends.i64"
EFFORT = "effort.json"
LOCK = ".lock"
SCRATCH = ".scratch-"
LARGEST_DESCRIPTION = 64 << 20
_OF_ROWS = {ROW_IDS, VECTORS, PASSAGES, PASSAGE_ENDS}
_WITH_CHECKSUMS_INSIDE = {VECTORS, PASSAGES}


@dataclass(frozen=True, slots=True)
class Description:
    """What an index was made from.

    Attributes:
        version: of the table.
        fingerprint: of the passage encoder.
        parameters: of its kind, as numbers.
        fragments: of the version, in the order of the rows.
    """

    kind: str
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
        files: name → (size in bytes, SHA-256; "" for files whose records carry checksums of their own).
        preferred_ns: when it was last built or asked for, in the file system's time.
    """

    folder: Path
    description: Description
    files: dict[str, tuple[int, str]]
    preferred_ns: int

    @property
    def num_bytes(self) -> int:
        """On disk."""
        return sum(size for size, _ in self.files.values())

    @property
    def ram_bytes(self) -> int:
        """Of the files that are read whole."""
        return sum(size for name, (size, _) in self.files.items() if name not in _OF_ROWS)

    def verify(self) -> None:
        """Check sizes and checksums, before anything is parsed.

        Raises: IndexDamagedError; FileNotFoundError if it was thrown away meanwhile.
        """
        for name, (size, digest) in self.files.items():
            file = self.folder / name
            actual = file.stat().st_size
            if actual != size:
                raise IndexDamagedError(file, f"has {actual} bytes, needed {size}")
            if digest and io.sha256_of_file(file) != digest:
                raise IndexDamagedError(file, "has the wrong checksum")

    def prefer(self) -> None:
        """Prefer it to the others from now on, as if it had just been built."""
        with contextlib.suppress(OSError):  # where it may not be written the order stays as it is
            os.utime(self.folder / DESCRIPTION)


@dataclass(frozen=True, slots=True)
class IndexFolder:
    """Where the indexes of one memory lie, on a disk: in the memory, or in a folder elsewhere that no other memory
    uses."""

    path: Path

    @classmethod
    def of(cls, local: Path, elsewhere: Path | None = None) -> IndexFolder:
        """The usual one, in the memory or its local folder, unless they lie elsewhere."""
        return cls(elsewhere or local / FOLDER)

    def indexes(self) -> tuple[list[Published], list[IndexDamagedError]]:
        """The indexes, the preferred one first, and those whose description is damaged. Skips other folders."""
        published: list[Published] = []
        damaged: list[IndexDamagedError] = []
        for folder in self._folders():
            try:
                published.append(_read_description(folder))
            except FileNotFoundError:
                continue  # thrown away at this moment by somebody else, or nothing of ours
            except IndexDamagedError as error:
                damaged.append(error)
        return sorted(published, key=lambda index: index.preferred_ns, reverse=True), damaged

    def _folders(self) -> list[Path]:
        """Those that hold an index: others are not ours."""
        described = (file.parent for file in self.path.glob(f"*-*-*/{DESCRIPTION}"))
        return sorted(path for path in described if not path.name.startswith("."))

    @contextmanager
    def building(self) -> Iterator[None]:
        """Exclusive right to change the folder; waits for other threads and processes. Removes what a killed one left.

        Raises: MemoryStoreError if the folder cannot be written.
        """
        try:
            if not self.path.exists():
                self.path.mkdir(parents=True, exist_ok=True)
                io.sync_folder(self.path.parent)
            (self.path / LOCK).touch()
        except OSError as error:
            raise self._unwritable(error) from error
        with io.exclusive(self.path / LOCK, wait=True):
            for scratch in self.path.glob(f"{SCRATCH}*"):
                shutil.rmtree(scratch, ignore_errors=True)
            yield

    @contextmanager
    def publishing(self, description: Description) -> Iterator[Path]:
        """A scratch folder to write the files into; it becomes the index if the block ends without an error.

        Use it within ``building``. Raises: MemoryStoreError if the folder cannot be written.
        """
        try:
            scratch = self.path / f"{SCRATCH}{description.name}"
            scratch.mkdir()
            try:
                yield scratch
                _write_description(scratch, description)
                io.sync_tree(scratch)
                target = self.path / description.name
                if target.exists():
                    discard(target)
                scratch.rename(target)
                io.sync_folder(self.path)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def discard_all(self) -> None:
        """Throw away every index, with the vectors and passages in it."""
        if self.path.is_dir():
            with self.building():
                for folder in self._folders():
                    discard(folder)

    def _unwritable(self, error: OSError) -> MemoryStoreError:
        return MemoryStoreError(
            f"{self.path} cannot be written ({error.strerror or error}); make room or get the right to write there, "
            "or search with the index flat"
        )


def discard(folder: Path) -> None:
    """Throw an index away, for all readers at once. One that may not be removed is left."""
    scratch = folder.with_name(f"{SCRATCH}{folder.name}-{os.getpid()}")
    with contextlib.suppress(OSError):
        folder.rename(scratch)
    shutil.rmtree(scratch, ignore_errors=True)


def _read_description(folder: Path) -> Published:
    file = folder / DESCRIPTION
    status = file.stat()
    if status.st_size > LARGEST_DESCRIPTION:
        raise IndexDamagedError(file, "is too large")
    try:
        record = json.loads(file.read_bytes())
        checksum = record.pop("checksum")
        whole = checksum == hashlib.sha256(_canonical(record)).hexdigest() and record.pop("format") == FORMAT
        files = {name: (int(size), str(digest)) for name, (size, digest) in record.pop("files").items()}
        fragments = [Fragment(tuple(names), deletions, rows) for names, deletions, rows in record.pop("fragments")]
        description = Description(**record, fragments=fragments)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IndexDamagedError(file, "is damaged, or of another format") from error
    are_here = all(name == Path(name).name for name in files)  # in the folder itself
    if not whole or not files.keys() >= _OF_ROWS or not are_here:
        raise IndexDamagedError(file, "is damaged, or of another format")
    return Published(folder, description, files, status.st_mtime_ns)


def _write_description(scratch: Path, description: Description) -> None:
    files: dict[str, tuple[int, str]] = {}
    for file in sorted(scratch.iterdir()):
        digest = "" if file.name in _WITH_CHECKSUMS_INSIDE else io.sha256_of_file(file)
        files[file.name] = (file.stat().st_size, digest)
    record = {"format": FORMAT, **asdict(description), "files": files}
    record["checksum"] = hashlib.sha256(_canonical(record)).hexdigest()
    (scratch / DESCRIPTION).write_bytes(_canonical(record))


def _canonical(record: dict[str, object]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
