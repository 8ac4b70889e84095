"""What is wrong with the files of a memory, told by the checksums of their commits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from latentrag.errors import DamagedVersionError, MemoryStoreError
from latentrag.memory import durable, files


@dataclass(frozen=True, slots=True)
class Damage:
    """What of a memory cannot be trusted.

    Attributes:
        manifests: versions that cannot be read at all, and why.
        files: files with passages or deletions that are missing or not as they were written, and what is wrong.
        needed: the files with passages and deletions of every version that is not among ``manifests``.
    """

    manifests: dict[int, str]
    files: dict[str, str]
    needed: dict[int, set[str]]

    def of_version(self, version: int) -> str | None:
        """What is wrong with a version, in words; None: nothing."""
        if version in self.manifests:
            return self.manifests[version]
        return ", ".join(self.files[name] for name in sorted(self.needed[version] & self.files.keys())) or None


def find(folder: Path) -> Damage:
    """Open every version and read every file that one needs. Files without a recorded checksum: their length only."""
    manifests: dict[int, str] = {}
    needed: dict[int, set[str]] = {}
    lengths: dict[str, int | None] = {}
    for version in files.version_numbers(folder):
        try:
            found = files.sizes(files.open_readable(folder, version))
        except DamagedVersionError as error:
            manifests[version] = error.what
            continue
        needed[version] = set(found)
        lengths |= found
    wrong = {name: what for name in lengths if (what := files.wrong_length(folder, name, lengths[name]))}
    wrong |= changed(folder, lengths.keys() - wrong.keys(), durable.recorded(folder))
    return Damage(manifests, wrong, needed)


def changed(folder: Path, names: Iterable[str], known: Mapping[str, durable.Checksum]) -> dict[str, str]:
    """Those of these files that do not hold what they held when they were committed, each with a line that says so."""
    return {
        name: f"{name} is not as it was written" for name in names if not _as_written(folder / name, known.get(name))
    }


def _as_written(file: Path, committed: durable.Checksum | None) -> bool:
    try:
        return committed is None or durable.Checksum.of(file) == committed
    except OSError:
        return False


def require_as_written(folder: Path, names: Iterable[str], known: Mapping[str, durable.Checksum]) -> None:
    """For who is about to copy these files' rows, or to remove others that may be all that can be read.

    Raises: MemoryStoreError if one is not as it was written.
    """
    if wrong := changed(folder, names, known):
        first = next(iter(wrong.values()))
        raise MemoryStoreError(
            f"{first}, so nothing of {folder} is copied or removed; restore that file, which `latentrag index verify "
            f"{folder}` shows, from a copy, or go on with what is intact with `latentrag index repair {folder}`"
        )
