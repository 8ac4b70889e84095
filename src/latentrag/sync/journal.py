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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from latentrag import io
from latentrag.memory.origins import FileDigest

FORMAT = 1
FOLDER = "_sync"
_UNSETTLED_NS = 3_000_000_000
"""A file that was written so shortly before it was read may be written again without showing another time."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fact:
    """What was found in a file.

    Attributes:
        size_bytes, mtime_ns: of the file.
        read_ns: the clock when it was read.
        sha256: of its bytes.
        settings: how it was read and split.
        passages: what it holds.
    """

    size_bytes: int
    mtime_ns: int
    read_ns: int
    sha256: str
    settings: str
    passages: FileDigest

    def is_of(self, stat: os.stat_result) -> bool:
        """Whether the file with this stat certainly has these bytes, as far as its times can tell."""
        same = (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.mtime_ns)
        return same and self.mtime_ns + _UNSETTLED_NS < self.read_ns


@dataclass(slots=True)
class Journal:
    """The notes on one folder, in a file inside the memory: JSON lines, of which the last on a thing holds.

    Attributes:
        path: the file.
        folder: the folder's place when it was last synced; empty if unknown.
        words: length of a passage then; None if unknown.
        facts: by the file's name.
        in_memory: what the memory held of each file at version ``version_key``; meaningless if that is None.
    """

    path: Path
    folder: str
    words: int | None
    facts: dict[str, Fact]
    in_memory: dict[str, FileDigest]
    version_key: str | None

    @classmethod
    def load(cls, memory: Path, name: str) -> Journal:
        """The notes on the folder known as ``name``; without any if there are none that can be read."""
        journal = cls(memory / FOLDER / f"{quote(name, safe='')}.journal", "", None, {}, {}, None)
        is_whole = True
        for record in _records(journal.path):
            is_whole = record is not None and journal._take(record) and is_whole
        if not is_whole:  # what a lost line said of the memory is not known
            journal.version_key = None
        return journal

    def _take(self, record: Record) -> bool:
        """Note what a line says; False if it says nothing that is understood."""
        try:
            if "journal" in record:
                if record["journal"] != FORMAT:
                    return False
                self.folder, self.words = str(record["folder"]), int(record["words"])
            elif "file" in record:
                self.facts[record["file"]] = _fact(record)
            elif "held" in record:
                self.in_memory[record["held"]] = _digest(record)
            else:
                self.version_key = record["version"]
        except (KeyError, TypeError, ValueError):
            return False
        return True

    def append(self, facts: Mapping[str, Fact], version_key: str | None) -> None:
        """Add what was learnt of these files, after the commit that made ``in_memory`` true of them."""
        self.facts.update(facts)
        self.version_key = version_key
        lines = [*map(_fact_record, facts.items()), *(_digest_record(name, self.in_memory[name]) for name in facts)]
        try:
            self.path.parent.mkdir(exist_ok=True)
            header = [] if self.path.exists() else [self._header()]
            with self.path.open("a", encoding="utf-8") as file:
                # The line feed sets them apart from a line that was torn.
                file.write("\n" + _lines([*header, *lines, {"version": version_key}]))
        except OSError as error:
            self._warn(error)

    def rewrite(self, names: Iterable[str], *, warn: bool = True) -> None:
        """Keep the facts about these files and one line for each thing; without ``warn`` silently not if that fails."""
        self.facts = {name: self.facts[name] for name in names if name in self.facts}
        self.in_memory = {name: digest for name, digest in self.in_memory.items() if digest.num_passages}
        lines = [*map(_fact_record, self.facts.items()), *(_digest_record(*item) for item in self.in_memory.items())]
        try:
            self.path.parent.mkdir(exist_ok=True)
            io.write_file(self.path, _lines([self._header(), *lines, {"version": self.version_key}]).encode())
        except OSError as error:
            if warn:
                self._warn(error)

    def _header(self) -> Record:
        return {"journal": FORMAT, "folder": self.folder, "words": self.words}

    def _warn(self, error: OSError) -> None:
        warnings.warn(
            f"{self.path} cannot be written ({error.strerror or error}); nothing is lost, but the next sync reads "
            "all files again",
            stacklevel=3,
        )


def journals_in(memory: Path) -> list[Path]:
    """The notes on every folder that was synced into a memory."""
    return sorted((memory / FOLDER).glob("*.journal"))


def files_of(memory: Path, origins: Iterable[str]) -> dict[str, Path | None]:
    """Where the files lie that these origins name, as the last sync of their folders noted; None where none did."""
    wanted = sorted(set(origins))
    folders = {name: Journal.load(memory, name).folder for name in {each.partition("/")[0] for each in wanted}}
    found: dict[str, Path | None] = {}
    for origin in wanted:
        name, _, rest = origin.partition("/")
        found[origin] = Path(folders[name], rest) if folders[name] else None
    return found


def _records(path: Path) -> Iterator[Record | None]:
    """The lines of the file; None for one that is no JSON object."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return
    for line in text.split("\n"):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        yield record if isinstance(record, dict) else None


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _digest_record(name: str, digest: FileDigest) -> Record:
    return {"held": name, "passages": digest.num_passages, "digest": f"{digest.digest:x}"}


def _digest(record: Record) -> FileDigest:
    return FileDigest(int(record["passages"]), int(record["digest"], 16))


def _fact_record(item: tuple[str, Fact]) -> Record:
    name, fact = item
    return {
        "file": name,
        "size_bytes": fact.size_bytes,
        "mtime_ns": fact.mtime_ns,
        "read_ns": fact.read_ns,
        "sha256": fact.sha256,
        "settings": fact.settings,
        "passages": fact.passages.num_passages,
        "digest": f"{fact.passages.digest:x}",
    }


def _fact(record: Record) -> Fact:
    return Fact(
        size_bytes=int(record["size_bytes"]),
        mtime_ns=int(record["mtime_ns"]),
        read_ns=int(record["read_ns"]),
        sha256=str(record["sha256"]),
        settings=str(record["settings"]),
        passages=_digest(record),
    )
