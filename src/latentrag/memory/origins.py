"""Which passages of a memory belong to which synced file: told by the table's column ``origin`` alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from latentrag.memory.memory import Memory
from latentrag.memory.schema import fields_to_json
from latentrag.types import Passage

_DIGEST_BYTES = 16
_MODULUS = 1 << (8 * _DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class FileDigest:
    """The passages of a file: how many, and the sum of their digests (mod 2¹²⁸).

    Equal sums mean equal passages, whatever their order in the table.
    """

    num_passages: int = 0
    digest: int = 0

    def with_digest(self, digest: int) -> FileDigest:
        """The same and one passage more."""
        return FileDigest(self.num_passages + 1, (self.digest + digest) % _MODULUS)


def digest(passage: Passage) -> int:
    """128 bits over everything that the table holds of a passage, its origin and its vector left out."""
    of_place = (passage.source, passage.start, passage.end, passage.page)
    of_fields = (fields_to_json(passage.fields),) if passage.fields else ()  # as it was before there were any
    return int.from_bytes(_hash((passage.id, passage.text, passage.title, *of_place, *of_fields)), "big")


def vector_key(passage: Passage) -> bytes:
    """128 bits over what an encoder reads of a passage: equal keys, equal d(z)."""
    return _hash((passage.title, passage.text))


def file_digests(memory: Memory, folder: str) -> dict[str, FileDigest]:
    """What the memory holds of each file synced under the name ``folder``, by origin. Reads all their passages."""
    of_files: dict[str, FileDigest] = {}
    if "origin" not in memory.table.passage_columns:
        return of_files
    import pyarrow.compute as pc

    # Every origin that begins with "folder/", as a range: "0" follows "/".
    under = (pc.field("origin") >= f"{folder}/") & (pc.field("origin") < f"{folder}0")
    for passage, _ in memory.table.passages_where(under):
        of_files[passage.origin] = of_files.get(passage.origin, FileDigest()).with_digest(digest(passage))
    return of_files


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The passages that a memory has of a file, by id.

    Attributes:
        digests: as ``digest`` makes them.
        row_ids: where they are.
    """

    digests: dict[str, int] = field(default_factory=dict)
    row_ids: dict[str, int] = field(default_factory=dict)


def stored_rows(memory: Memory, origins: Collection[str]) -> dict[str, StoredRows]:
    """The passages of these origins, by origin. Those that the memory does not have are left out."""
    of_files: dict[str, StoredRows] = {}
    for passage, row_id in _of(memory, origins):
        of_file = of_files.setdefault(passage.origin, StoredRows())
        of_file.digests[passage.id], of_file.row_ids[passage.id] = digest(passage), row_id
    return of_files


def vector_rows(memory: Memory, origins: Collection[str]) -> dict[bytes, int]:
    """Row ids of the passages of these origins by the key of their vectors, about 150 bytes each."""
    return {vector_key(passage): row_id for passage, row_id in _of(memory, origins)}


def _of(memory: Memory, origins: Collection[str]) -> Iterator[tuple[Passage, int]]:
    import pyarrow.compute as pc

    if origins and "origin" in memory.table.passage_columns:
        yield from memory.table.passages_where(pc.field("origin").isin(list(origins)))


def owners(memory: Memory) -> dict[str, str]:
    """The origin of every passage of the memory by its id, about 120 bytes each; "" for one added by hand."""
    shared: dict[str, str] = {}
    return {key: shared.setdefault(origin, origin) for key, origin in memory.table.origins()}


def version_key(memory: Memory) -> str | None:
    """Names the version and, unlike its number, no other one, be it of a copy that has gone another way."""
    transaction = memory.table.dataset.read_transaction(memory.version)
    return f"{memory.version}-{transaction.uuid}" if transaction else None


def _hash(parts: tuple[object, ...]) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=_DIGEST_BYTES).digest()
