"""A memory in an object store: nothing is locked or forced to a disk there, and the first of several commits wins.

data/ _deletions/ _transactions/ _versions/ _refs/   of the table, written by Lance
_checksums/                                          what each committed file held: an object for each commit
_claims/                                             who commits a version at this moment

An object is there whole or not at all, and safe once the store has said so. Lance publishes a version by an object that
must not exist yet, so a version number is given once. Indexes, and notes of what was begun, are on the local disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrag.errors import MemoryStoreError
from latentrag.home import home
from latentrag.memory.object_path import ObjectPath, endpoint, lance_options
from latentrag.memory.storage import TABLE_FOLDERS, TAGS, Checksum, Owner, WriterLock

if TYPE_CHECKING:
    import lance

CHECKSUMS = "_checksums"
ABANDONED_AFTER = timedelta(days=7)
"""A file that no version needs may be that of a writer who has not committed yet, and nobody can ask. Lance's own
cleanup spares them for as long."""
CLAIMS = "_claims"
CLAIMED_FOR = timedelta(minutes=5)
"""A commit takes two requests, each tried again for 20 seconds at most; whoever has not ended by then is gone."""
_THREADS = 16


@dataclass(frozen=True, slots=True)
class _Own:
    """What one thread has written since it began to write; files that a version needs are no longer among them."""

    names: set[str] = field(default_factory=set)


def _require_newest(dataset: lance.LanceDataset) -> None:
    """Lance puts a change on top of what others have committed meanwhile where rows allow it, retries or not.

    Raises: lance.commit.CommitConflictError.
    """
    from lance.commit import CommitConflictError

    if dataset.latest_version != dataset.version:
        raise CommitConflictError(f"version {dataset.version} is not the newest")


def _is_given_up(claim: ObjectPath) -> bool:
    """Whether whoever claimed it is gone: a process of this machine that has ended, or one that takes too long."""
    try:
        changed, owner = claim.stat().changed, Owner(**json.loads(claim.read_bytes()))
    except FileNotFoundError:
        return False  # it has just ended
    if owner.is_under_our_locks and not _is_running(owner.pid):
        return True
    return datetime.now(UTC) - changed > CLAIMED_FOR


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """What lies under a name in a bucket. Credentials, region and endpoint are those of the AWS_ variables.

    Attributes:
        known: contents of the objects with checksums by name, which says what they hold, so they never change.
        own: of each thread that writes.
    """

    folder: ObjectPath
    known: dict[str, dict[str, Checksum]] = field(default_factory=dict, compare=False, repr=False)
    own: dict[int, _Own] = field(default_factory=dict, compare=False, repr=False)
    is_exclusive = False

    @property
    def options(self) -> dict[str, str]:
        return lance_options()

    @property
    def local(self) -> Path:
        """By address, for a sync's notes are asked before there is a memory. Nothing in it is believed of a version
        without the names of that version's files, so another memory that comes to lie there is no harm."""
        address = hashlib.sha256(f"{endpoint()} {self.folder}".encode()).hexdigest()[:12]
        return home().path / "objects" / f"{self.folder.name}-{address}"

    @contextmanager
    def making(self) -> Iterator[str]:
        yield str(self.folder)

    # Files

    def files(self) -> set[str]:
        return {name for name, _ in self._listed()}

    def written(self, before: Collection[str]) -> set[str]:  # noqa: ARG002  what is new may be somebody else's
        return set(self._own.names)

    def abandoned(self) -> set[str]:
        limit = datetime.now(UTC) - ABANDONED_AFTER
        return {name for name, changed in self._listed() if changed < limit}

    def _listed(self) -> Iterator[tuple[str, datetime]]:
        for folder in TABLE_FOLDERS:
            for name, stat in (self.folder / folder).listed():
                yield f"{folder}/{name}", stat.changed

    def remove(self, names: Collection[str]) -> int:
        freed = sum(self.sizes(names).values())
        self.folder.remove(list(names))
        return freed

    def sizes(self, names: Collection[str]) -> dict[str, int]:
        """By one question for each of a few files, or one for each thousand that are there."""
        if len(names) > _THREADS:
            folders = {name.partition("/")[0] for name in names}
            listed = {f"{each}/{name}": stat for each in folders for name, stat in (self.folder / each).listed()}
            return {name: listed[name].st_size for name in names if name in listed}
        with ThreadPoolExecutor(_THREADS) as threads:
            found = zip(names, threads.map(self._size_bytes, names), strict=True)
            return {name: size for name, size in found if size is not None}

    def _size_bytes(self, name: str) -> int | None:
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    # Commits

    @property
    def _own(self) -> _Own:
        return self.own.setdefault(threading.get_ident(), _Own())

    @contextmanager
    def lock(self) -> Iterator[WriterLock]:
        """Keeps nobody away: whoever commits first wins."""
        self._own.names.clear()
        yield WriterLock(None, lambda: None)

    def owner(self) -> Owner | None:
        return None

    def force(self, names: Iterable[str]) -> None:
        """They are safe already; notes that this thread has written them."""
        self._own.names.update(name for name in names if name.startswith(("data/", "_deletions/")))

    def publish(self, dataset: lance.LanceDataset, operation: Any, *, change: str) -> lance.LanceDataset:
        import lance
        from lance.commit import CommitConflictError

        if gone := self._own.names - self.sizes(self._own.names).keys():
            raise MemoryStoreError(
                f"{len(gone)} files of {self.folder} were removed before they were committed, after more than "
                f"{ABANDONED_AFTER.days} days perhaps; run the command again"
            )
        read = int(dataset.version)
        claims = self._claim(read + 1)
        try:
            _require_newest(dataset)
            published = lance.LanceDataset.commit(
                dataset, operation, read_version=read, commit_message=change, max_retries=0
            )
        except CommitConflictError:  # surely not committed: what was written may go
            self._claims.remove(claims)
            raise
        except BaseException:
            self._own.names.clear()  # it may have been committed, or be so in a moment
            raise
        self._own.names.clear()
        self._claims.remove(claims)
        return published

    @property
    def _claims(self) -> ObjectPath:
        return self.folder / CLAIMS

    def _claim(self, version: int) -> list[str]:
        """Be the only one to commit this version. Of several who find that a claimant is gone one alone follows it, so
        nobody removes the claim of a successor.

        Returns: the names of the claims, which go once the version is committed.
        Raises: MemoryStoreError if somebody else is about to commit it.
        """
        content = json.dumps(asdict(Owner.this_process())).encode()
        names: list[str] = []
        for number in count():
            names.append(f"{version}.{number}")
            claim = self._claims / names[-1]
            if claim.write_new(content):
                return names
            if not _is_given_up(claim):
                break
        raise MemoryStoreError(
            f"someone else is committing to {self.folder} after version {version - 1}; open it without a version and "
            f"try again, {CLAIMED_FOR.seconds // 60} minutes later if that process was killed"
        )

    def name_version(self, dataset: lance.LanceDataset, name: str, version: int) -> None:
        if (self.folder / TAGS / f"{name}.json").is_file():
            dataset.tags.update(name, version)
        else:
            dataset.tags.create(name, version)

    # Checksums

    def record(self, checksums: Mapping[str, Checksum]) -> None:
        """An object whose name says what it holds: if it is there already, somebody has recorded the same."""
        self._own.names.difference_update(checksums)  # a version has them
        content = json.dumps({name: asdict(checksum) for name, checksum in sorted(checksums.items())}).encode()
        (self.folder / CHECKSUMS / f"{hashlib.sha256(content).hexdigest()}.json").write_new(content)

    def checksums(self) -> dict[str, Checksum] | None:
        for _ in range(3):
            try:
                of_objects = self._of_objects()
            except FileNotFoundError:
                continue  # joined to one at this moment
            merged: dict[str, Checksum] = {}
            for each in of_objects.values():
                merged |= each
            return merged if of_objects else None
        raise MemoryStoreError(f"the checksums of {self.folder} change all the time; try again when nobody prunes it")

    def checksum(self, name: str) -> Checksum | None:
        return (self.checksums() or {}).get(name)

    def keep_checksums(self, names: Collection[str]) -> None:
        """One object in place of those that are there; what somebody records meanwhile stays, and so does what somebody
        has recorded since the names were listed."""
        old = self._of_objects()
        known = {*names, *self.files()}
        kept = {name: checksum for each in old.values() for name, checksum in each.items() if name in known}
        if not old:
            return
        self.record(kept)
        content = {key: each for key, each in self._of_objects().items() if each != kept}
        (self.folder / CHECKSUMS).remove([key for key in content if key in old])

    def _of_objects(self) -> dict[str, dict[str, Checksum]]:
        """Contents by name. Raises: FileNotFoundError if one is removed at this moment."""
        names = [name for name, _ in (self.folder / CHECKSUMS).listed()]
        new = [name for name in names if name not in self.known]
        with ThreadPoolExecutor(_THREADS) as threads:
            self.known.update(zip(new, threads.map(self._read, new), strict=True))
        return {name: self.known[name] for name in names}

    def _read(self, name: str) -> dict[str, Checksum]:
        """Nothing of one that is not as it was written, as if its files had not been recorded."""
        content = (self.folder / CHECKSUMS / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != name.removesuffix(".json"):
            return {}
        return {file: Checksum(**fields) for file, fields in json.loads(content).items()}
