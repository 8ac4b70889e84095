"""A record of what each committed file held, which acknowledges the versions of a memory.

Lance writes files and renames them, and leaves it to the operating system when they reach the disk. Everything that a
commit consists of is forced there by us (``latentrag.io``) before the commit is recorded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from latentrag import io

CHECKSUMS_FILE = "_checksums.jsonl"
"""One line of JSON for each file of the table, in the order of the commits. A version is acknowledged when the line
of its manifest is on the disk."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a file held when it was committed."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, file: Path) -> Checksum:
        """Of the file as it is now. Raises: OSError."""
        return cls(file.stat().st_size, io.sha256_of_file(file))


def record(folder: Path, names: Iterable[str]) -> None:
    """Append the checksums of these files, which acknowledges the versions whose manifests are among them."""
    lines = b"".join(_line(name, Checksum.of(folder / name)) for name in names)
    with (folder / CHECKSUMS_FILE).open("ab+") as stream:
        _cut_unfinished_line(stream.fileno())
        stream.write(lines)
        stream.flush()
        io.sync_handle(stream.fileno())
    io.sync_folder(folder)


def has_records(folder: Path) -> bool:
    """Whether any commit of this memory was recorded: those of the first latentrag were not."""
    return (folder / CHECKSUMS_FILE).exists()


def recorded(folder: Path) -> dict[str, Checksum]:
    """Every recorded file. A line that cannot be read is left out, as if its file had not been recorded."""
    if not has_records(folder):
        return {}
    parsed = map(_parsed, (folder / CHECKSUMS_FILE).read_bytes().split(b"\n"))
    return dict(each for each in parsed if each is not None)


def recorded_of(folder: Path, name: str) -> Checksum | None:
    """The newest record of one file, without reading the others'."""
    if not has_records(folder):
        return None
    content = (folder / CHECKSUMS_FILE).read_bytes()
    start = content.rfind(_beginning(name))
    if start < 0:
        return None
    found = _parsed(content[start:].split(b"\n", 1)[0])
    return None if found is None else found[1]


def keep_records(folder: Path, names: Collection[str]) -> None:
    """Forget the records of all other files."""
    if has_records(folder):
        kept = (_line(name, checksum) for name, checksum in recorded(folder).items() if name in names)
        io.write_file(folder / CHECKSUMS_FILE, b"".join(kept))


def _beginning(name: str) -> bytes:
    return b'{"file": ' + json.dumps(name).encode() + b","


def _line(name: str, checksum: Checksum) -> bytes:
    fields = {"file": name, "bytes": checksum.size_bytes, "sha256": checksum.sha256}
    return json.dumps(fields).encode() + b"\n"


def _parsed(line: bytes) -> tuple[str, Checksum] | None:
    try:
        fields = json.loads(line)
        return fields["file"], Checksum(fields["bytes"], fields["sha256"])
    except (ValueError, TypeError, KeyError):
        return None


def _cut_unfinished_line(handle: int) -> None:
    """A power failure can leave the beginning of a line, which the next one must not continue."""
    content = os.pread(handle, os.fstat(handle).st_size, 0)
    os.ftruncate(handle, content.rfind(b"\n") + 1)
