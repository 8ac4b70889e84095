"""The versions of a memory: what each commit did, what they are called, and how two of them differ.

Names are Lance's tags, so that Lance's own tools know them and keep their hands off these versions too; a named version
is never pruned. The tag ``served`` is the version that is asked where nobody says which; without it that is the newest.
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, cast

from latentrag.errors import DamagedVersionError, InputError, MemoryStoreError, UnknownVersionError
from latentrag.memory import version_files
from latentrag.memory.object_path import Folder
from latentrag.memory.storage import SCRATCH_TAG, TAGS, Place, Storage, storage_of
from latentrag.memory.table import Table
from latentrag.memory.version_files import changing, writing

if TYPE_CHECKING:
    from latentrag.types import Passage

SERVED = "served"
NEWEST = "newest"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)


# The log


@dataclass(frozen=True, slots=True)
class Version:
    """One commit of a memory. ``change`` says what it did, in words; ``time`` is UTC."""

    number: int
    time: datetime
    num_passages: int
    change: str


def log(table: Table) -> list[Version]:
    """Every version up to this one, oldest first. Those that cannot be read are left out, with a warning."""
    numbers = [number for number in version_files.version_numbers(table.path) if number <= table.version]
    return [version for number in numbers if (version := logged(table, number)) is not None]


def logged(table: Table, number: int) -> Version | None:
    """One version, opened in the session of ``table``; None, with a warning, if it cannot be read."""
    import lance
    from lance.dataset import LANCE_COMMIT_MESSAGE_KEY

    try:
        with version_files.lance_errors_as(
            lambda error: DamagedVersionError(table.path, number, version_files.reason(error))
        ):
            dataset = lance.dataset(
                str(table.path),
                version=number,
                session=table.dataset.session(),
                storage_options=table.storage.options,
            )
            # The public way gives local time, which says one hour twice when summer time ends.
            version = dataset._ds.current_version()  # noqa: SLF001
            transaction = dataset.read_transaction(number)
    except DamagedVersionError as error:
        warnings.warn(str(error).split("; ")[0], stacklevel=4)
        return None
    properties = (transaction.transaction_properties if transaction else None) or {}
    return Version(
        number=number,
        time=datetime.fromtimestamp(0, UTC) + timedelta(microseconds=cast("int", version["timestamp"]) // 1_000),
        num_passages=int(version["metadata"]["total_rows"]),
        change=properties.get(LANCE_COMMIT_MESSAGE_KEY, "unknown"),
    )


# Names


def tags(folder: Folder) -> dict[str, int]:
    """Every name and its version, ``served`` among them. Raises: MemoryStoreError for a tag that cannot be read."""
    named: dict[str, int] = {}
    paths: Iterable[Folder] = (folder / TAGS).glob("*.json")
    for path in sorted(paths, key=str):
        if path.stem == SCRATCH_TAG:
            continue
        try:
            named[path.stem] = int(json.loads(path.read_bytes())["version"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise MemoryStoreError(f"the tag {path} cannot be read ({error!r}); delete that file") from error
    return named


def tag(place: Place, name: str, version: int) -> None:
    """Give a version a name.

    Raises: InputError for a name that cannot be one; MemoryStoreError if it is another version's.
    """
    if not _NAME.fullmatch(name) or name.endswith((".lock", ".")) or ".." in name:
        raise InputError(f"{name!r} cannot be a tag; begin with a letter, go on with letters, digits, '.', '-' and '_'")
    if name in (SERVED, NEWEST, SCRATCH_TAG):
        raise InputError(f"the tag {name!r} has a meaning of its own; choose another")
    storage = storage_of(place)
    with writing(storage):
        taken = tags(storage.folder).get(name)
        if taken is not None:
            raise MemoryStoreError(f"the tag {name!r} names version {taken} already; remove it first")
        _write_tag(storage, name, version)


def untag(place: Place, name: str) -> int:
    """Take a name away. Returns: the version that had it. Raises: MemoryStoreError if there is no such tag."""
    storage = storage_of(place)
    with writing(storage):
        named = tags(storage.folder)
        named.pop(SERVED, None)
        if name not in named:
            existing = f"choose one of {', '.join(named)}" if named else "it has none"
            raise MemoryStoreError(f"{storage.folder} has no tag {name!r}; {existing}")
        remove_tags(storage, [name])
    return named[name]


def serve(place: Place, version: int | None) -> None:
    """Let a version be the one that is asked where nobody says which; None: the newest, whichever that is then."""
    storage = storage_of(place)
    with writing(storage):
        if version is not None:
            _write_tag(storage, SERVED, version)
        elif SERVED in tags(storage.folder):
            remove_tags(storage, [SERVED])


def remove_tags(storage: Storage, names: Iterable[str]) -> None:
    """Take these names away: under the lock only."""
    storage.remove([f"{TAGS}/{name}.json" for name in names])


def _write_tag(storage: Storage, name: str, version: int) -> None:
    dataset = version_files.open_whole(storage, version)
    with changing(storage.folder):
        storage.name_version(dataset, name, version)


def number_of(place: Place, which: int | str | None) -> int | None:
    """The number of a version; None: the newest.

    Args:
        which: a number; a tag; ``newest`` (or None); ``served``; or a moment in ISO 8601, for the version that was the
            newest then. A day, minute or second means its end; a time without a zone is UTC, as in the log.
    Raises: UnknownVersionError if the memory has no such version; MemoryStoreError.
    """
    storage = storage_of(place)
    if which is None or which == NEWEST:
        return None
    if which == SERVED:
        return tags(storage.folder).get(SERVED)
    if isinstance(which, int) or (which.isascii() and which.isdigit()):
        return int(which)
    version_files.require_table(storage.folder)
    named = tags(storage.folder)
    if which in named:
        return named[which]
    moment = _moment(which)
    if moment is None:
        names = [name for name in named if name != SERVED]
        known = f" or a tag ({', '.join(names)})" if names else ""
        raise UnknownVersionError(
            f"{storage.folder} has no version {which!r}; give a number{known} or a date such as 2026-01-31; see "
            "`index log`"
        )
    return _newest_at(Table.open(storage), moment, which)


def _newest_at(table: Table, moment: datetime, which: str) -> int:
    """The version that was the newest at a moment, by bisection: each look opens a version, which takes 2 ms."""
    numbers = [number for number in version_files.version_numbers(table.path) if number <= table.version]

    def is_later(number: int) -> bool:
        version = logged(table, number)
        return version is not None and version.time > moment

    before = reversed(numbers[: bisect_left(numbers, True, key=is_later)])
    newest = next((v for n in before if (v := logged(table, n)) is not None and v.time <= moment), None)
    if newest is None:
        first = log(table)[0]
        raise UnknownVersionError(
            f"{table.path} has no version as old as {which}; its oldest, {first.number}, is of "
            f"{first.time:%Y-%m-%d %H:%M:%S} UTC"
        )
    return newest.number


def _moment(text: str) -> datetime | None:
    with contextlib.suppress(ValueError):
        return datetime.combine(date.fromisoformat(text), time.max, UTC)
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(text)
        of_day = re.split(r"[T ]", text, maxsplit=1)[1]
        num_digits = len(re.sub(r"[^0-9]", "", re.split(r"[-+Z]", of_day)[0]))
        unit = {2: timedelta(hours=1), 4: timedelta(minutes=1), 6: timedelta(seconds=1)}.get(num_digits)
        moment += timedelta(0) if unit is None else unit - datetime.resolution
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return None


# Differences


@dataclass(frozen=True, slots=True)
class Diff:
    """From one version to another: ids of passages, in the order of the table.

    Attributes:
        added: not in the first.
        changed: in both, with another text, title, source, page, place or fields. New vectors alone are no change.
        removed: not in the second.
        reencoded: the vectors are another encoder's.
    """

    before: int
    after: int
    added: list[str]
    changed: list[str]
    removed: list[str]
    reencoded: bool


def diff(before: Table, after: Table) -> Diff:
    """What has to be done to ``before`` to get ``after``, which may be the older one.

    Only files that one of them has and the other has not are read. About 200 bytes of RAM for each of their passages.
    """
    return diff_of(before, after, _only_in(before, after), _only_in(after, before))


def diff_of(before: Table, after: Table, only_before: Iterable[Passage], only_after: Iterable[Passage]) -> Diff:
    """``diff`` where the passages of each version are read that the other has not, or may have otherwise."""
    old, new = ({passage.id: _hash(passage) for passage in each} for each in (only_before, only_after))
    return Diff(
        before=before.version,
        after=after.version,
        added=[key for key in new if key not in old],
        changed=[key for key, content in new.items() if old.get(key, content) != content],
        removed=[key for key in old if key not in new],
        reencoded=before.card.fingerprint != after.card.fingerprint,
    )


def num_compared(before: Table, after: Table) -> int:
    """How many passages ``diff`` reads: those in files that one of them has and the other has not."""
    return _num_only_in(before, after) + _num_only_in(after, before)


def titles(table: Table, other: Table, ids: Collection[str]) -> dict[str, str]:
    """Titles of these passages, by id. All of them must be in ``table``, and new or changed against ``other``."""
    passages = table.passages(besides=other.fragments()) if ids else ()
    return {passage.id: passage.title for passage in passages if passage.id in ids}


def _num_only_in(table: Table, other: Table) -> int:
    shared = other.fragments()
    return sum(fragment.count_rows() for key, fragment in table.fragments().items() if key not in shared)


def _only_in(table: Table, other: Table) -> Iterator[Passage]:
    """The passages that are in files the other version has not, or has with other deletions."""
    return table.passages(besides=other.fragments())


def _hash(passage: Passage) -> int:
    return hash((passage, tuple(sorted(passage.fields.items()))))
