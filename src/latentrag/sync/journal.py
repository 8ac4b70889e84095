"""The notes that make the next sync fast: facts about files, and what the memory held at one version.

A fact says what bytes of a given size and time hash to, and what that text is split into; it is true of any version
of the memory and of none. What the memory holds is kept with the name of the version it was seen at, and used for
that version only. So the notes may be lost or be those of another day: a sync then reads more and ends the same.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from latentrag.io import write_file
from latentrag.memory.origins import FileDigest

FORMAT = 1
FOLDER = "_sync"
_UNSETTLED_NS = 3_000_000_000
"""A file that was written so shortly before it was read may be written again without showing another time."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What a file has.

    Attributes:
        size_bytes, mtime_ns: of the file.
        read_ns: the clock when it was read.
        sha256: of its bytes.
        reading: how it was read and split.
        passages: what it holds.
    """

    size_bytes: int
    mtime_ns: int
    read_ns: int
    sha256: str
    reading: str
    passages: FileDigest

    def is_of(self, stat: os.stat_result) -> bool:
        """Whether the file with this stat certainly has these bytes, as far as its times can tell."""
        same = (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.mtime_ns)
        return same and self.mtime_ns + _UNSETTLED_NS < self.read_ns


@dataclass(slots=True)
class Journal:
    """The notes on one folder, in a file in the memory's local folder (``Storage.local``): JSON lines, of which the
    last on a thing holds.

    Attributes:
        path: the file.
        folder: the folder's place when it was last synced; empty if unknown.
        words: length of a passage then; None if unknown.
        facts: by the file's name.
        in_memory: what the memory held of each file at version ``version_key``; meaningless if that is None.
    """

    path: Path
    folder: str = ""
    words: int | None = None
    facts: dict[str, Fact] = field(default_factory=dict)
    in_memory: dict[str, FileDigest] = field(default_factory=dict)
    version_key: str | None = None

    @classmethod
    def load(cls, local: Path, name: str) -> Journal:
        """The notes on the folder known as ``name``; without any if there are none that can be read."""
        journal = cls(local / FOLDER / f"{quote(name, safe='')}.journal")
        try:
            text = journal.path.read_text("utf-8", errors="replace")
        except OSError:
            return journal
        is_whole = True
        for line in filter(None, text.split("\n")):
            try:
                journal._take(json.loads(line))
            except (KeyError, TypeError, ValueError):
                is_whole = False
        if not is_whole:  # what a lost line said of the memory is not known
            journal.version_key = None
        return journal

    def _take(self, record: Any) -> None:
        """Note what a line says. Raises: KeyError, TypeError or ValueError if it says nothing that is understood."""
        if "journal" in record:
            if record["journal"] != FORMAT:
                raise ValueError
            self.folder, self.words = str(record["folder"]), int(record["words"])
        elif "file" in record:
            size_bytes, mtime_ns, read_ns = (int(record[key]) for key in ("size_bytes", "mtime_ns", "read_ns"))
            fact = Fact(size_bytes, mtime_ns, read_ns, record["sha256"], record["settings"], _digest(record))
            self.facts[record["file"]] = fact
        elif "held" in record:
            self.in_memory[record["held"]] = _digest(record)
        else:
            self.version_key = record["version"]

    def append(self, facts: Mapping[str, Fact], version_key: str | None) -> None:
        """Add what was learnt of these files, after the commit that made ``in_memory`` true of them."""
        self.facts.update(facts)
        self.version_key = version_key
        lines = self._lines(facts, facts, header=not self.path.exists())
        with self._warning_if_not_written():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" + lines)  # the line feed sets them apart from a line that was torn

    def rewrite(self, names: Iterable[str], *, warn: bool = True) -> None:
        """Keep the facts about these files and one line for each thing; without ``warn`` silently not if that fails."""
        self.facts = {name: self.facts[name] for name in names if name in self.facts}
        self.in_memory = {name: digest for name, digest in self.in_memory.items() if digest.num_passages}
        with self._warning_if_not_written() if warn else suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, self._lines(self.facts, self.in_memory, header=True).encode())

    def _lines(self, facts: Mapping[str, Fact], in_memory: Iterable[str], *, header: bool) -> str:
        """These facts, and what the memory holds of the files of these names."""
        records: list[dict[str, object]] = []
        if header:
            records.append({"journal": FORMAT, "folder": self.folder, "words": self.words})
        for name, fact in facts.items():
            times = {"size_bytes": fact.size_bytes, "mtime_ns": fact.mtime_ns, "read_ns": fact.read_ns}
            read = {"sha256": fact.sha256, "settings": fact.reading}
            records.append({"file": name, **times, **read, **_record(fact.passages)})
        records += [{"held": name, **_record(self.in_memory[name])} for name in in_memory]
        records.append({"version": self.version_key})
        return "".join(json.dumps(record) + "\n" for record in records)

    @contextmanager
    def _warning_if_not_written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            warnings.warn(
                f"{self.path} cannot be written ({error.strerror or error}); nothing is lost, but the next sync reads "
                "all files again",
                stacklevel=4,
            )


def journals_in(local: Path) -> list[Path]:
    """The notes on every folder that was synced into a memory."""
    return sorted((local / FOLDER).glob("*.journal"))


def files_of(local: Path, origins: Iterable[str]) -> dict[str, Path | None]:
    """Where the files lie that these origins name, as the last sync of their folders noted; None where none did."""
    files: dict[str, Path | None] = {}
    folders: dict[str, str] = {}
    for origin in sorted(set(origins)):
        name, _, rest = origin.partition("/")
        if name not in folders:
            folders[name] = Journal.load(local, name).folder
        files[origin] = Path(folders[name], rest) if folders[name] else None
    return files


def _record(digest: FileDigest) -> dict[str, object]:
    return {"passages": digest.num_passages, "digest": f"{digest.digest:x}"}


def _digest(record: Mapping[str, Any]) -> FileDigest:
    return FileDigest(int(record["passages"]), int(record["digest"], 16))
