"""The files of a memory's versions: which versions they make, whether those are whole, what no version needs, and how
they are changed: by one writer, on top of what a killed one left.

data/ _deletions/ _transactions/ _versions/   of the table, written by Lance
_refs/tags/                                   names of versions, in Lance's format
_checksums.jsonl                              what each committed file held (see storage.py)
_writer.lock                                  who writes
_damaged/                                     versions that are damaged, set aside with their files
_reencoding.jsonl                             what an unfinished re-encoding has written (see reencoding.py)
_indexes/ _sync/                              disposable
_scratch/                                     files of a change under way (see scratch.py)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from errno import EACCES, ENOENT, EPERM, EROFS
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrag import io
from latentrag.errors import DamagedVersionError, LatentRagError, MemoryStoreError, command
from latentrag.memory.object_path import Folder, failure_of_store
from latentrag.memory.schema import PASSAGE_COLUMNS, to_passages
from latentrag.memory.storage import VERSIONS, Checksum, Storage
from latentrag.place import require_unforked
from latentrag.types import Passage

if TYPE_CHECKING:
    import lance
    import pyarrow as pa
    from lance.fragment import LanceFragment

DAMAGED = "_damaged"
INDEXES = "_indexes"
REENCODING = "_reencoding.jsonl"
ROWS_PER_READ = 8_192
_HIGHEST = 2**64 - 1
_MANIFEST = re.compile(r"(\d{20})\.manifest")


def require_table(path: Folder) -> None:
    """Raises: MemoryStoreError unless there is a folder with a Lance table, whoever made it."""
    remedy = "make a memory with `latentrag index add PATH FILES…`"
    if not path.exists():
        raise MemoryStoreError(f"there is no memory at {path}; {remedy}")
    if not path.is_dir():
        raise MemoryStoreError(
            f"{path} is a {path.suffix or 'plain'} file, a memory is a folder with a Lance table, "
            f"and pickles and foreign indexes are never loaded; {remedy}"
        )
    if not (path / "_versions").is_dir():
        raise MemoryStoreError(
            f"{path} is a folder without a Lance table, "
            f"and pickles and foreign indexes in it are never loaded; {remedy}"
        )


def is_free(path: Folder) -> bool:
    """Whether a memory can be made there: nothing is, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def manifest_name(version: int) -> str:
    """Lance's name of a version's manifest: the newest comes first in a listing."""
    return f"{VERSIONS}/{_HIGHEST - version:020}.manifest"


def version_numbers(folder: Folder) -> list[int]:
    """Every version that has a manifest, whole or not, ascending."""
    with reading(folder):
        names = [_MANIFEST.fullmatch(path.name) for path in (folder / VERSIONS).iterdir()]
    return sorted(_HIGHEST - int(match[1]) for match in names if match)


def newest_version(folder: Folder) -> int:
    """The highest version number, whether that version is whole or not. Raises: MemoryStoreError if there is none."""
    numbers = version_numbers(folder)
    if not numbers:
        raise MemoryStoreError(f"the memory at {folder} has no version left; restore it from a copy or build it again")
    return numbers[-1]


def has_version(folder: Folder, version: int) -> bool:
    """Whether the version has a manifest."""
    return 0 < version <= _HIGHEST and (folder / manifest_name(version)).exists()


# Reading


@contextmanager
def lance_errors_as(ours: Callable[[BaseException], LatentRagError]) -> Iterator[None]:
    """Failures of Lance and of the system as the error that ``ours`` makes of them; what interrupts us stays."""
    try:
        yield
    except BaseException as error:
        # A panic of Lance is a plain BaseException under this name.
        is_theirs = isinstance(error, OSError | ValueError | RuntimeError) or type(error).__name__ == "PanicException"
        if isinstance(error, LatentRagError) or not is_theirs:
            raise
        if failure := failure_of_store(error):  # which says nothing of the memory
            raise MemoryStoreError(failure) from error
        raise ours(error) from error


def reading(folder: Folder) -> AbstractContextManager[None]:
    """Failures to read as one line that names the memory."""
    return lance_errors_as(
        lambda error: MemoryStoreError(
            f"the memory at {folder} cannot be read ({reason(error)}); ask a version that is whole, which "
            f"{command('index', 'verify', folder)} names, restore it from a copy or build it again"
        )
    )


def reason(error: BaseException) -> str:
    """What Lance says, without the places in its own source."""
    return re.split(r", /|\n", str(error))[0]


def open_readable(storage: Storage, version: int) -> lance.LanceDataset:
    """The table at a version whose manifest is as it was written, whatever has become of its other files.

    Raises: DamagedVersionError; MemoryStoreError in a process that was forked off.
    """
    import lance

    require_unforked(MemoryStoreError)
    folder, manifest = storage.folder, manifest_name(version)
    if what := damage_of_file(folder, manifest, committed=storage.checksum(manifest)):  # Lance does not check it
        raise DamagedVersionError(folder, version, what)
    with lance_errors_as(lambda error: DamagedVersionError(folder, version, reason(error))):
        dataset = lance.dataset(str(folder), version=version, storage_options=storage.options)
        sizes(dataset)  # what Lance does not understand shows here
    return dataset


def open_whole(storage: Storage, version: int) -> lance.LanceDataset:
    """The table at a version whose files are all there, as long as they were, and whose manifest is as it was written.

    Raises: DamagedVersionError.
    """
    dataset = open_readable(storage, version)
    needed = sizes(dataset)
    with lance_errors_as(lambda error: DamagedVersionError(storage.folder, version, reason(error))):
        actual = storage.sizes(needed)
    for name, size in needed.items():
        if what := _wrong_length(name, actual.get(name), size):
            raise DamagedVersionError(storage.folder, version, what)
    return dataset


def open_newest_whole(storage: Storage) -> lance.LanceDataset:
    """The table at its newest version, or if that is damaged at the newest that is not, with a warning that says so.

    Raises: MemoryStoreError if there is none.
    """
    folder = storage.folder
    first: DamagedVersionError | None = None
    for version in reversed(version_numbers(folder)):
        try:
            dataset = open_whole(storage, version)
        except DamagedVersionError as error:
            if not has_version(folder, version):  # pruned at this moment, and newer ones may be there since
                return open_newest_whole(storage)
            first = first or error
            continue
        if first is not None:
            warnings.warn(f"{str(first).split('; ')[0]}; opened version {version}, the newest that can", stacklevel=4)
        return dataset
    why = "no version is left" if first is None else str(first).split("; ")[0]
    raise MemoryStoreError(f"the memory at {folder} cannot be read ({why}); restore it from a copy or build it again")


def sizes(dataset: lance.LanceDataset) -> dict[str, int | None]:
    """The files with the rows of a version and, where its manifest says so, how long they are."""
    return {name: size for fragment in dataset.get_fragments() for name, size in of_fragment(fragment).items()}


def of_fragment(fragment: LanceFragment) -> dict[str, int | None]:
    """As ``sizes``, of one fragment."""
    metadata = fragment.metadata
    names: dict[str, int | None] = {f"data/{file.path}": file.file_size_bytes for file in metadata.files}
    if metadata.deletion_file is not None:
        names[metadata.deletion_file.path(fragment.fragment_id)] = None
    return names


def ids_of_file(storage: Storage, name: str) -> set[str]:
    """The ids of a data file's rows, whichever version needs it: those of deleted passages too."""
    return {key for batch in _rows_of_file(storage, name, ["id"]) for key in batch["id"].to_pylist()}


def passages_of_file(storage: Storage, name: str) -> Iterator[Passage]:
    """A data file's rows, those of deleted passages too."""
    for batch in _rows_of_file(storage, name, PASSAGE_COLUMNS):
        yield from to_passages(batch)


def _rows_of_file(storage: Storage, name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    from lance.file import LanceFileReader

    with reading(storage.folder):
        file, options = str(storage.folder / name), storage.options
        present = set(LanceFileReader(file, options).metadata().schema.names)  # an older file has not all columns
        kept = [name for name in columns if name in present]
        yield from LanceFileReader(file, options, columns=kept).read_all(batch_size=ROWS_PER_READ).to_batches()


# Damage


def damage_of_file(
    folder: Folder, name: str, *, size_bytes: int | None = None, committed: Checksum | None = None
) -> str | None:
    """What is wrong with a file, in words; None: nothing that these tell.

    Args:
        size_bytes: how long its manifest says it is.
        committed: what it held when it was committed.
    """
    try:
        if what := _wrong_length(name, (folder / name).stat().st_size, size_bytes):
            return what
        same = committed is None or Checksum.of(folder / name) == committed
    except OSError as error:
        return f"{name}: {error.strerror or error}"
    return None if same else f"{name} is not as it was written"


def _wrong_length(name: str, actual: int | None, needed: int | None) -> str | None:
    if actual is None:
        return f"{name}: {os.strerror(ENOENT)}"
    if needed is not None and actual != needed:
        return f"{name} has {actual} bytes, it was written with {needed}"
    return None


def require_as_written(folder: Folder, names: Iterable[str], checksums: Mapping[str, Checksum]) -> None:
    """To be called before these files' rows are copied, or others removed that may be all that can be read.

    Raises: MemoryStoreError if one is not as it was written.
    """
    for name in names:
        if what := damage_of_file(folder, name, committed=checksums.get(name)):
            raise MemoryStoreError(
                f"{what}, so nothing of {folder} is copied or removed; restore that file, which "
                f"{command('index', 'verify', folder)} shows, from a copy, or go on with what is intact with "
                f"{command('index', 'repair', folder)}"
            )


# What is there, and what is needed


def needed(storage: Storage) -> set[str]:
    """Every file of the table that a version needs, or a re-encoding that will go on.

    Raises: MemoryStoreError if a version's manifest is damaged.
    """
    import pyarrow.compute as pc

    folder = storage.folder
    names = {f"{VERSIONS}/latest_version_hint.json"}
    header, *notes = noted(storage.local) or [{}]
    if header.get("version") == newest_version(folder):
        names.update(name for note in notes for name in note["checksums"])
    newest = open_readable(storage, newest_version(folder))
    with lance_errors_as(
        lambda error: MemoryStoreError(
            f"an older version of the memory at {folder} cannot be read ({reason(error)}); "
            f"set it aside with {command('index', 'repair', folder)}"
        )
    ):
        for batch in newest.tracked_files():
            names.update(pc.unique(batch["path"]).to_pylist())
    return names


def noted(local: Path) -> list[dict[str, Any]]:
    """The notes of a re-encoding: for which version and encoder, then what was written. A line that was not finished
    ends them; none if there is none."""
    try:
        lines = (local / REENCODING).read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]
    except (FileNotFoundError, ValueError):
        return []


def set_aside(storage: Storage, versions: Collection[int]) -> None:
    """Move versions out of the table, with the files that no other version needs.

    Nothing is deleted, so that a file that somebody can mend may be put back. Killed in between, it leaves versions
    that cannot be opened, and not files that would be taken for a dead writer's.

    Raises: DamagedVersionError if another version's manifest is damaged; nothing is moved then.
    """
    folder = storage.folder
    assert isinstance(folder, Path)  # in an object store a version is complete when others can see it
    kept: set[str] = set()
    for version in version_numbers(folder):
        if version not in versions:
            kept |= sizes(open_readable(storage, version)).keys()
    of_commits = tuple(f"_transactions/{version - 1}-" for version in versions)
    _move(folder, [n for n in storage.files() - kept if n.startswith(("data/", "_deletions/", *of_commits))])
    # Their numbers will be used again, for other content.
    manifests = {manifest_name(version) for version in versions}
    storage.keep_checksums((storage.checksums() or {}).keys() - manifests)
    _move(folder, manifests)
    _move(folder, storage.files() - needed(storage))


def _move(folder: Path, names: Collection[str]) -> None:
    for name in names:
        place = folder / DAMAGED / name
        place.parent.mkdir(parents=True, exist_ok=True)
        while place.exists():  # a version whose number has been used again, and damaged again
            place = place.with_name(f"{place.name}+")
        shutil.move(folder / name, place)
        io.sync_folder(place.parent)
        io.sync_folder((folder / name).parent)


def require_exclusive(storage: Storage, done: str) -> None:
    """Raises: MemoryStoreError where nobody can be kept from writing. Args: done: what is to be, in the passive."""
    if not storage.is_exclusive:
        raise MemoryStoreError(
            f"{storage.folder} cannot be {done} where it lies, since nobody can be kept from writing there; copy its "
            "objects to a folder on a disk and do it there"
        )


# Changing: alone, on top of what a killed writer left, and all or nothing


def changing(folder: Folder) -> AbstractContextManager[None]:
    """Failures to write as one line."""
    return lance_errors_as(
        lambda error: MemoryStoreError(f"{folder} cannot be written ({reason(error)}); {_remedy(folder, error)}")
    )


def _errno(error: BaseException | None) -> int | None:
    """The system's number of an error; Lance gives it in words."""
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else getattr(error, "errno", None)


def is_full(error: MemoryStoreError) -> bool:
    """Whether a change failed for want of room on the disk."""
    return _errno(error.__cause__) in io.NO_ROOM


def is_unwritable(error: MemoryStoreError) -> bool:
    """Whether the system refused a change: a disk that is read-only, full or broken."""
    return _errno(error.__cause__) is not None


def _remedy(folder: Folder, error: BaseException) -> str:
    """Lance reads too when it changes a table."""
    number = _errno(error)
    if number in {EACCES, EPERM, EROFS}:
        return "check its permissions or copy it elsewhere"
    if number is None:
        return f"see whether it is damaged with {command('index', 'verify', folder)}"
    return "make room or mend the disk, and try again"


@contextmanager
def writing(storage: Storage) -> Iterator[None]:
    """Be the only writer. If the body fails, the files that it made and that no version needs are removed.

    Raises: MemoryStoreError if somebody else writes, the folder cannot be written, or the newest version is damaged.
    """
    require_table(storage.folder)
    with storage.lock() as lock:
        recover(storage, killed=lock.died is not None)
        before = storage.files()
        try:
            yield
        except BaseException:
            remove_orphans(storage, among=storage.written(before))
            lock.done()
            raise
        lock.done()


def recover(storage: Storage, *, killed: bool) -> None:
    """Finish or undo what the last writer did not: under the lock only.

    A version that was published but not yet acknowledged is kept if it is whole and set aside if it is not. Files that
    a killed writer left are removed.

    Raises: MemoryStoreError if the newest version had been acknowledged and is damaged: nobody may build on an older
        one, or move its files, without having been asked.
    """
    for version in unacknowledged(storage):
        _keep_or_set_aside(storage, version)
    folder = storage.folder
    try:
        open_whole(storage, newest_version(folder))
    except DamagedVersionError as error:
        raise MemoryStoreError(
            f"{str(error).split('; ')[0]}; restore it from a copy, "
            f"or give it up and go on from an older one with {command('index', 'repair', folder)}"
        ) from error
    header, *_ = noted(storage.local) or [{}]
    is_stale = (storage.local / REENCODING).exists() and header.get("version") != newest_version(folder)
    if is_stale:  # somebody has committed since
        (storage.local / REENCODING).unlink()
    if killed or is_stale:
        remove_orphans(storage)


def remove_orphans(storage: Storage, *, among: set[str] | None = None) -> int:
    """Remove files of the table that no version needs: under the lock only, since they look like a writer's.

    Args:
        among: only these; None: what no living writer can have written.
    Returns: the bytes that this frees.
    """
    names = storage.abandoned() if among is None else among
    return storage.remove(names - needed(storage)) if names else 0


def unacknowledged(storage: Storage) -> list[int]:
    """Versions newer than the newest that was acknowledged, ascending. Of a memory without records none is known."""
    numbers = version_numbers(storage.folder)
    newest = next((n for n in reversed(numbers) if storage.checksum(manifest_name(n)) is not None), 0)
    if not newest and storage.checksums() is None:  # asked last, since it reads every record
        return []
    return [number for number in numbers if number > newest]


def _keep_or_set_aside(storage: Storage, version: int) -> None:
    folder = storage.folder
    try:
        dataset = open_whole(storage, version)
    except DamagedVersionError as error:
        if not storage.is_exclusive:
            raise MemoryStoreError(str(error)) from error
        set_aside(storage, [version])
        warnings.warn(
            f"{str(error).split('; ')[0]}; it was never acknowledged and is now in {folder / DAMAGED}",
            stacklevel=2,
        )
        return
    recorded = storage.checksums() or {}
    names = [
        *(name for name in sizes(dataset) if name not in recorded),
        manifest_name(version),
    ]
    storage.force(names)
    storage.record({name: Checksum.of(folder / name) for name in names})
