"""A re-encoding that goes on after an interruption: what it has written is noted beside the table until it becomes a
version, or somebody else commits one."""

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
        header = {"version": self.table.version, "card": asdict(self.table.card)}
        staged, num_rows, kept = Staged(), 0, [header]
        for note in self._whole(header):
            staged += _staged(note)
            num_rows += note["rows"]
            kept.append(note)
        io.write_file(self._path, b"".join(json.dumps(line).encode() + b"\n" for line in kept))
        if not num_rows:
            version_files.remove_orphans(self.table.storage)
        return staged, num_rows

    def add(self, staged: Staged, num_rows: int) -> None:
        """These rows are written, and on the disk."""
        fragments = [fragment.to_json() for fragment in staged.fragments]
        checksums = {name: asdict(checksum) for name, checksum in staged.checksums.items()}
        io.append_lines(self._path, [{"rows": num_rows, "fragments": fragments, "checksums": checksums}], durable=True)

    def end(self) -> None:
        """They are a version."""
        self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.table.path / version_files.REENCODING

    def _whole(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        """The notes under this header, up to the first whose files are not as they were written."""
        noted = version_files.noted(self.table.path)
        whole: list[dict[str, Any]] = []
        for note in noted[1:] if noted[:1] == [header] else ():
            checksums = _staged(note).checksums
            if any(
                version_files.damage_of_file(self.table.path, name, committed=checksum)
                for name, checksum in checksums.items()
            ):
                break
            whole.append(note)
        return whole


def _staged(note: dict[str, Any]) -> Staged:
    from lance.fragment import FragmentMetadata

    fragments = [FragmentMetadata.from_json(json.dumps(each)) for each in note["fragments"]]
    return Staged(fragments, {name: Checksum(**each) for name, each in note["checksums"].items()})
