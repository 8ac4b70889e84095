"""Whether what came out of rows is what must come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from latentrag.evaluation.reproduce.records import Record, compared
from latentrag.evaluation.reproduce.rows import Must, Row


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one thing that must come out. ``found`` says what did."""

    row: str
    must: Must
    outcome: Literal["holds", "off", "not run"]
    found: str


def verdicts(row: Row, recorded: Mapping[str, Record]) -> list[Verdict]:
    """What became of everything that must come out of a row."""
    return [_verdict(row, must, recorded) for must in row.must]


def _verdict(row: Row, must: Must, recorded: Mapping[str, Record]) -> Verdict:
    if {*must.arms, *must.above} - recorded.keys():
        return Verdict(row.name, must, "not run", "")
    ours, theirs = ([recorded[arm] for arm in arms] for arms in (must.arms, must.above))
    if theirs:
        return _above(row, must, ours, theirs)
    mean = fmean(float(record.metrics[must.measure]["mean"]) for record in ours)
    holds = (must.low is None or mean >= must.low) and (must.high is None or mean <= must.high)
    return Verdict(row.name, must, "holds" if holds else "off", f"{mean:.4g}")


def _above(row: Row, must: Must, ours: Sequence[Record], theirs: Sequence[Record]) -> Verdict:
    found = compared(ours, theirs, must.measure)
    if found is None or found.low is None:
        return Verdict(row.name, must, "off", "no difference can be measured")
    words = f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    holds = found.low > 0 and found.difference >= must.by
    return Verdict(row.name, must, "holds" if holds else "off", words)
