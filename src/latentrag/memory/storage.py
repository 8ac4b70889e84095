"""Where a memory lies: who may write, when a file is safe, what each committed file held, how a version is published.

Lance writes files and renames them, and leaves it to the operating system when they reach the disk. Everything that a
commit consists of is forced there by us before the commit is recorded; the record acknowledges it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from latentrag import io
from latentrag.errors import InputError, MemoryStoreError
from latentrag.memory.object_path import Folder, ObjectPath, is_object_address

if TYPE_CHECKING:
    import lance

CHECKSUMS_FILE = "_checksums.jsonl"
"""One line of JSON for each file of the table, in the order of the commits. A version is acknowledged when the line
of its manifest is on the disk."""
LOCK_FILE = "_writer.lock"
VERSIONS = "_versions"
TABLE_FOLDERS = ("data", "_deletions", "_transactions", VERSIONS)
TAGS = "_refs/tags"
SCRATCH_TAG = "latentrag-unfinished"


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a file held when it was committed."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, file: Folder) -> Checksum:
        """Of the file as it is now, which is read. Raises: OSError."""
        return cls(file.stat().st_size, io.sha256_of_file(file))


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that writes, or that died while writing.

    Attributes:
        since: UTC, ISO 8601.
        boot: of the kernel under which it runs, this start of it; empty where the system does not say.
    """

    host: str
    pid: int
    since: str
    boot: str = ""

    @classmethod
    def this_process(cls) -> Owner:
        """This process, from now on."""
        return cls(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"), _boot())

    @property
    def is_under_our_locks(self) -> bool:
        """Whether a lock of the operating system that it held would be seen here: containers of one kernel share
        locks whatever their host names, and a host that started anew holds none."""
        return self.host == socket.gethostname() or self.boot == _boot() != ""

    def __str__(self) -> str:
        age = datetime.now(UTC).replace(microsecond=0) - datetime.fromisoformat(self.since)
        return f"process {self.pid} on {self.host} for {max(age, timedelta(0))}"


@dataclass(frozen=True, slots=True)
class WriterLock:
    """The exclusive right to change a memory, while it is held.

    Attributes:
        died: the writer before, if it died while it was writing.
        done: to be called when nothing is left half-written. Without that the next writer looks for what is to be
            cleaned up.
    """

    died: Owner | None
    done: Callable[[], None]


class Storage(Protocol):
    """What of a memory depends on where it lies. Another implementation serves another kind of place.

    Names of files are relative to ``folder``, with slashes.
    """

    @property
    def folder(self) -> Folder: ...

    @property
    def local(self) -> Path:
        """A folder of this machine for what can be made again: indexes, notes. It need not exist yet."""
        ...

    @property
    def options(self) -> dict[str, str] | None:
        """Lance's own options for the files at ``folder``."""
        ...

    @property
    def is_exclusive(self) -> bool:
        """Whether ``lock`` keeps other writers away. Where it does not, the first of several commits wins."""
        ...

    def making(self) -> AbstractContextManager[str]:
        """Where to write a new table so that it is at ``folder``, whole or not at all, when the block has ended."""
        ...

    def files(self) -> set[str]:
        """Every file of the table, whether a version needs it or not."""
        ...

    def sizes(self, names: Collection[str]) -> dict[str, int]:
        """How many bytes these files have; those that are not there are left out. Raises: OSError."""
        ...

    def written(self, before: Collection[str]) -> set[str]:
        """What this writer has written since it took the lock, when there was only ``before``, and has not published:
        nobody else needs it."""
        ...

    def abandoned(self) -> set[str]:
        """Files of the table that no writer will commit any more, if no version needs them. Under the lock only."""
        ...

    def remove(self, names: Collection[str]) -> int:
        """Remove these files and say how many bytes that frees. Raises: OSError."""
        ...

    def name_version(self, dataset: lance.LanceDataset, name: str, version: int) -> None:
        """Let a tag of Lance's name this version, and no other, whole or not at all."""
        ...

    def lock(self) -> AbstractContextManager[WriterLock]:
        """Be the only writer within the block. Raises: MemoryStoreError if somebody else writes, or nobody can."""
        ...

    def owner(self) -> Owner | None:
        """Who writes at this moment, or died while writing; None if nobody does."""
        ...

    def force(self, names: Iterable[str]) -> None:
        """These files, and the folders that list them, survive a power failure from now on. Raises: OSError."""
        ...

    def publish(self, dataset: lance.LanceDataset, operation: Any, *, change: str) -> lance.LanceDataset:
        """One more version on top of ``dataset``, all or nothing; readers may see it from now on.

        Raises: lance.commit.CommitConflictError if there is a newer version already.
        """
        ...

    def record(self, checksums: Mapping[str, Checksum]) -> None:
        """Note what these files hold, which acknowledges the versions whose manifests are among them. Raises:
        OSError."""
        ...

    def checksums(self) -> dict[str, Checksum] | None:
        """Every recorded file; None if no commit of this memory was recorded: those of the first latentrag were not."""
        ...

    def checksum(self, name: str) -> Checksum | None:
        """The newest record of one file, without reading the others'."""
        ...

    def keep_checksums(self, names: Collection[str]) -> None:
        """Forget the records of all other files."""
        ...


Place = str | Folder | Storage


def storage_of(place: Place) -> Storage:
    """The storage of a memory at a path or an address in an object store, or one that is given.

    Raises: InputError for what is no such address.
    """
    if isinstance(place, ObjectPath) or is_object_address(place):
        from latentrag.memory.object_store import ObjectStore

        return ObjectStore(place if isinstance(place, ObjectPath) else ObjectPath.parse(str(place)))
    if isinstance(place, Path) and place.parts[:1] == ("s3:",):
        raise InputError(f"the path {place} was an address before it became a path; give it as text, s3://BUCKET/NAME")
    return LocalDisk(Path(place)) if isinstance(place, str | Path) else place


@dataclass(frozen=True, slots=True)
class LocalDisk:
    """A folder of this machine, or of a network drive that behaves like one."""

    folder: Path
    options = None
    is_exclusive = True

    @property
    def local(self) -> Path:
        return self.folder

    @contextmanager
    def making(self) -> Iterator[str]:
        with io.replacing_folder(self.folder) as scratch:
            yield str(scratch)

    def files(self) -> set[str]:
        names: set[str] = set()
        for name in TABLE_FOLDERS:
            if (self.folder / name).is_dir():
                with os.scandir(self.folder / name) as entries:
                    names.update(f"{name}/{entry.name}" for entry in entries if entry.is_file(follow_symlinks=False))
        return names

    def sizes(self, names: Collection[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in names:
            with suppress(FileNotFoundError):
                found[name] = (self.folder / name).stat().st_size
        return found

    def written(self, before: Collection[str]) -> set[str]:
        return self.files().difference(before)

    def abandoned(self) -> set[str]:
        return self.files()

    def remove(self, names: Collection[str]) -> int:
        freed = 0
        for name in names:
            freed += (self.folder / name).lstat().st_size
            (self.folder / name).unlink()
        for parent in {name.rpartition("/")[0] for name in names}:
            io.sync_folder(self.folder / parent)
        return freed

    def name_version(self, dataset: lance.LanceDataset, name: str, version: int) -> None:
        """Lance writes the tag under another name, which is changed once it is on the disk."""
        scratch = self.folder / TAGS / f"{SCRATCH_TAG}.json"
        scratch.unlink(missing_ok=True)
        dataset.tags.create(SCRATCH_TAG, version)
        self.force([f"{TAGS}/{scratch.name}"])
        scratch.replace(scratch.with_name(f"{name}.json"))
        io.sync_folder(scratch.parent)

    @contextmanager
    def lock(self) -> Iterator[WriterLock]:
        """The operating system's lock on a file decides who writes: it ends with its process, however that ends.

        The file's content says who writes, and stays where a writer died.
        """
        path = self.folder / LOCK_FILE
        _require_locks()
        with _refused_in_one_line(self.folder):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
        with io.exclusive(path) as alone:
            died = self.owner()
            if not alone:
                by = died or "another process"
                raise MemoryStoreError(f"{self.folder} is being changed by {by}; try again when that is done")
            if died is not None and not died.is_under_our_locks:
                raise MemoryStoreError(
                    f"{self.folder} is being changed by {died}, or was left so; wait, or delete {path} if that "
                    "process is gone"
                )
            with _refused_in_one_line(self.folder):
                _write_owner(path)
            yield WriterLock(died, lambda: os.truncate(path, 0))

    def owner(self) -> Owner | None:
        try:
            content = (self.folder / LOCK_FILE).read_bytes()
        except FileNotFoundError:
            return None
        try:
            owner = Owner(**json.loads(content))
            str(owner)
        except (ValueError, TypeError):
            # What cannot be read was being written when the machine stopped.
            return Owner(socket.gethostname(), 0, datetime.now(UTC).isoformat()) if content else None
        return owner

    def force(self, names: Iterable[str]) -> None:
        io.sync_all(self.folder, names)

    def publish(self, dataset: lance.LanceDataset, operation: Any, *, change: str) -> lance.LanceDataset:
        import lance

        # A retry would overwrite a version that somebody else has made meanwhile.
        return lance.LanceDataset.commit(
            dataset, operation, read_version=int(dataset.version), commit_message=change, max_retries=0
        )

    def record(self, checksums: Mapping[str, Checksum]) -> None:
        io.append_lines(self.folder / CHECKSUMS_FILE, map(_line, checksums.items()), durable=True)
        io.sync_folder(self.folder)

    def checksums(self) -> dict[str, Checksum] | None:
        try:
            lines = (self.folder / CHECKSUMS_FILE).read_bytes().split(b"\n")
        except FileNotFoundError:
            return None
        # A line that cannot be read is left out, as if its file had not been recorded.
        return dict(entry for line in lines if (entry := _entry(line)) is not None)

    def checksum(self, name: str) -> Checksum | None:
        try:
            content = (self.folder / CHECKSUMS_FILE).read_bytes()
        except FileNotFoundError:
            return None
        start = content.rfind(b'{"file": ' + json.dumps(name).encode() + b",")
        entry = None if start < 0 else _entry(content[start:].split(b"\n", 1)[0])
        return None if entry is None else entry[1]

    def keep_checksums(self, names: Collection[str]) -> None:
        checksums = self.checksums()
        if checksums is not None:
            kept = (json.dumps(_line(entry)).encode() + b"\n" for entry in checksums.items() if entry[0] in names)
            io.write_file(self.folder / CHECKSUMS_FILE, b"".join(kept))


def _require_locks() -> None:
    try:
        import fcntl  # noqa: F401
    except ModuleNotFoundError as error:
        raise MemoryStoreError(
            "this system has no locks on files that latentrag knows; change memories on Linux or macOS"
        ) from error


def _boot() -> str:
    """Which start of which kernel this is; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _write_owner(path: Path) -> None:
    """Say who writes. Not on a full disk: what makes room must not need it, and what needs it fails soon enough."""
    content = json.dumps(asdict(Owner.this_process())).encode()
    with path.open("r+b", buffering=0) as stream:
        try:
            # Cut to length afterwards: where this fails, the file still says that a writer died, if one did.
            stream.write(content)
            stream.truncate(len(content))
            io.sync_handle(stream.fileno())
        except OSError as error:
            if error.errno not in io.NO_ROOM:
                raise


@contextmanager
def _refused_in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MemoryStoreError(
            f"{folder} cannot be written ({error.strerror or error}); make room, check its permissions or copy it "
            "elsewhere"
        ) from error


def _line(entry: tuple[str, Checksum]) -> dict[str, Any]:
    name, checksum = entry
    return {"file": name, "bytes": checksum.size_bytes, "sha256": checksum.sha256}


def _entry(line: bytes) -> tuple[str, Checksum] | None:
    try:
        fields = json.loads(line)
        return fields["file"], Checksum(fields["bytes"], fields["sha256"])
    except (ValueError, TypeError, KeyError):
        return None
