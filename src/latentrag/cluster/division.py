"""Which shard holds which rows: balanced, and the same as before where the table has not changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from latentrag.errors import MemoryStoreError
from latentrag.memory.parts import Unit, file_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latentrag.memory import Memory

    RowIds = Callable[[Unit], npt.NDArray[np.int64]]

TOLERATED = 1.1
"""A shard may keep so many times its even share of the rows, so that few rows move between shards."""
EVERY_ROW = (0, 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Division:
    """One version of a memory, divided among shards. Requests name it by ``key``.

    Attributes:
        version: of the memory.
        identity: of the memory at this version, as ``Memory.identity``.
        lineage: as ``Memory.lineage``.
        card: of its encoder, as JSON.
        num_rows: of the version.
        units: of each shard.
        rows: how many each shard has.
    """

    version: int
    identity: str
    lineage: str
    card: str
    num_rows: int
    units: tuple[tuple[Unit, ...], ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, memory: Memory, num_shards: int, before: Division | None = None) -> Self:
        """Divide a version, as it was before as far as its rows are the same.

        Raises: MemoryStoreError for fewer passages than shards.
        """
        if len(memory) < num_shards:
            raise MemoryStoreError(
                f"{memory.name} has {len(memory)} passages at version {memory.version}, needed {num_shards} or more, "
                "one for each shard; start fewer shards or add passages"
            )
        table = memory.table
        fragments = {file_of(each): each for each in table.lance_fragments()}

        def row_ids(unit: Unit) -> npt.NDArray[np.int64]:
            return table.some([unit]).row_ids([fragments[unit.file]])

        sizes = {Unit(file): int(fragment.metadata.num_rows) for file, fragment in fragments.items()}
        units = divided(sizes, row_ids, num_shards, () if before is None else before.units)
        rows = tuple(len(table.some(of_shard)) for of_shard in units)
        card = memory.card.to_json()
        return cls(memory.version, memory.identity, memory.lineage, card, len(memory), units, rows)

    @property
    def key(self) -> str:
        """Names the version to the shards: another memory's of the same number has another key."""
        return f"{self.version}-{self.identity}-{hash_of(self.units)}"

    def as_record(self) -> dict[str, Any]:
        """JSON values by name."""
        return {
            "version": self.version,
            "identity": self.identity,
            "lineage": self.lineage,
            "card": self.card,
            "num_rows": self.num_rows,
            "units": [[[unit.file, unit.cut] for unit in of_shard] for of_shard in self.units],
            "rows": self.rows,
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        """The reverse of ``as_record``, also after JSON."""
        units = tuple(
            tuple(Unit(file, None if cut is None else (cut[0], cut[1])) for file, cut in of_shard)
            for of_shard in record["units"]
        )
        return cls(**{**record, "units": units, "rows": tuple(record["rows"])})


def hash_of(units: Sequence[Sequence[Unit]]) -> str:
    """Equal divisions, equal text, in every process."""
    import hashlib

    return hashlib.sha256(repr([list(map(tuple, of_shard)) for of_shard in units]).encode()).hexdigest()[:8]


def divided(
    sizes: Mapping[Unit, int], row_ids: RowIds, num_shards: int, before: Sequence[Sequence[Unit]]
) -> tuple[tuple[Unit, ...], ...]:
    """Every row to one shard.

    Args:
        sizes: whole fragments → their rows.
        row_ids: of a unit.
        before: the units of each shard in an earlier version; those of fragments that are gone are passed over.
    Returns: the units of each shard, none of which has more than ``TOLERATED`` times its even share, rounded up.
    """
    shares = [dict[Unit, int]() for _ in range(num_shards)]
    known = _of_before(sizes, before)
    free: dict[Unit, int] = {}
    for unit, size in sizes.items():
        pieces = known.get(unit.file)
        if pieces is None or len(before) != num_shards:
            free[unit] = size
            continue
        for piece, shard in pieces.items():
            shares[shard][piece] = size if piece.cut is None else len(row_ids(piece))
    even = -(-sum(sizes.values()) // num_shards)
    most = max(even, int(even * TOLERATED))
    for share in shares:
        while sum(share.values()) > most:
            unit = min(share, key=lambda each: (share[each], each.file, each.cut or EVERY_ROW))
            free[unit] = share.pop(unit)
    for unit in sorted(free, key=lambda each: (-free[each], each.file, each.cut or EVERY_ROW)):
        _place(unit, free[unit], row_ids, shares, even)
    return tuple(tuple(sorted(share, key=lambda each: (each.file, each.cut or EVERY_ROW))) for share in shares)


def _of_before(sizes: Mapping[Unit, int], before: Sequence[Sequence[Unit]]) -> dict[str, dict[Unit, int]]:
    """File → its units and the shard of each, of files that are still there."""
    known: dict[str, dict[Unit, int]] = {}
    files = {unit.file for unit in sizes}
    for shard, units in enumerate(before):
        for unit in units:
            if unit.file in files:
                known.setdefault(unit.file, {})[unit] = shard
    return known


def _place(unit: Unit, size: int, row_ids: RowIds, shares: Sequence[dict[Unit, int]], even: int) -> None:
    """Give a unit to the shard with the most room, and what does not fit there to the next."""
    import numpy as np

    while True:  # also of a range whose rows are deleted: an older version has them
        share = min(shares, key=lambda each: sum(each.values()))
        room = max(1, even - sum(share.values()))
        if size <= room:
            share[unit] = size
            return
        ids = np.sort(row_ids(unit))
        first, stop = unit.cut or EVERY_ROW
        middle = int(ids[room])
        share[Unit(unit.file, (first, middle))] = room
        unit, size = Unit(unit.file, (middle, stop)), size - room
