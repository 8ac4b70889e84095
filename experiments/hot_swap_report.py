"""The report of the hot-swap experiment: what is answered with which memory, and whom the posterior believes."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hot_swap_facts import KINDS, Fact
from running import between_marks

from latentrag.evaluation.intervals import paired_difference, share_interval
from latentrag.evaluation.metrics import exact_match

WORLDS = "AB"

Row = Mapping[str, Any]


def write_report(rows: Sequence[Row], facts: Sequence[Fact], file: Path, *, machine: Mapping[str, Any]) -> str:
    """Put the tables between the marks of the report, whose words are written by hand.

    Args:
        rows: of ``measured``; facts that were not asked in both worlds are left out.
    Returns: what is between the marks.
    """
    asked = Counter(row["id"] for row in rows)
    rows = [row for row in rows if asked[row["id"]] == 2]
    done = [fact for fact in facts if asked[fact.id] == 2]
    if not done:
        return "no fact has been asked in both worlds yet"
    parts = [_head(rows, facts, done), _accuracy(rows, done), _differences(rows, done), _kinds(rows), _posteriors(rows)]
    parts.append("Settings: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + ".")
    measured = "\n\n".join(parts)
    between_marks(file, measured, title="Hot-swap")
    return measured


def _head(rows: Sequence[Row], facts: Sequence[Fact], done: Sequence[Fact]) -> str:
    changed = {key for fact in facts for key in fact.changed}
    left = f" ({len(facts) - len(done)} more were not asked in both)" if len(done) < len(facts) else ""
    swaps = [1e3 * seconds for seconds in {row["swap_s"] for row in rows}]
    return (
        f"{len(done)} facts{left}; {len(changed)} passages of the memory are otherwise in world B. The memory was "
        f"exchanged {len(swaps)} times in the running process, in {statistics.median(swaps):.2f} ms (median; the "
        f"longest, which read the vectors, {max(swaps):.0f} ms)."
    )


def _accuracy(rows: Sequence[Row], facts: Sequence[Fact]) -> str:
    closed = {row["id"]: row["closed_book"] for row in rows}
    same = all(row["closed_book"] == closed[row["id"]] for row in rows)
    lines = [
        "| share of questions answered with | memory A | memory B | closed book |",
        "|---|---|---|---|",
    ]
    for answers in (0, 1):
        cells = [_share(row["correct"][answers] for row in rows if row["world"] == world) for world in (0, 1)]
        cells.append(_share(exact_match(closed[fact.id], fact.answers[answers]) for fact in facts))
        lines.append(f"| the answer of world {WORLDS[answers]} | " + " | ".join(cells) + " |")
    said = "the same with both memories, word for word" if same else "not the same with both memories"
    return "\n".join(lines) + f"\n\nClosed book was asked with each memory in place; its answers were {said}."


def _differences(rows: Sequence[Row], facts: Sequence[Fact]) -> str:
    """With all facts, and apart by whether the generator knows the fact without a memory."""
    own = [float(row["correct"][row["world"]]) for row in rows]
    other = [float(row["correct"][1 - row["world"]]) for row in rows]
    mean, low, high = (100 * each for each in paired_difference(own, other))
    lines = [
        f"Diagonal minus off-diagonal, both memories: {mean:+.1f} [{low:+.1f}, {high:+.1f}] points.",
        "",
        "| with memory B | facts | the answer of world B | the answer of world A | something else |",
        "|---|---|---|---|---|",
    ]
    names_of = {fact.id: fact.answers[0] for fact in facts}
    for name, known in (("known closed book", True), ("not known closed book", False)):
        of_b = (row for row in rows if row["world"] == 1)
        chosen = [row for row in of_b if exact_match(row["closed_book"], names_of[row["id"]]) == known]
        cells = [_share(row["correct"][world] for row in chosen) for world in (1, 0)]
        cells.append(_share(not any(row["correct"]) for row in chosen))
        lines.append(f"| {name} | {len(chosen)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _kinds(rows: Sequence[Row]) -> str:
    lines = ["| kind | facts | diagonal | off-diagonal | passage in the top 5 |", "|---|---|---|---|---|"]
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind.name]
        if own:
            cells = [
                _percent(sum(row["correct"][row["world"]] for row in own), len(own)),
                _percent(sum(row["correct"][1 - row["world"]] for row in own), len(own)),
                _percent(sum(_stating(row) is not None for row in own), len(own)),
            ]
            lines.append(f"| {kind.name} | {len(own) // 2} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _posteriors(rows: Sequence[Row]) -> str:
    groups = {
        "this world's": [row for row in rows if row["correct"][row["world"]]],
        "the other world's": [
            row for row in rows if row["correct"][1 - row["world"]] and not row["correct"][row["world"]]
        ],
        "something else": [row for row in rows if not any(row["correct"])],
    }
    lines = [
        "| answered | answers | passage in the top 5 | its prior | its posterior | largest | log p | closed book |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, of_group in groups.items():
        found = [stating for row in of_group if (stating := _stating(row)) is not None]
        cells = [
            _percent(len(found), len(of_group)),
            _mean(z["prior"] for z in found),
            _mean(z["posterior"] for z in found),
            _mean(max(z["posterior"] for z in row["sources"]) for row in of_group),
            _mean(row["log_prob"] for row in of_group),
            _mean(row["closed_book_log_prob"] for row in of_group),
        ]
        lines.append(f"| {name} | {len(of_group)} | " + " | ".join(cells) + " |")
    wrong = [row for row in rows if not row["correct"][row["world"]]]
    return "\n".join(lines) + "\n\n" + _where(wrong)


def _where(wrong: Sequence[Row]) -> str:
    """Of the answers that are not this world's: where the fact's passage was, and where the posterior went."""
    counts: Counter[str] = Counter()
    for row in wrong:
        stating = _stating(row)
        best = max(row["sources"], key=lambda z: z["posterior"])
        if stating is None:
            counts["the fact's passage was not among the five"] += 1
        elif best["id"] == stating["id"]:
            counts["the posterior was highest for the fact's passage, which was misread"] += 1
        elif stating["posterior"] < stating["prior"]:
            counts["the posterior went from the fact's passage to another"] += 1
        else:
            counts["another passage led in the prior and kept the lead"] += 1
    listed = "; ".join(f"{number}: {what}" for what, number in counts.most_common())
    return f"Of the {len(wrong)} answers that are not this world's, {listed or 'none'}."


def _stating(row: Row) -> Mapping[str, Any] | None:
    """The source that states the fact, if it was retrieved."""
    return next((z for z in row["sources"] if z["states"]), None)


def _share(values: Iterable[bool]) -> str:
    found = list(values)
    low, high = share_interval(sum(found), len(found))
    return f"{_percent(sum(found), len(found))} [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(number: int, of: int) -> str:
    return f"{100 * number / of:.1f} %" if of else "–"


def _mean(values: Iterable[float]) -> str:
    found = list(values)
    return f"{statistics.fmean(found):.2f}" if found else "–"
