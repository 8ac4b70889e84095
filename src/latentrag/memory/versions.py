"""What a user calls a version: a number, a tag, a moment, ``newest`` or ``served``."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from pathlib import Path

from latentrag.errors import UnknownVersionError
from latentrag.memory import files
from latentrag.memory.table import Table
from latentrag.memory.tags import NEWEST, SERVED, served, tags


def resolve(folder: Path, which: int | str | None) -> int | None:
    """The number of a version; None: the newest.

    Args:
        which: a number; a tag; ``newest`` (or None); ``served``; or a moment in ISO 8601, for the version that was the
            newest then. A day without a time means its end, a time without a zone is UTC, as in the log.
    Raises: UnknownVersionError if the memory has no such version; MemoryStoreError.
    """
    if which is None or which == NEWEST:
        return None
    if which == SERVED:
        return served(folder)
    if isinstance(which, int) or (which.isascii() and which.isdigit()):
        return int(which)
    files.require_table(folder)
    named = tags(folder)
    if which in named:
        return named[which]
    moment = _moment(which)
    if moment is None:
        names = [name for name in named if name != SERVED]
        known = f" or a tag ({', '.join(names)})" if names else ""
        raise UnknownVersionError(
            f"{folder} has no version {which!r}; give a number{known} or a date such as 2026-01-31; see `index log`"
        )
    return _as_of(folder, moment, which)


def _as_of(folder: Path, moment: datetime, which: str) -> int:
    log = Table.open(folder).log()
    found = [version.number for version in log if version.time <= moment]
    if not found:
        first = log[0]
        raise UnknownVersionError(
            f"{folder} has no version as old as {which}; its oldest, {first.number}, is of "
            f"{first.time:%Y-%m-%d %H:%M:%S} UTC"
        )
    return found[-1]


def _moment(text: str) -> datetime | None:
    try:
        return datetime.combine(date.fromisoformat(text), time.max, UTC)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
