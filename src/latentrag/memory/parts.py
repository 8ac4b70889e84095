"""Some rows of a version of a table: whole fragments, and of others the rows whose ids lie in a range.

Row ids stay what they are when other rows are deleted, so a range of them names the same rows in later versions. A
compaction may rewrite rows to a new fragment; ranges are of that fragment's row ids then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from lance.fragment import LanceFragment

Cut: TypeAlias = tuple[int, int]
"""Row ids from the first to below the second."""
Part: TypeAlias = Mapping[str, tuple[Cut, ...]]
"""The file of each fragment → ranges of its rows; none: all of them."""


class Unit(NamedTuple):
    """Rows of one fragment.

    Attributes:
        file: of the fragment, see ``file_of``.
        cut: None: all of its rows.
    """

    file: str
    cut: Cut | None = None


def file_of(fragment: LanceFragment) -> str:
    """The fragment's first data file, whose name is drawn at random: no other fragment has it."""
    return str(fragment.metadata.files[0].path)


def part_of(units: Iterable[Unit]) -> Part:
    """The units together."""
    part: dict[str, tuple[Cut, ...]] = {}
    for file, cut in sorted(units, key=lambda unit: (unit.file, unit.cut or (0, 0))):
        part[file] = () if cut is None else (*part.get(file, ()), cut)
    return part


def condition_on_rows(cuts: Sequence[Cut]) -> str:
    """The ranges as a filter of Lance; empty where there are none."""
    return " OR ".join(f"(_rowid >= {first} AND _rowid < {stop})" for first, stop in cuts)
