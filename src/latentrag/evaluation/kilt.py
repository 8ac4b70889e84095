"""KILT's combined scores (Petroni et al. 2021): an answer counts where the right pages were retrieved first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from latentrag.evaluation.intervals import UNIT
from latentrag.evaluation.metrics import Metric, Row
from latentrag.evaluation.ranking import best_r_precision, ranked

if TYPE_CHECKING:
    from latentrag.training.data import Example
    from latentrag.types import Passage

COMBINED = ("exact_match", "f1", "rouge_l", "accuracy")


def kilt_r_precision(example: Example, _text: str, passages: Sequence[Passage]) -> float | None:
    """R-precision by page, against the set of evidence where it is highest. None: the example has no sets, or nothing
    was retrieved.

    Pages are known by their ids where the memory has documents of these ids, else by title.
    """
    if not passages:
        return None
    retrieved = [(passage.id, passage.title) for passage in passages]
    by_id = ranked(retrieved, example.passages, "passage")
    by_title = list(dict.fromkeys(passage.title for passage in passages))  # without a title is a page, too
    found = [
        best_r_precision(ranking, sets)
        for ranking, sets in ((by_id, example.passage_sets), (by_title, example.title_sets))
        if sets
    ]
    return max(found, default=None)


def _measures(row: Row, _at: Sequence[int]) -> Mapping[str, float | None]:
    share: float | None = row.get("kilt_r_precision")  # rows of earlier versions have none
    counted = {
        f"kilt_{name}": None if share is None or row[name] is None else float(row[name]) * (share == 1)
        for name in COMBINED
        if name in row
    }
    return {"kilt_r_precision": share, **counted}


KILT = Metric("kilt_r_precision", kilt_r_precision, _measures, UNIT)
