"""Files that appear whole or not at all, JSON lines, locks, hashes and progress bars: each of them once.

What is renamed into place is forced to the disk first, and the folder that lists it afterwards, so that a power failure
leaves either the old or the new content. Nothing here knows what the files hold.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import Task, TaskID

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk, or a share of it, that is full."""
_IS_WINDOWS = os.name == "nt"

# Forced to the disk


def sync_handle(handle: int) -> None:
    """Force the content of an open, writable file to the disk."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)  # fsync there stops at the disk's own cache
    else:
        os.fsync(handle)


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    handle = os.open(path, os.O_RDWR if _IS_WINDOWS else os.O_RDONLY)  # Windows syncs writable handles only
    try:
        sync_handle(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Force a folder's list of names to the disk. Does nothing on Windows, where folders cannot be opened."""
    if _IS_WINDOWS:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path, names: Iterable[str]) -> None:
    """Force these files to the disk, then the folders that list them, up to ``folder``.

    Args:
        names: relative to ``folder``, with slashes.
    """
    parents = {"."}
    for name in names:
        sync_file(folder / name)
        parents.update(map(str, PurePosixPath(name).parents))
    for parent in sorted(parents, reverse=True):  # "." is last
        sync_folder(folder / parent)


def sync_tree(folder: Path) -> None:
    """Force every file below a folder, and the folders that list them, to the disk."""
    sync_all(folder, [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()])


# Whole or not at all


@contextmanager
def replacing_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A scratch path beside ``path``; what is written there takes its place when the block ends without an error.

    Args:
        shared: several processes or threads may write this file at once, so each gets a scratch path of its own. Where
            a lock keeps others away, the one scratch name means that a killed writer leaves nothing that stays.
    """
    own = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    scratch = path.with_name(f"{path.name}{own}.new")
    try:
        yield scratch
        sync_file(scratch)
        scratch.replace(path)
        sync_folder(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """A file with this content in place of any other, whole or not at all, on the disk when this returns."""
    with replacing_file(path) as scratch:
        scratch.write_bytes(content)


def write_json(path: Path, content: object, *, indent: int | None = 2) -> None:
    """``write_file`` of a JSON value. Raises: ValueError for a number that is not finite; see ``finite``."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    write_file(path, (text + "\n").encode())


@contextmanager
def replacing_folder(folder: Path, *, shared: bool = False) -> Iterator[Path]:
    """A scratch folder beside ``folder`` that takes its place when the block ends without an error.

    The folder that was there stays until then, and after an error. Both names are on one file system, so the exchange
    is two renames; a reader sees the old folder, for an instant none, then the new one. A kill in that instant leaves
    the old folder under the name ``name_aside``.

    Args:
        shared: as for ``replacing_file``.
    """
    own = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f".{folder.name}{own}.new")
    aside = folder.with_name(name_aside(f"{folder.name}{own}"))
    try:
        for leftover in (scratch, *([aside] if folder.exists() else [])):
            if leftover.exists():
                shutil.rmtree(leftover)
        scratch.mkdir()
        yield scratch
        sync_tree(scratch)
        if folder.exists():
            folder.rename(aside)
        scratch.rename(folder)
        sync_folder(folder.parent)
    finally:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        for leftover in (scratch, aside):
            if leftover.exists():
                shutil.rmtree(leftover)


def name_aside(name: str) -> str:
    """What ``replacing_folder`` calls the folder ``name`` between its two renames."""
    return f".{name}.old"


# JSON and JSON lines


def finite(value: Any, *, strict: bool = False) -> Any:
    """The same value for JSON, which cannot say −∞ (a probability of zero), ∞ or NaN: they become null.

    Args:
        strict: only −∞ does; ∞ and NaN, which only a bug makes, stay for ``json.dumps`` to refuse.
    """
    if isinstance(value, float):
        return None if value == -math.inf or not (strict or math.isfinite(value)) else value
    if isinstance(value, Mapping):
        return {key: finite(part, strict=strict) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part, strict=strict) for part in value]
    return value


def append_lines(path: Path, records: Iterable[Mapping[str, object]], *, durable: bool = False) -> None:
    """Append records to a file of JSON lines, after cutting a line that a kill left unfinished: all of them or none.

    Args:
        durable: on the disk when this returns.
    """
    lines = b"".join(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n" for record in records)
    with path.open("ab+", buffering=0) as stream:
        _cut_unfinished_line(stream.fileno())
        size = os.fstat(stream.fileno()).st_size
        try:
            written = 0
            while written < len(lines):  # on a full disk a part is written first
                written += stream.write(lines[written:]) or 0
        except OSError:
            os.ftruncate(stream.fileno(), size)
            raise
        if durable:
            sync_handle(stream.fileno())


def read_lines(path: Path, *, unfinished: bool = True) -> Iterator[tuple[int, Any]]:
    """The number, from 1, and the value of every line of a file of JSON lines; None for a line that is not JSON.

    Args:
        unfinished: False leaves out what follows the last end of a line: it is being written, or a kill cut it short.
    """
    lines = path.read_bytes().split(b"\n")
    if not unfinished or not lines[-1]:
        del lines[-1]
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError:  # no JSON or no UTF-8
            value = None
        yield number, value


def cut_unfinished_line(path: Path) -> None:
    """Remove the part of a line that a kill or a power failure left at the end of a file."""
    with path.open("rb+") as stream:
        _cut_unfinished_line(stream.fileno())


def _cut_unfinished_line(handle: int) -> None:
    end = position = os.fstat(handle).st_size
    while position > 0:
        start = max(0, position - (1 << 16))
        found = pread(handle, position - start, start).rfind(b"\n")
        if found >= 0:
            position = start + found + 1
            break
        position = start
    if position < end:
        os.ftruncate(handle, position)


def pread(handle: int, size_bytes: int, offset: int) -> bytes:
    """Read at an offset. Where the system has no pread the handle's position moves: one thread a handle there."""
    if hasattr(os, "pread"):
        return os.pread(handle, size_bytes, offset)
    os.lseek(handle, offset, os.SEEK_SET)
    return os.read(handle, size_bytes)


# Locks and hashes


@contextmanager
def exclusive(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """True if this process got the exclusive lock on a file or folder, which must exist.

    The lock ends with the block or with its process, however that ends. Where a system has no locks on files the answer
    is True for everybody.

    Args:
        wait: until whoever has the lock lets it go, rather than answer False.
    Raises: OSError.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield True
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = _is_at(handle, path)  # not if somebody has replaced or deleted it meanwhile
        except BlockingIOError:
            taken = False
        yield taken  # not in the handler: what the block raises has nothing to do with the lock
    finally:
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def text_of(path: Path | str) -> str:
    """A path as text: its bytes as UTF-8, whatever the locale, so that a name is the same on every machine.

    Bytes that are not UTF-8 become lone surrogates.
    """
    return os.fsencode(path).decode("utf-8", "surrogateescape")


class Opens(Protocol):
    """A file on a disk or elsewhere."""

    def open(self, mode: Literal["rb"]) -> io.BufferedReader: ...


def sha256_of_file(path: Path | Opens) -> str:
    """Of the file's bytes, as hexadecimal digits. Raises: OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def give_back_memory() -> None:
    """Hand what was freed back to the system, where glibc would keep it. It takes milliseconds."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def num_bytes_of_ram() -> int | None:
    """RAM of this machine; None where the system does not say."""
    if not hasattr(os, "sysconf"):
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


# Progress


class Progress:
    """A progress bar on standard error, or nothing at all: callers need not know which."""

    def __init__(self, shown: tuple[RichProgress, TaskID] | None = None) -> None:
        self._shown = shown

    def advance(self, number: int = 1) -> None:
        """So many more are done."""
        if self._shown is not None:
            bar, task = self._shown
            bar.advance(task, number)

    def update(self, *, completed: int | None = None, total: int | None = None, description: str | None = None) -> None:
        """Set what is shown; None leaves it."""
        if self._shown is not None:
            bar, task = self._shown
            bar.update(task, completed=completed, total=total, description=description)

    @property
    def is_live(self) -> bool:
        """Whether standard error shows a bar."""
        return self._shown is not None and not self._shown[0].disable

    def say(self, line: str) -> None:
        """A line on standard error, above the bar if there is one."""
        if self._shown is not None and self.is_live:
            self._shown[0].console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


@contextmanager
def progress(
    description: str,
    total: int | None,
    *,
    wanted: bool = True,
    completed: int = 0,
    unit_of: Callable[[Task], str] | None = None,
    time_left: bool = True,
) -> Iterator[Progress]:
    """A bar with the time left on standard error, wiped away at the end; none where ``wanted`` is False or standard
    error is no terminal.

    Args:
        total: None where it is not known.
        unit_of: what to show as the number done, from rich's task; default: "done/total".
        time_left: False shows no time left.
    """
    if not wanted:
        yield Progress()
        return
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.text import Text

    class Unit(rich_progress.ProgressColumn):
        def render(self, task: Task) -> Text:
            assert unit_of is not None
            return Text(unit_of(task))

    console = Console(stderr=True)
    columns: Sequence[rich_progress.ProgressColumn] = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn() if unit_of is None else Unit(),
        *([rich_progress.TimeRemainingColumn()] if time_left else []),
    )
    live = sys.stderr.isatty() and console.is_interactive
    with rich_progress.Progress(*columns, console=console, transient=True, disable=not live) as bar:
        yield Progress((bar, bar.add_task(description, total=total, completed=completed)))
