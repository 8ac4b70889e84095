"""Whether what came out of rows is what must come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    if must.arm not in recorded or (must.above and must.above not in recorded):
        return Verdict(row.name, must, "not run", "")
    if must.above:
        return _above(row, must, recorded[must.arm], recorded[must.above])
    mean = float(recorded[must.arm].metrics[must.measure]["mean"])
    holds = (must.low is None or mean >= must.low) and (must.high is None or mean <= must.high)
    return Verdict(row.name, must, "holds" if holds else "off", f"{mean:.4g}")


def _above(row: Row, must: Must, ours: Record, theirs: Record) -> Verdict:
    found = compared(ours, theirs, must.measure)
    if found is None or found.low is None:
        return Verdict(row.name, must, "off", "no difference can be measured")
    words = f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    return Verdict(row.name, must, "holds" if found.low > 0 else "off", words)
