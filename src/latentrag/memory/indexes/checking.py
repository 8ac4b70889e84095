"""Whether an index is what it should be: its rows against the table's, and what it finds against exact search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from latentrag.errors import IndexDamagedError
from latentrag.memory.indexes.building import opened
from latentrag.memory.indexes.changes import Difference, difference, stream, stream_with_passages
from latentrag.memory.indexes.files import Published
from latentrag.memory.indexes.protocol import Places
from latentrag.memory.indexes.recall import recalls_at
from latentrag.memory.indexes.stored import StoredIndex
from latentrag.memory.indexes.supply import DRIFT_TO_REFUSE, serving
from latentrag.types import IndexKind

if TYPE_CHECKING:
    import numpy.typing as npt

    from latentrag.memory.indexes.protocol import Rows
    from latentrag.memory.table import Table

ACCEPTED: dict[IndexKind, dict[int, float]] = {
    "sq8": {5: 0.95, 100: 0.90},
    "ivf-rabitq": {5: 0.98, 100: 0.95},
    "hnsw": {5: 0.95, 100: 0.90},
}
"""Recall at K below which an index is a finding. At 0.95 one question in four lacks one of its five passages.
ivf-rabitq is built to find more (effort.py), and loses more of people's questions than of these (ADR 6)."""
ERRORS_ALLOWED = 2.0
"""So many standard errors a measured recall may lie below that, because the sample may be an unlucky one."""


@dataclass(frozen=True, slots=True)
class Recall:
    """The share of the K best passages that an index finds, over questions that are passages' own vectors.

    Attributes:
        standard_error: of ``share``, from the spread between the questions.
        needed: below which, by more than two standard errors, it is a finding.
    """

    k: int
    share: float
    standard_error: float
    num_questions: int
    needed: float

    @property
    def is_low(self) -> bool:
        return self.share + ERRORS_ALLOWED * self.standard_error < self.needed


@dataclass(frozen=True, slots=True)
class CheckedIndex:
    """What was found out about an index.

    Attributes:
        built_version: that it was built of, and ``version``, that it was compared with.
        folder: its name in MEMORY/_indexes.
        faults: why it must not be used.
        unused: why it does not serve this version, and was not compared; empty if it does.
    """

    folder: str
    kind: IndexKind
    built_version: int
    version: int
    recall: list[Recall] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unused: str = ""


def check(published: Published, table: Table, *, num_questions: int, seed: int) -> CheckedIndex:
    """Compare an index with a version of the table, which must be whole. Reads both.

    Every row of the version must be in it once, with the table's vector, and no other row; then it is searched.

    Args:
        num_questions: rows drawn at random to search for; 0: recall is not measured.
    Raises: FileNotFoundError if it was thrown away meanwhile.
    """
    of = published.description
    found = CheckedIndex(of.name, of.kind, of.version, table.version)
    if of.fingerprint != table.manifest.fingerprint:
        return _unused(found, "has the vectors of another encoder")
    try:
        index = opened(published)
        if len(np.unique(index.row_ids)) < len(index.row_ids):
            return _faulty(found, "has a row twice")
        changes = difference(table, of.fragments, index.row_ids)
        if changes.share(of.num_rows) > DRIFT_TO_REFUSE:
            return _unused(found, f"is of version {of.version}, from which too much has changed")
        questions = _compared(found, index, changes, table, num_questions=num_questions, seed=seed)
        if not found.faults and len(questions):
            found.recall.extend(_measured(index, changes, table, questions))
    except IndexDamagedError as error:
        return _faulty(found, f"is damaged: {error}")
    return found


def _faulty(found: CheckedIndex, fault: str) -> CheckedIndex:
    found.faults.append(fault)
    return found


def _unused(found: CheckedIndex, why: str) -> CheckedIndex:
    return CheckedIndex(found.folder, found.kind, found.built_version, found.version, unused=why)


def _compared(
    found: CheckedIndex, index: StoredIndex, changes: Difference, table: Table, *, num_questions: int, seed: int
) -> npt.NDArray[np.float32]:
    """Note what is wrong with the rows; returns some vectors of the table, (n, D).

    Raises: IndexDamagedError if a vector of the index is not what was written.
    """
    positions = index.proposer.positions()
    if len(positions) != len(index.vectors) or (np.sort(positions) != np.arange(len(positions))).any():
        found.faults.append("proposes a row twice, or never")
    kept = Places.of(np.setdiff1d(index.row_ids, changes.removed))
    served = Places.of(np.union1d(kept.row_ids, changes.added))
    num_rows = len(table)
    chosen = np.sort(np.random.default_rng(seed).choice(num_rows, min(num_questions, num_rows), replace=False))
    questions: list[npt.NDArray[np.float16]] = [np.empty((0, table.manifest.dimension), np.float16)]
    start = num_common = num_lacking = num_different = num_otherwise = 0
    for rows, passages in stream_with_passages(table):
        first, last = np.searchsorted(chosen, (start, start + len(rows.row_ids)))
        questions.append(rows.vectors[chosen[first:last] - start])
        start += len(rows.row_ids)
        num_lacking += int((~served.known(rows.row_ids)).sum())
        common = kept.known(rows.row_ids)
        num_common += int(common.sum())
        num_different += _num_different(index, rows, common)
        held = index.passages(rows.row_ids[common])
        table_has = dict(zip(rows.row_ids.tolist(), passages, strict=True))
        num_otherwise += sum(table_has[row_id] != passage for row_id, passage in held.items())
    if num_lacking:
        found.faults.append(f"lacks {num_lacking} passages of version {table.version}")
    if len(kept.row_ids) > num_common:
        found.faults.append(f"holds {len(kept.row_ids) - num_common} passages that version {table.version} has not")
    if num_different:
        found.faults.append(f"holds other vectors than the table for {num_different} passages")
    if num_otherwise:
        found.faults.append(f"holds other texts than the table for {num_otherwise} passages")
    drawn = np.concatenate(questions).astype(np.float32)
    return drawn[np.isfinite(drawn).all(axis=1)]


def _num_different(index: StoredIndex, rows: Rows, common: npt.NDArray[np.bool_]) -> int:
    """How many of the rows at ``common`` have another vector in the index."""
    if not common.any():
        return 0
    held = index.rows(rows.row_ids[common]).vectors
    same = np.isclose(held, rows.vectors[common], rtol=0, atol=0, equal_nan=True)
    return int((~same.all(axis=1)).sum())


def _measured(
    index: StoredIndex, changes: Difference, table: Table, questions: npt.NDArray[np.float32]
) -> list[Recall]:
    whole = serving(index, changes, table)
    accepted = sorted(ACCEPTED[index.kind].items(), reverse=True)
    at = {min(k, len(whole)): needed for k, needed in accepted}  # of few rows, the stricter
    shares = recalls_at(whole, stream(table), questions, sorted(at))
    return [
        Recall(
            k=k,
            share=float(share.mean()),
            standard_error=float(share.std() / np.sqrt(len(share))),
            num_questions=len(share),
            needed=at[k],
        )
        for k, share in shares.items()
    ]
