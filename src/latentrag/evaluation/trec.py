"""Files of TREC: runs ("id Q0 passage rank score tag") and judgements ("id 0 passage grade", or BEIR's columns).

A line is divided at its tabs where that gives the columns, so that ids may hold spaces; else at white space.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from latentrag import io
from latentrag.errors import DataError

Qrels = Mapping[str, Mapping[str, int]]
"""For each question's id what was judged, with its grade; 0: not relevant."""
Runs = Mapping[str, Sequence[tuple[str, float]]]
"""For each question's id what was retrieved, with its score, best first."""
TAG = "latentrag"


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Judgements by question. Raises: DataError, with the line's number, for a line that is none."""
    found: dict[str, dict[str, int]] = {}
    for number, columns in _lines(path, {3, 4}):
        if number == 1 and columns[0] in {"query-id", "query_id", "qid"}:  # BEIR's head
            continue
        grade = _number(columns[-1]) if len(columns) in {3, 4} else None
        if grade is None or not grade.is_integer() or not all(columns):
            raise DataError(f"{path} line {number} is no judgement; needed ids of question and passage, and a grade")
        found.setdefault(columns[0], {})[columns[-2]] = int(grade)
    if not found:
        raise DataError(f"{path} holds no judgement; needed lines of a question's id, 0, a passage's id and a grade")
    return found


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """What was retrieved by question, best first as trec_eval sorts: by score in float32, equal ones by the larger
    name. Ranks count for nothing.

    Raises: DataError, with the line's number, for a line that is none.
    """
    found: dict[str, dict[str, float]] = {}
    for number, columns in _lines(path, {6}):
        score = _number(columns[4]) if len(columns) == 6 else None
        if score is None or not all(columns):
            raise DataError(f"{path} line {number} is no row of a run; needed id, Q0, passage, rank, score and tag")
        of_question = found.setdefault(columns[0], {})
        if columns[2] in of_question:
            raise DataError(f"{path} line {number} has {columns[2]} for {columns[0]} a second time; remove it")
        of_question[columns[2]] = score
    if not found:
        raise DataError(f"{path} holds no row of a run")
    return {
        question: sorted(of_question.items(), key=lambda each: (_float32(each[1]), each[0]), reverse=True)
        for question, of_question in found.items()
    }


def write_qrels(path: Path, qrels: Qrels) -> None:
    """As trec_eval reads them. Raises: DataError as ``check_names``."""
    lines = [f"{q} 0 {name} {grade}" for q, judged in qrels.items() for name, grade in judged.items()]
    _write(path, lines, [*qrels, *(name for judged in qrels.values() for name in judged)])


def write_run(path: Path, runs: Runs) -> None:
    """As trec_eval reads it. A score that is not below the one before is lowered by float32's least step, so that the
    order stays ours: trec_eval would sort equal ones by name.

    Raises: DataError as ``check_names``.
    """
    lines = []
    for question, of_question in runs.items():
        last = np.float32(np.inf)
        for rank, (name, score) in enumerate(of_question, start=1):
            last = min(_float32(score), np.nextafter(last, np.float32(-np.inf)))
            lines.append(f"{question} Q0 {name} {rank} {last!s} {TAG}")
    _write(path, lines, [*runs, *(name for of_question in runs.values() for name, _ in of_question)])


def check_names(path: Path, names: Iterable[str]) -> None:
    """Raises: DataError if an id is empty or has white space, which TREC's files cannot hold."""
    bad = next((name for name in names if name.split() != [name]), None)
    if bad is not None:
        why = "has white space" if bad else "is empty"
        raise DataError(f"{path}: the id {bad!r} {why}, which files of TREC cannot hold; rename it")


def _lines(path: Path, wanted: Collection[int]) -> Iterator[tuple[int, list[str]]]:
    """Columns by number of line: what stands between tabs where these are as many as are wanted, so that ids may have
    spaces; else between any white space."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if content := line.strip():
            columns, words = [each.strip() for each in content.split("\t")], content.split()
            is_mixed = len(words) == max(wanted) and words[1] in {"0", "Q0"} and columns[0].split() == words[:2]
            yield number, columns if len(columns) in wanted and not is_mixed else words


def _float32(score: float) -> np.float32:
    with np.errstate(over="ignore"):  # infinite then, as for trec_eval
        return np.float32(score)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _write(path: Path, lines: Sequence[str], names: Sequence[str]) -> None:
    check_names(path, names)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        io.write_file(path, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; check the path, its permissions and the space") from error
