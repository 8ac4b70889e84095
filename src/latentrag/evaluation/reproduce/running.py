"""Running rows: steps that are not done, arms that are not recorded; interrupted, the same command goes on."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from latentrag import io
from latentrag.errors import DataError, InputError
from latentrag.evaluation.reproduce import records
from latentrag.evaluation.reproduce.derived import derive
from latentrag.evaluation.reproduce.rows import Row, Rows, Size, Step

Run: TypeAlias = Callable[[Sequence[str], Path | None], int]
"""Runs a command line of latentrag, its standard output into a file where one is given: gives its exit code."""

_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are.

    Attributes:
        data: the folder of the data sets.
        work: what the commands make: models, memories, rows of evaluations.
        results: the records.
    """

    data: Path
    work: Path
    results: Path


def reproduce(
    rows: Rows, wanted: Sequence[Row], places: Places, size: Size, run: Run, *, say: Callable[[str], None]
) -> None:
    """Run what is missing of these rows. An arm that is recorded with the same command is not run again.

    Raises: InputError for data that is not there, before anything runs; DataError if a command fails;
        KeyboardInterrupt if one was interrupted.
    """
    _check_data({name for row in wanted for name in rows.data_of(row)}, places.data)
    places.work.mkdir(parents=True, exist_ok=True)
    with io.exclusive(places.work) as alone:
        if not alone:
            raise InputError(f"{places.work} is used by another `reproduce`; wait for it, or name another folder")
        for number, row in enumerate(wanted, 1):
            missing = [arm for arm in row.arms if not is_done(rows, row, arm, places.results, size)]
            say(f"{number}/{len(wanted)} {row.name}: {len(row.arms) - len(missing)} of {len(row.arms)} arms are there")
            for step in rows.steps_of(row) if missing else ():
                _take(rows, step, places, size, run, say)
            for arm in missing:
                say(f"{row.name}, {arm}")
                _measure(rows, row, arm, places, size, run)


def is_done(rows: Rows, row: Row, arm: str, results: Path, size: Size) -> bool:
    """Whether an arm is recorded with the command that it has now."""
    record = records.read(results, row).get(arm)
    return record is not None and (record.command, record.size) == (_kept(rows, row.arms[arm], size), size)


def _check_data(names: Collection[str], data: Path) -> None:
    missing = sorted(name for name in names if not (data / name).exists())
    if missing:
        raise InputError(f"{data} has no {missing[0]} ({len(missing)} files missing); name their folder by --data")


def _kept(rows: Rows, command: str, size: Size) -> str:
    """A command as it is recorded: the folders stay placeholders, so that it is the same on every machine."""
    return rows.command(command, size, data="{data}", work="{work}")


def _words(rows: Rows, command: str, places: Places, size: Size) -> list[str]:
    """As arguments. Folders may have spaces in their names: they are put in after the words are taken apart."""
    folders = {"{data}": places.data, "{work}": places.work}
    words = shlex.split(_kept(rows, command, size))
    for placeholder, folder in folders.items():
        words = [word.replace(placeholder, str(folder)) for word in words]
    return words


def _take(rows: Rows, step: Step, places: Places, size: Size, run: Run, say: Callable[[str], None]) -> None:
    """A step, unless it was done with the same command."""
    mark = places.work / "steps" / f"{step.name}.json"
    kept = {"command": _kept(rows, step.command, size)}
    if mark.exists() and json.loads(mark.read_bytes()) == kept:
        return
    say(f"first: {step.name}")
    if step.derives:
        derive(step.derives, places.data, places.work / f"{step.name}.jsonl")
    else:
        _run_step(rows, step, places, size, run)
    mark.parent.mkdir(parents=True, exist_ok=True)
    io.write_json(mark, kept)


def _run_step(rows: Rows, step: Step, places: Places, size: Size, run: Run) -> None:
    words = _words(rows, step.command, places, size)
    if not words:  # of this size there is nothing to do
        return
    if step.resumes and Path(step.resumes.replace("{work}", str(places.work))).exists():
        words.append("--resume")
    _run(run, words, None, step.name)


def _measure(rows: Rows, row: Row, arm: str, places: Places, size: Size, run: Run) -> None:
    """Run an arm and record it."""
    command = _kept(rows, row.arms[arm], size)
    mark = hashlib.sha256(command.encode()).hexdigest()[:8]  # rows of an earlier command stay apart
    out = places.work / "runs" / row.name / f"{arm}-{mark}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    words = _words(rows, row.arms[arm], places, size)
    is_evaluation = words[0] == "eval"
    printed = out.with_suffix(".printed.json")
    with _timed(out.with_suffix(".seconds")) as seconds:
        _run(run, [*words, *(["--out", str(out)] if is_evaluation else []), "--json"], printed, f"{row.name}, {arm}")
    found = records.evaluated(row, out) if is_evaluation else records.answered(json.loads(printed.read_bytes()))
    records.write(places.results, records.of_run(row, arm, command, size, seconds(), found))


@contextmanager
def _timed(file: Path) -> Iterator[Callable[[], float]]:
    """Seconds that are kept in a file, so that those of interrupted attempts count."""
    before = float(file.read_text("utf-8")) if file.exists() else 0.0
    start = time.monotonic()
    try:
        yield lambda: before + time.monotonic() - start
    finally:
        io.write_file(file, f"{before + time.monotonic() - start}".encode())


def _run(run: Run, words: Sequence[str], printed: Path | None, what: str) -> None:
    code = run(words, printed)
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise DataError(
            f"{what}: `latentrag {shlex.join(words)}` ended with exit code {code}; mend what it says above, then the "
            "same command goes on"
        )
