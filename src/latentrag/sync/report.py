"""What a sync did, or would do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from latentrag.corpus import Ledger
from latentrag.memory.object_path import Folder


@dataclass(slots=True)
class Tally:
    """A count that grows while a sync goes on.

    Attributes:
        added: that were not there.
        changed: that were there and differ now.
        removed: that are gone, from the memory as well.
        missing: that are gone, but stay in the memory, since nobody asked to delete them.
        unchanged: that are as they were.
    """

    added: int = 0
    changed: int = 0
    removed: int = 0
    missing: int = 0
    unchanged: int = 0


@dataclass(slots=True)
class Report:
    """What a sync did; with ``dry_run`` what it would do. It is complete when the sync has ended.

    Attributes:
        memory: its path.
        folder: what was synced, and ``name``, what the memory knows it as.
        version: of the memory afterwards; None where there is no memory, because nothing was put into one.
        files, passages: how many of the folder's.
        num_encoded: passages for which a vector was computed; the vectors of the others were there already.
        num_passages: of the whole memory afterwards.
        skipped: files that were left out, each with the reason; what the memory had of them, it keeps.
        ledgers: of files that were read and of which something was left out or the encoding was guessed.
        missing: files that are gone and whose passages stay.
        pruned: versions that are gone, because only some were to be kept.
    """

    memory: Folder
    folder: Path
    name: str
    dry_run: bool
    version: int | None
    num_passages: int
    num_encoded: int = 0
    files: Tally = field(default_factory=Tally)
    passages: Tally = field(default_factory=Tally)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    ledgers: list[Ledger] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    pruned: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Progress:
    """How far a sync is. ``num_passages`` counts those that are written or ready to be."""

    num_files_done: int
    num_files: int
    num_passages: int
