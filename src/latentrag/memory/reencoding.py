"""Long writes that go on after an interruption: what a re-encoding, or a build by several processes, has written is
noted beside the table until it becomes a version, or somebody else commits one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentrag import io
from latentrag.memory import version_files
from latentrag.memory.storage import Checksum
from latentrag.memory.table import Staged, Table

ROWS_PER_NOTE = 8_192
"""What an interruption costs at most."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What was written for one table: rows of its passages, from the first on, with the vectors of its card's encoder.

    Within ``Table.writing``.
    """

    table: Table

    def begin(self) -> tuple[Staged, int]:
        """What an interrupted re-encoding of this version by this encoder has left, and how many passages that is."""
        staged, num_rows = Staged(), 0
        for note in _begun(self.table, self._path, {}, in_order=True):
            staged += staged_of(note)
            num_rows += note["rows"]
        return staged, num_rows

    def add(self, staged: Staged, num_rows: int) -> None:
        """These rows are written, and on the disk."""
        io.append_lines(self._path, [note_of(staged, num_rows)], durable=True)

    def end(self) -> None:
        """They are a version."""
        self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.table.storage.local / version_files.REENCODING


@dataclass(frozen=True, slots=True)
class WrittenUnit:
    """Rows that one process has written, and that are on the disk.

    Attributes:
        digest: of the passages.
    """

    digest: str
    num_rows: int
    staged: Staged


@dataclass(frozen=True, slots=True)
class UnitNotes:
    """What several processes have written for one commit: units of the passages, by number.

    Within ``Table.writing`` of the process that commits.
    """

    table: Table

    def begin(self) -> dict[int, WrittenUnit]:
        """The units that an interrupted build of this version with this encoder has left."""
        notes = _begun(self.table, self._path, {"build": True}, in_order=False)
        return {note["unit"]: WrittenUnit(note["digest"], note["rows"], staged_of(note)) for note in notes}

    def add(self, number: int, unit: WrittenUnit) -> None:
        """A unit is written."""
        note = {"unit": number, "digest": unit.digest, **note_of(unit.staged, unit.num_rows)}
        io.append_lines(self._path, [note], durable=True)

    def end(self) -> None:
        """They are a version."""
        self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.table.storage.local / version_files.REENCODING


def _begun(table: Table, path: Path, more: dict[str, Any], *, in_order: bool) -> list[dict[str, Any]]:
    """The notes of an interrupted run of the same kind that are of use; others are forgotten, with their files.

    Args:
        more: what the header says besides version and encoder.
        in_order: a note is of no use after one whose files are not as they were written.
    """
    header = {"version": table.version, "card": asdict(table.card), **more}
    noted = version_files.noted(path.parent)
    kept: list[dict[str, Any]] = []
    for note in noted[1:] if noted[:1] == [header] else ():
        if _is_whole(table, note):
            kept.append(note)
        elif in_order:
            break
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write_file(path, b"".join(json.dumps(line).encode() + b"\n" for line in [header, *kept]))
    if not kept:
        version_files.remove_orphans(table.storage)
    return kept


def _is_whole(table: Table, note: dict[str, Any]) -> bool:
    """Whether its files are as they were written."""
    checksums = staged_of(note).checksums
    return not any(
        version_files.damage_of_file(table.path, name, committed=checksum) for name, checksum in checksums.items()
    )


def note_of(staged: Staged, num_rows: int) -> dict[str, Any]:
    """As JSON."""
    fragments = [fragment.to_json() for fragment in staged.fragments]
    checksums = {name: asdict(checksum) for name, checksum in staged.checksums.items()}
    return {"rows": num_rows, "fragments": fragments, "checksums": checksums}


def staged_of(note: dict[str, Any]) -> Staged:
    """The reverse of ``note_of``."""
    from lance.fragment import FragmentMetadata

    fragments = [FragmentMetadata.from_json(json.dumps(each)) for each in note["fragments"]]
    return Staged(fragments, {name: Checksum(**each) for name, each in note["checksums"].items()})
