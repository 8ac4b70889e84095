"""What has to be read: the folder as it is beside what is known of it."""

from __future__ import annotations

import time
from collections.abc import Set
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from latentrag.corpus.readers import File
from latentrag.memory.origins import Held
from latentrag.sync.files import SkippedError, sha256_of, stat_of
from latentrag.sync.journal import Fact, Journal


@dataclass(slots=True)
class Plan:
    """The folder's files, each in one place.

    Attributes:
        to_read: new ones, changed ones, and those of which too little is known.
        unchanged: names of those whose passages the memory has.
        touched: of these, the facts that have to be noted anew, since size or time are not those noted.
        missing: names of files that the memory has passages of and the folder no more.
        skipped: files that are left out, and why.
    """

    to_read: list[File] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    touched: dict[str, Fact] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def make_plan(
    files: list[File],
    skipped: list[tuple[Path, str]],
    *,
    folder: Path,
    name: str,
    journal: Journal,
    settings: str,
    checksum: bool,
) -> Plan:
    """Look at every file's size and time; hash those that differ from what is noted, or all with ``checksum``.

    Args:
        files: of the folder, and ``skipped``, what was left out when they were looked for.
        journal: with what the memory has of each file.
        settings: how files are read and split in this sync.
    """
    held = journal.held
    plan = Plan(skipped=list(skipped))
    for file in files:
        try:
            fact = _known(file, journal.facts.get(file.name), settings=settings, checksum=checksum)
        except SkippedError as error:
            plan.skipped.append((file.path, str(error)))
            continue
        if fact is None or fact.held != held.get(file.name, Held()):
            plan.to_read.append(file)
            continue
        plan.unchanged.append(file.name)
        if fact is not journal.facts[file.name]:
            plan.touched[file.name] = fact
    present = {file.name for file in files}
    # What lies under a folder that cannot be entered is out of sight, not gone.
    hidden = {PurePosixPath(name, path.relative_to(folder).as_posix()) for path, _ in skipped}
    plan.missing = [
        each
        for each, of_file in sorted(held.items())
        if of_file.num_passages and each not in present and not _is_under(each, hidden)
    ]
    return plan


def _known(file: File, fact: Fact | None, *, settings: str, checksum: bool) -> Fact | None:
    """What is certainly in the file, if that is known without splitting it. Raises: SkippedError."""
    read_ns = time.time_ns()
    stat = stat_of(file)
    if fact is None or fact.settings != settings:
        return None
    if fact.is_of(stat) and not checksum:
        return fact
    if sha256_of(file, stat) != fact.sha256:
        return None
    return replace(fact, size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, read_ns=read_ns)


def _is_under(name: str, hidden: Set[PurePosixPath]) -> bool:
    path = PurePosixPath(name)
    return path in hidden or not hidden.isdisjoint(path.parents)
