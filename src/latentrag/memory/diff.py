"""What differs between two versions of a memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from latentrag.memory.table import Table


@dataclass(frozen=True, slots=True)
class Diff:
    """From one version to another: ids of passages, in the order of the table.

    Attributes:
        added: not in the first.
        changed: in both, with another text, title, source, page or place. New vectors alone are no change.
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
    old, new = _only_in(before, after), _only_in(after, before)
    return Diff(
        before=before.version,
        after=after.version,
        added=[key for key in new if key not in old],
        changed=[key for key, content in new.items() if old.get(key, content) != content],
        removed=[key for key in old if key not in new],
        reencoded=before.manifest.fingerprint != after.manifest.fingerprint,
    )


def num_read(before: Table, after: Table) -> int:
    """How many passages ``diff`` reads: those in files that one of them has and the other has not."""
    return _num_only_in(before, after) + _num_only_in(after, before)


def titles(table: Table, other: Table, ids: Collection[str]) -> dict[str, str]:
    """Titles of these passages, by id. All of them must be in ``table``, and new or changed against ``other``."""
    passages = table.passages(besides=other.fragments()) if ids else ()
    return {passage.id: passage.title for passage in passages if passage.id in ids}


def _num_only_in(table: Table, other: Table) -> int:
    shared = other.fragments()
    return sum(fragment.count_rows() for key, fragment in table.fragments().items() if key not in shared)


def _only_in(table: Table, other: Table) -> dict[str, int]:
    """Hashes of the passages, by id, that are in files the other version has not, or has with other deletions."""
    return {passage.id: hash(passage) for passage in table.passages(besides=other.fragments())}
