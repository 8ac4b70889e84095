"""A damaged memory made usable again: from its newest version that is whole, or from what is intact of a newer one."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from latentrag.errors import MemoryStoreError
from latentrag.memory import damage as damages
from latentrag.memory import files, tags
from latentrag.memory.damage import Damage
from latentrag.memory.data_files import passages_of_file
from latentrag.memory.intact import Intact, Missing
from latentrag.memory.lock import writer_lock
from latentrag.memory.recovery import changing, recover, unacknowledged
from latentrag.memory.table import Table
from latentrag.types import Passage


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was given up, what is left, and what is missing of what the newest version had.

    Attributes:
        set_aside: versions, oldest first.
        why: what was wrong with each.
        tags: names that they had.
        newest: the newest version since.
        num_passages: of that version.
        num_rescued: where ``newest`` was made of what is intact: how many of its passages come from files of older
            versions; None: nothing had to be made.
        older: missing ids, and the newest version that has another, older passage under that id.
        lost: missing ids that no version has.
        num_unnamed: missing passages whose ids cannot be read.
        num_returned: passages that the newest version had deleted or replaced, and that are back.
    """

    set_aside: list[int]
    why: dict[int, str]
    tags: list[str]
    newest: int
    num_passages: int
    num_rescued: int | None
    older: dict[str, int]
    lost: list[str]
    num_unnamed: int
    num_returned: int


def repair(folder: Path) -> Repaired:
    """Give up the versions that are damaged: they move to ``_damaged`` with the files that no other needs.

    Every file is compared with its recorded checksum, as ``verify`` does. If the newest version is damaged, the memory
    goes on from the newest that is whole; or, if that holds more passages, from a new version of what is intact: the
    newest version's files that are as they were written and, of its other rows, those that an older version has in
    such a file. Nothing is deleted. Names of damaged versions are taken away.

    Killed at any moment, it can be repeated. Raises: MemoryStoreError if nothing that is left can be read.
    """
    files.require_table(folder)
    with writer_lock(folder) as lock:
        damage = damages.find(folder)
        why = {version: what for version in files.version_numbers(folder) if (what := damage.of_version(version))}
        unfinished = set(unacknowledged(folder)) & why.keys()
        intact, missing = _choose(folder, damage, damaged=why.keys(), unfinished=unfinished)
        named = [name for name, version in tags.tags(folder).items() if version in why]
        # Lance commits on top of the newest version only, and reads all manifests to know what is needed.
        first = unfinished | damage.manifests.keys()
        unlisted = set(_in_no_other(folder, damage, among=damage.manifests.keys() - unfinished))
        with changing(folder):
            files.set_aside(folder, first)
            if intact is not None:
                intact.commit()
            files.set_aside(folder, why.keys() - first)
        tags.remove(folder, named)
        recover(folder, killed=True)
        lock.done()
    now = Table.open(folder)
    unlisted.difference_update(now.passages() if unlisted else ())
    older, lost = _still_somewhere(folder, missing.ids | {passage.id for passage in unlisted})
    return Repaired(
        set_aside=list(why),
        why=why,
        tags=named,
        newest=now.version,
        num_passages=len(now),
        num_rescued=None if intact is None else intact.num_elsewhere,
        older=older,
        lost=lost,
        num_unnamed=missing.num_unnamed,
        num_returned=missing.num_returned,
    )


def _choose(
    folder: Path, damage: Damage, *, damaged: Collection[int], unfinished: Collection[int]
) -> tuple[Intact | None, Missing]:
    """What to make a version of, None if the newest that is whole will do; and what is missing then.

    Raises: MemoryStoreError if there is neither.
    """
    whole = max(damage.needed.keys() - damaged, default=None)
    newest = max(damage.needed.keys() - unfinished, default=None)
    if whole is not None and newest == whole:
        return None, Missing(set(), 0, 0)
    back = None if whole is None else Table.open(folder, whole)
    intact = None if newest is None else Intact.of_version(folder, newest, damage)
    if intact is not None and len(intact) > (0 if back is None else len(back)):
        return intact, intact.missing(None)
    if back is None or intact is None:
        raise MemoryStoreError(
            f"no version of the memory at {folder} can be read; restore it from a copy or build it again"
        )
    return None, intact.missing(back)


def _in_no_other(folder: Path, damage: Damage, *, among: Collection[int]) -> Iterator[Passage]:
    """Passages in data files that only these versions can have, whose manifests, which say so, cannot be read.

    Nothing if they are not the newest: such files hold what was deleted or replaced since, too.
    """
    if max(among, default=0) <= max(damage.needed, default=0):
        return
    known = set().union(*damage.needed.values())
    for name in sorted(files.present(folder) - known):
        if name.startswith("data/"):
            with contextlib.suppress(MemoryStoreError):  # a dead writer's, perhaps: half a file
                yield from passages_of_file(folder, name)


def _still_somewhere(folder: Path, ids: set[str]) -> tuple[dict[str, int], list[str]]:
    """The newest version that has each of these ids, and the ids that none has."""
    found: dict[str, int] = {}
    seen: set[tuple[str, ...]] = set()
    for version in reversed(files.version_numbers(folder)):
        wanted = ids - found.keys()
        if not wanted:
            break
        table = Table.open(folder, version)
        new = {names: fragment for names, fragment in table.fragments().items() if names not in seen}
        if new:
            here = (key for key, _ in table.ids_with_row_ids(list(new.values())))
            found |= dict.fromkeys(wanted.intersection(here), version)
        seen |= new.keys()
    return found, sorted(ids - found.keys())
