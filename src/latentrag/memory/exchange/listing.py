"""memory.json: which files make up a memory, with their sizes and hashes, and what encoded its passages."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from latentrag.errors import FetchError, MemoryStoreError
from latentrag.memory.manifest import Manifest

LISTING = "memory.json"
FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of the memory. ``name`` is nothing but a name: no folder, and of the one kind there is."""

    name: str
    size_bytes: int
    sha256: str
    num_passages: int


@dataclass(frozen=True, slots=True)
class Listing:
    """What a pushed memory is.

    Attributes:
        version: that was pushed.
        num_passages: in all files.
        manifest: what encoded the passages.
        files: in the order of the passages.
    """

    version: int
    num_passages: int
    manifest: Manifest
    files: tuple[ListedFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> str:
        fields = {"format": FORMAT, "kind": "latentrag memory", **asdict(self)}
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, raw: bytes, place: str) -> Listing:
        """The reverse of ``to_json``; trusts nothing.

        Raises: FetchError, naming ``place``, if it is no listing, of another format, or names any other file than
            ``push`` writes: in another folder, of another type, twice.
        """
        try:
            fields = json.loads(raw)
            found = fields["format"] if isinstance(fields, dict) else None
            if found == FORMAT:
                return _checked(fields, place)
        except (ValueError, KeyError, TypeError, RecursionError, MemoryStoreError) as error:
            raise FetchError(f"{place} cannot be used ({error!r}); ask who published it to push it again") from error
        raise FetchError(f"{place} has format {found!r}, needed {FORMAT}; update latentrag or have it pushed again")


def file_name(i: int, num_files: int) -> str:
    """The name of the i-th of so many files, from 0."""
    return f"passages-{i:05}-of-{num_files:05}.parquet"


def _checked(fields: dict[str, Any], place: str) -> Listing:
    files = tuple(ListedFile(**each) for each in fields["files"])
    for i, file in enumerate(files):
        expected = file_name(i, len(files))
        if file.name != expected:
            raise FetchError(f"{place} names {file.name!r}, needed {expected}; nothing of it is used, do not trust it")
        if not _SHA256.fullmatch(file.sha256) or not _is_count(file.size_bytes) or not _is_count(file.num_passages):
            raise FetchError(
                f"{place} has no size, number of passages and sha256 for {file.name}; have it pushed again"
            )
    listing = Listing(
        version=fields["version"],
        num_passages=fields["num_passages"],
        manifest=Manifest.from_json(json.dumps(fields["manifest"])),
        files=files,
    )
    whole = sum(file.num_passages for file in files)
    if not _is_count(listing.version) or listing.num_passages != whole:
        raise FetchError(f"{place} names files of {whole} passages, says {listing.num_passages}; have it pushed again")
    made = listing.manifest
    is_named = isinstance(made.encoder, str) and isinstance(made.fingerprint, str)
    if not (
        is_named and _is_count(made.dimension) and _is_count(made.max_tokens) and made.dimension and made.scale > 0
    ):
        raise FetchError(f"{place} does not say what encoded the passages ({made}); have it pushed again")
    return listing


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
