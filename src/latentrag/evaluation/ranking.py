"""Measures of a ranking against what is relevant, by ir-measures: recall, R-precision, nDCG, reciprocal rank.

What is ranked: passages, the documents that they are parts of, or articles by title. The id of a part begins with that
of its document and "#", so that a ranking of documents has each at the place of its first part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from latentrag.evaluation.intervals import UNIT
from latentrag.evaluation.metrics import Metric, Row
from latentrag.evaluation.texts import library

Unit = Literal["passage", "document", "title"]
"""What is relevant: what has the ids that the rows name, or is a part of it; whole documents, named by their ids up to
the first "#"; or articles, by title."""
CUT_OFF = 10
"""Of nDCG, as BEIR reports it."""


def ranked(passages: Iterable[Sequence[str]], relevant: Iterable[str], unit: Unit) -> list[str]:
    """The names of what was retrieved, best first, each once. A passage without a title is of no article.

    Args:
        passages: id and title of each, best first.
        relevant: ids that a passage may have or be a part of; they say how many "#" other ids have. For passages only.
    """
    if unit == "title":
        return list(dict.fromkeys(title for _, title, *_ in passages if title))
    names = set() if unit == "document" else set(relevant)
    depth = max((name.count("#") for name in names), default=0)
    return list(dict.fromkeys(_name_of(id_, names, depth) for id_, *_ in passages))


def _name_of(id_: str, names: Collection[str], depth: int) -> str:
    """The longest of these names that the passage has or is a part of; where there is none, as ``document_of``."""
    longer_first = (document_of(id_, depth=number) for number in range(id_.count("#"), -1, -1))
    return next((name for name in longer_first if name in names), document_of(id_, depth=depth))


def document_of(id_: str, *, depth: int = 0) -> str:
    """What a passage is a part of: its id up to the "#" after so many others."""
    return "#".join(id_.split("#")[: depth + 1])


def relevance(row: Row, unit: Unit) -> tuple[dict[str, int], list[list[str]]]:
    """What is relevant, with its grade, and the sets of it each of which is enough; none where the row has no sets."""
    if unit == "title":
        return dict.fromkeys(row["titles"], 1), row.get("title_sets", [])
    names: Mapping[str, int] = row.get("grades") or dict.fromkeys(row.get("relevant", ()), 1)
    sets: list[list[str]] = row.get("relevant_sets", [])
    if unit == "passage":
        return dict(names), sets
    return (
        {
            document_of(name): max(names[each] for each in names if document_of(each) == document_of(name))
            for name in names
        },
        [[document_of(name) for name in each] for each in sets],
    )


def ranking_measures(ranking: Sequence[str], grades: Mapping[str, int], at: Sequence[int]) -> dict[str, float]:
    """trec_eval's recall@k, R-precision, nDCG@10 and reciprocal rank, through ir-measures.

    Args:
        ranking: best first, no name twice.
        grades: of what was judged; 0 or less: it is not relevant. All measures are 0 where nothing is.
    """
    ir = library("ir_measures")
    names = {
        **{f"relevant_recall@{k}": ir.R @ k for k in at},
        "r_precision": ir.Rprec,
        f"ndcg@{CUT_OFF}": ir.nDCG @ CUT_OFF,
        "mrr": ir.RR,
    }
    scores = {"q": {name: float(-place) for place, name in enumerate(ranking)}}
    judged = {name: max(0, grade) for name, grade in grades.items()}  # trec_eval dies of -2 alone
    found = ir.calc_aggregate(list(names.values()), {"q": judged}, scores)
    return {name: float(found[measure]) for name, measure in names.items()}


def r_precision(ranking: Sequence[str], wanted: Iterable[str]) -> float:
    """The share of the first R that are relevant, of which there are R (KILT's, Petroni et al. 2021)."""
    wanted = set(wanted)
    return len(wanted.intersection(ranking[: len(wanted)])) / len(wanted)


def best_r_precision(ranking: Sequence[str], sets: Sequence[Sequence[str]]) -> float:
    """R-precision against the set of evidence where it is highest, as KILT has it."""
    return max(r_precision(ranking, wanted) for wanted in sets)


def _measures(row: Row, at: Sequence[int]) -> Mapping[str, float | None]:
    unit: Unit = row["unit"]
    grades, sets = relevance(row, unit)
    if not grades:  # judged, and nothing found relevant, is 0 as in trec_eval
        names = [*(f"relevant_recall@{k}" for k in at), "r_precision", f"ndcg@{CUT_OFF}", "mrr"]
        return dict.fromkeys(names)
    ranking = ranked(row["retrieved"], row.get("relevant", ()), unit)
    found: dict[str, float | None] = {**ranking_measures(ranking, grades, at)}
    if sets:
        found["r_precision"] = best_r_precision(ranking, sets)
    return found


RANKING = Metric("retrieved", None, _measures, UNIT)
