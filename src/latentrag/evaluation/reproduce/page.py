"""The page of results, made from the records alone: a section a row, its table or figure, and whether it came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentrag import io
from latentrag.errors import DataError
from latentrag.evaluation.reproduce import drawing, records
from latentrag.evaluation.reproduce.checking import verdicts
from latentrag.evaluation.reproduce.records import Record
from latentrag.evaluation.reproduce.rows import Row, Rows, Size

PAGE = "README.md"
_HEAD = """# Results

What the rows of `latentrag reproduce` came to here, beside the paper's own figures. This page is made from the records
in this folder by `latentrag reproduce page`; nothing on it is written by hand. Means have their 95 % interval;
percent unless the measure is log p (nats) or says otherwise. Our models and corpora are far smaller than the
paper's: what is to be compared is which arm is above which.
"""


def write_page(rows: Rows, results: Path, size: Size = "full") -> Path:
    """Write README.md and its figures into the folder of records, of those records that are of the commands of now.

    Raises: DataError if that cannot be.
    """
    sections = []
    try:
        for row in rows.rows.values():
            recorded = records.current(results, rows, row, size)
            figure = ""
            if row.figure and recorded:
                file = results / f"{row.name}.svg"
                drawing.FIGURES[row.figure](row, recorded, file)
                figure = f"![{row.of}: {row.shows}]({file.name})"
            sections.append(_section(rows, row, recorded, figure, size))
        results.mkdir(parents=True, exist_ok=True)
        page = results / PAGE
        io.write_file(page, "\n".join([_HEAD, *sections]).encode())
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror or error}; check the path and the space") from error
    return page


def _section(rows: Rows, row: Row, recorded: Mapping[str, Record], figure: str, size: Size) -> str:
    parts = [f"## {row.name}: {row.of}\n", f"{row.shows}"]
    if row.paper:
        parts.append(f"The paper: {row.paper}")
    if not recorded:
        needs = {"hub": "it needs a model hub", "gpu": "it needs a GPU", "": "not yet"}[row.needs]
        parts.append(f"Not run here: {needs}.")
    else:
        evaluated = {arm: record for arm, record in recorded.items() if record.answer is None}
        parts += [_table(row, evaluated)] if evaluated else []
        parts += [figure] if figure else []
        parts += [outputs] if (outputs := _outputs(recorded)) else []
        parts += [_musts(row, recorded)] if row.must else []
    if row.note:
        parts.append(row.note)
    parts.append(_commands(rows, row, size))
    if recorded:
        seconds = sum(record.seconds for record in recorded.values())
        parts.append(f"{seconds / 60:.0f} minutes. " + " ".join(f"{line}." for line in records.told(recorded.values())))
    return "\n\n".join(parts) + "\n"


def _table(row: Row, recorded: Mapping[str, Record]) -> str:
    lines = [f"| arm | questions | {' | '.join(map(words, row.measures))} |", "|---" * (2 + len(row.measures)) + "|"]
    for arm, record in recorded.items():
        cells = [shown(record.metrics.get(measure), measure) for measure in row.measures]
        lines.append(f"| {arm} | {len(record.ids):,} | {' | '.join(cells)} |")
    missing = [arm for arm in row.arms if arm not in recorded]
    lines += [f"\nNot run yet: {', '.join(missing)}."] if missing else []
    return "\n".join(lines)


def shown(estimate: Mapping[str, Any] | None, measure: str) -> str:
    """A mean with its interval."""
    if estimate is None:
        return "–"
    scale, digits = (1, 3) if measure.startswith("log_") else (100, 1)
    mean = f"{scale * estimate['mean']:.{digits}f}"
    if estimate["low"] is None:
        return mean
    return f"{mean} [{scale * estimate['low']:.{digits}f}, {scale * estimate['high']:.{digits}f}]"


def words(measure: str) -> str:
    """A measure's name for people."""
    return measure.replace("log_likelihood", "log p").replace("_", " ").replace("f1", "F1").replace("@", " at ")


def _musts(row: Row, recorded: Mapping[str, Record]) -> str:
    lines = (f"| {each.must} | {each.found} | {each.outcome} |" for each in verdicts(row, recorded))
    return "\n".join(["| must come out | came out | |", "|---|---|---|", *lines])


def _outputs(recorded: Mapping[str, Record]) -> str:
    """What models wrote, as code, since it may hold marks."""
    return "\n".join(
        f"- {arm}: `{' '.join(text.replace('`', ' ').split())}`"
        for arm, record in recorded.items()
        for text in [*record.texts, *([record.answer["text"]] if record.answer else [])]
    )


def _commands(rows: Rows, row: Row, size: Size) -> str:
    commands = [step.command for step in rows.steps_of(row) if step.command] + list(row.arms.values())
    filled = (rows.command(each, size, data="DATA", work="WORK") for each in commands)
    lines = [f"latentrag {each}" for each in filled]
    return "```\n" + "\n".join(lines) + "\n```"
