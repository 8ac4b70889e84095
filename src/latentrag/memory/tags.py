"""Names of versions. A named version is never pruned.

They are Lance's tags, so that Lance's own tools know them and keep their hands off these versions too. The tag
``served`` is the version that is asked where nobody says which; without it that is the newest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from latentrag import io
from latentrag.errors import InputError, MemoryStoreError
from latentrag.memory import files
from latentrag.memory.recovery import changing, writing

SERVED = "served"
NEWEST = "newest"
_FOLDER = "_refs/tags"
_SCRATCH = "latentrag-unfinished"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)


def tags(folder: Path) -> dict[str, int]:
    """Every name and its version, ``served`` among them. Raises: MemoryStoreError for a tag that cannot be read."""
    found: dict[str, int] = {}
    for path in sorted((folder / _FOLDER).glob("*.json")):
        if path.stem == _SCRATCH:
            continue
        try:
            found[path.stem] = int(json.loads(path.read_bytes())["version"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise MemoryStoreError(f"the tag {path} cannot be read ({error!r}); delete that file") from error
    return found


def served(folder: Path) -> int | None:
    """The version that ``serve`` has chosen; None: the newest."""
    return tags(folder).get(SERVED)


def tag(folder: Path, name: str, version: int) -> None:
    """Give a version a name.

    Raises: InputError for a name that cannot be one; MemoryStoreError if it is another version's.
    """
    if not _NAME.fullmatch(name) or name.endswith((".lock", ".")) or ".." in name:
        raise InputError(f"{name!r} cannot be a tag; begin with a letter, go on with letters, digits, '.', '-' and '_'")
    if name in (SERVED, NEWEST, _SCRATCH):
        raise InputError(f"the tag {name!r} has a meaning of its own; choose another")
    with writing(folder):
        taken = tags(folder).get(name)
        if taken is not None:
            raise MemoryStoreError(f"the tag {name!r} names version {taken} already; remove it first")
        _write(folder, name, version)


def untag(folder: Path, name: str) -> int:
    """Take a name away. Returns: the version that had it. Raises: MemoryStoreError if there is no such tag."""
    with writing(folder):
        named = tags(folder)
        named.pop(SERVED, None)
        if name not in named:
            existing = f"choose one of {', '.join(named)}" if named else "it has none"
            raise MemoryStoreError(f"{folder} has no tag {name!r}; {existing}")
        remove(folder, [name])
    return named[name]


def serve(folder: Path, version: int | None) -> None:
    """Let a version be the one that is asked where nobody says which; None: the newest, whichever that is then."""
    with writing(folder):
        if version is not None:
            _write(folder, SERVED, version)
        elif SERVED in tags(folder):
            remove(folder, [SERVED])


def remove(folder: Path, names: Iterable[str]) -> None:
    """Take these names away: under the lock only."""
    for name in names:
        (folder / _FOLDER / f"{name}.json").unlink()
    if (folder / _FOLDER).is_dir():
        io.sync_folder(folder / _FOLDER)


def _write(folder: Path, name: str, version: int) -> None:
    """Whole or not at all: Lance writes the tag under another name, which is changed once it is on the disk."""
    scratch = f"{_FOLDER}/{_SCRATCH}.json"
    (folder / scratch).unlink(missing_ok=True)
    dataset = files.open_whole(folder, version)
    with changing(folder):
        dataset.tags.create(_SCRATCH, version)
        io.sync_all(folder, [scratch])
        (folder / scratch).replace(folder / _FOLDER / f"{name}.json")
        io.sync_folder(folder / _FOLDER)
