"""A disk that forgets what was not forced onto it.

``Disk`` watches the calls of fsync and keeps, for every file, the content that is on the disk for sure, and for every
folder its list of names. ``after_power_failure`` makes what a machine might find when the power is back: each name and
each file as it was forced to the disk, or as it was last written, or, for content, anything in between.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Names = dict[str, int]


@dataclass
class Disk:
    """What is on the disk for sure. Files are known by their inodes.

    Attributes:
        contents: of files, when they were last forced to the disk.
        names: of folders, when they were last forced to the disk: name → inode.
        before_sync: called at each fsync, before it takes effect.
    """

    root: Path
    before_sync: Callable[[], None] = lambda: None
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, Names] = field(default_factory=dict)

    def sync_everything(self) -> None:
        for path in (self.root, *self.root.rglob("*")):
            self._keep(path, path.stat())

    def fsync(self, handle: int) -> None:
        """In place of ``os.fsync``."""
        self.before_sync()
        found = os.fstat(handle)
        self._keep(self._path(found), found)

    def _path(self, wanted: os.stat_result) -> Path:
        for path in (self.root, *self.root.rglob("*")):
            if os.path.samestat(path.stat(), wanted):
                return path
        return self.root.parent

    def _keep(self, path: Path, found: os.stat_result) -> None:
        if stat.S_ISDIR(found.st_mode):
            self.names[found.st_ino] = _names(path)
        else:
            self.contents[found.st_ino] = path.read_bytes()

    def after_power_failure(self, copy: Path, rng: random.Random, *, worst: bool) -> None:
        """Make in ``copy`` what may be found. ``worst``: all that was not forced to the disk is lost."""
        current = {path.stat().st_ino: path for path in (self.root, *self.root.rglob("*"))}
        self._restore(self.root.stat().st_ino, copy, current, rng, worst)

    def _restore(self, folder: int, copy: Path, current: dict[int, Path], rng: random.Random, worst: bool) -> None:
        copy.mkdir()
        safe = self.names.get(folder, {})
        now = _names(current[folder]) if folder in current else {}
        for name in sorted(safe.keys() | now.keys()):
            inode = (safe if worst or rng.random() < 0.5 else now).get(name)
            if inode is None:
                continue
            if inode in self.names or (inode in current and current[inode].is_dir()):
                self._restore(inode, copy / name, current, rng, worst)
            else:
                (copy / name).write_bytes(self._content(inode, current, rng, worst))

    def _content(self, inode: int, current: dict[int, Path], rng: random.Random, worst: bool) -> bytes:
        safe = self.contents.get(inode, b"")
        now = current[inode].read_bytes() if inode in current else safe
        if worst or now == safe:
            return safe
        return rng.choice([safe, now, b"", now[: len(now) // 2], now[:-1], b"\0" * len(now)])


def _names(folder: Path) -> Names:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}
