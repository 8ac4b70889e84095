"""Which passages of a memory belong to which synced file: told by the table's column ``origin`` alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from latentrag.memory.table import Table
from latentrag.types import Passage

if TYPE_CHECKING:
    import numpy.typing as npt

_DIGEST_BYTES = 16
_MODULUS = 1 << (8 * _DIGEST_BYTES)
_ROWS_PER_READ = 1_024


@dataclass(frozen=True, slots=True)
class Held:
    """What is held of a file: how many passages, and the sum of their digests (mod 2¹²⁸).

    Equal sums mean equal passages, whatever their order in the table.
    """

    num_passages: int = 0
    digest: int = 0

    def with_digest(self, digest: int) -> Held:
        """The same and one passage more."""
        return Held(self.num_passages + 1, (self.digest + digest) % _MODULUS)


def digest(passage: Passage) -> int:
    """128 bits over everything that the table holds of a passage, its origin and its vector left out."""
    fields = (passage.id, passage.text, passage.title, passage.source, passage.start, passage.end, passage.page)
    return int.from_bytes(_hash(fields), "big")


def vector_key(passage: Passage) -> bytes:
    """128 bits over what an encoder reads of a passage: equal keys, equal d(z)."""
    return _hash((passage.title, passage.text))


def held(table: Table, folder: str) -> dict[str, Held]:
    """What the table holds of each file synced under the name ``folder``, by origin. Reads all their passages."""
    found: dict[str, Held] = {}
    if "origin" not in table.passage_columns:
        return found
    import pyarrow.compute as pc

    # Every origin that begins with "folder/", as a range: "0" follows "/".
    under = (pc.field("origin") >= f"{folder}/") & (pc.field("origin") < f"{folder}0")
    for passage, _ in table.passages_where(under):
        found[passage.origin] = found.get(passage.origin, Held()).with_digest(digest(passage))
    return found


def digests(table: Table, origins: Collection[str]) -> dict[str, dict[str, int]]:
    """The passages of these origins: origin → id → digest. Origins that the table does not have are left out."""
    found: dict[str, dict[str, int]] = {}
    for passage, _ in _of(table, origins):
        found.setdefault(passage.origin, {})[passage.id] = digest(passage)
    return found


def vector_rows(table: Table, origins: Collection[str]) -> dict[bytes, int]:
    """Row ids of the passages of these origins by the key of their vectors, about 150 bytes each."""
    return {vector_key(passage): row_id for passage, row_id in _of(table, origins)}


def _of(table: Table, origins: Collection[str]) -> Iterator[tuple[Passage, int]]:
    import pyarrow.compute as pc

    if origins and "origin" in table.passage_columns:
        yield from table.passages_where(pc.field("origin").isin(list(origins)))


def owners(table: Table) -> dict[str, str]:
    """The origin of every passage of the table by its id, about 120 bytes each; "" for one added by hand."""
    shared: dict[str, str] = {}
    return {key: shared.setdefault(origin, origin) for key, origin in table.origins()}


def vectors(table: Table, row_ids: Sequence[int]) -> npt.NDArray[np.float16]:
    """The vectors with these row ids, in this order, repeats allowed: (n, D)."""
    distinct, place = np.unique(np.asarray(row_ids, np.int64), return_inverse=True)
    reads = [
        table.vectors_of(distinct[start : start + _ROWS_PER_READ].tolist())
        for start in range(0, len(distinct), _ROWS_PER_READ)
    ]
    nothing = np.empty((0, table.manifest.dimension), np.float16)
    return cast("npt.NDArray[np.float16]", np.concatenate([nothing, *reads])[place])


def version_key(table: Table) -> str | None:
    """Names the version and, unlike its number, no other one, be it of a copy that has gone another way."""
    transaction = table.dataset.read_transaction(table.version)
    return f"{table.version}-{transaction.uuid}" if transaction else None


def _hash(fields: tuple[object, ...]) -> bytes:
    return hashlib.blake2b(json.dumps(fields).encode(), digest_size=_DIGEST_BYTES).digest()
