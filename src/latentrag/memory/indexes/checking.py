"""Whether an index is what it should be: its rows against the table's, and what it finds against exact search."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from latentrag.errors import IndexDamagedError
from latentrag.memory.indexes.building import is_stored, opened
from latentrag.memory.indexes.changes import Difference, difference, require_same_rows, rows_with, stream
from latentrag.memory.indexes.folder import Published
from latentrag.memory.indexes.index import exact_best, recalls
from latentrag.memory.indexes.stored import StoredIndex
from latentrag.memory.indexes.supply import DRIFT_TO_REFUSE, serving

if TYPE_CHECKING:
    import numpy.typing as npt

    from latentrag.memory.table import Table

ACCEPTED = {5: 0.98, 100: 0.95}
"""Recall at K below which an index is a finding. Indexes are built to find more of passages' own vectors, since they
find fewer of people's questions (ADR 6)."""
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
        folder: its name in the folder of indexes.
        built_version: the version it was built of; ``version`` is the one it was compared with.
        faults: why it must not be used.
        unused: why it does not serve this version, and was not compared; empty if it does.
    """

    folder: str
    kind: str
    built_version: int
    version: int
    recall: list[Recall] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unused: str = ""


def check(published: Published, table: Table, *, num_questions: int, seed: int) -> CheckedIndex:
    """Compare an index with a version of the table, which must be whole. Reads both.

    Every row of the version must be in it once, and no other row; every record must be as it was written. Rows drawn
    at random are compared with the table's, and searched for.

    Args:
        num_questions: how many rows are drawn; 0: recall is not measured.
    Raises: FileNotFoundError if it was thrown away meanwhile.
    """
    of = published.description
    result = CheckedIndex(of.name, of.kind, of.version, table.version)
    if not is_stored(of.kind):
        return replace(result, unused=f"is of the kind {of.kind}, which is no longer supported")
    if of.fingerprint != table.card.fingerprint:
        return replace(result, unused="has the vectors of another encoder")
    try:
        return _compared(result, published, table, num_questions=num_questions, seed=seed)
    except IndexDamagedError as error:
        return replace(result, faults=[f"is damaged: {error}"])


def _compared(
    result: CheckedIndex, published: Published, table: Table, *, num_questions: int, seed: int
) -> CheckedIndex:
    """The same result with what reading the index shows. Raises: IndexDamagedError."""
    of, index = published.description, opened(published)
    if len(np.unique(index.row_ids)) < len(index.row_ids):
        return replace(result, faults=["has a row twice"])
    changes = difference(table, of.fragments, index.row_ids)
    if changes.share(of.num_rows) > DRIFT_TO_REFUSE:
        return replace(result, unused=f"is of version {of.version}, from which too much has changed")
    index.verify_records()
    row_ids = table.row_ids(table.dataset.get_fragments())
    faults = _wrong_rows(index, changes, row_ids, version=table.version)
    num_drawn = min(num_questions, len(row_ids))
    if faults or not num_drawn:
        return replace(result, faults=faults)
    drawn = row_ids[np.random.default_rng(seed).choice(len(row_ids), num_drawn, replace=False)]
    return replace(result, recall=_measured(index, changes, table, drawn))


def _wrong_rows(index: StoredIndex, changes: Difference, row_ids: npt.NDArray[np.int64], *, version: int) -> list[str]:
    """What is wrong with the ids of an index's rows. row_ids: (N,) of the table."""
    kept = np.setdiff1d(index.row_ids, changes.removed)
    num_lacking = len(np.setdiff1d(row_ids, np.union1d(kept, changes.added)))
    num_strange = len(np.setdiff1d(kept, row_ids))
    faults = []
    if num_lacking:
        faults.append(f"lacks {num_lacking} passages of version {version}")
    if num_strange:
        faults.append(f"holds {num_strange} passages that version {version} has not")
    return faults


def _measured(index: StoredIndex, changes: Difference, table: Table, drawn: npt.NDArray[np.int64]) -> list[Recall]:
    """Recall for the vectors of these rows of the table. Raises: IndexDamagedError if they differ in the index."""
    common = np.sort(drawn[index.places.known(drawn) & ~np.isin(drawn, changes.removed)])
    require_same_rows(table, index.rows(common), index.passages(common), file=index.vectors.path)
    q = rows_with(table, np.sort(drawn)).vectors.astype(np.float32)
    whole = serving(index, changes, table)
    needed = {min(k, len(whole)): share for k, share in sorted(ACCEPTED.items(), reverse=True)}  # the stricter of few
    best_scores = exact_best(stream(table), q, max(needed))
    return [
        Recall(
            k=k,
            share=float(shares.mean()),
            standard_error=float(shares.std() / np.sqrt(len(shares))),
            num_questions=len(shares),
            needed=needed[k],
        )
        for k, shares in recalls(whole, best_scores, q, sorted(needed)).items()
    ]
