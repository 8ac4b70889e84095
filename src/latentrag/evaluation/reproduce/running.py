"""Running rows: steps that are not done, arms that are not recorded; interrupted, the same command goes on."""

from __future__ import annotations

import hashlib
import json
import shlex
import threading
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
    """Run what is missing of these rows. An arm that is recorded with the same commands is not run again.

    Raises: InputError for data that is not there or records of the other size, before anything runs, and for what
        another command made; DataError if a command fails; KeyboardInterrupt if one was interrupted.
    """
    _check_data({name for row in wanted for name in rows.data_of(row)}, places.data)
    _check_size(wanted, places.results, size)
    places.work.mkdir(parents=True, exist_ok=True)
    with io.exclusive(places.work) as alone:
        if not alone:
            raise InputError(f"{places.work} is used by another `reproduce`; wait for it, or name another folder")
        for number, row in enumerate(wanted, 1):
            there = records.current(places.results, rows, row, size)
            missing = [arm for arm in row.arms if arm not in there]
            say(f"{number}/{len(wanted)} {row.name}: {len(row.arms) - len(missing)} of {len(row.arms)} arms are there")
            for step in rows.steps_of(row) if missing else ():
                _take(rows, step, places, size, run, say)
            for arm in missing:
                say(f"{row.name}, {arm}")
                _measure(rows, row, arm, places, size, run)


def _check_data(names: Collection[str], data: Path) -> None:
    missing = sorted(name for name in names if not (data / name).exists())
    if missing:
        raise InputError(f"{data} has no {missing[0]} ({len(missing)} files missing); name their folder by --data")


def _check_size(wanted: Sequence[Row], results: Path, size: Size) -> None:
    """What took hours is not replaced by what took seconds."""
    others = {record.size for row in wanted for record in records.read(results, row).values()} - {size}
    for other in others:
        raise InputError(
            f"{results} has records of {other} runs, which {size} ones would replace; name another --results"
        )


def _words(rows: Rows, command: str, places: Places, size: Size) -> list[str]:
    """As arguments. Folders may have spaces in their names: they are put in after the words are taken apart."""
    folders = {"{data}": places.data, "{work}": places.work}
    words = shlex.split(rows.kept(command, size))
    for placeholder, folder in folders.items():
        words = [word.replace(placeholder, str(folder)) for word in words]
    return words


def _take(rows: Rows, step: Step, places: Places, size: Size, run: Run, say: Callable[[str], None]) -> None:
    """A step, unless it was done with the same command."""
    mark = places.work / "steps" / f"{step.name}.json"
    kept = {"command": rows.kept(step.command, size), "steps": _commands_before(rows, step, size)}
    # Marks of earlier versions have no steps.
    if mark.exists() and {**kept, **json.loads(mark.read_bytes())} == kept:
        return
    if mark.exists() and not step.derives:
        _check_gone(step, places.work)
    say(f"first: {step.name}")
    if step.derives:
        derive(step.derives, places.data, places.work / f"{step.name}.jsonl")
    else:
        _run_step(rows, step, places, size, run)
    mark.parent.mkdir(parents=True, exist_ok=True)
    io.write_json(mark, kept)


def _commands_before(rows: Rows, step: Step, size: Size) -> list[str]:
    """Of what the step is made from."""
    return [rows.kept(each.command, size) for each in rows.steps_before(step.steps) if each.command]


def _check_gone(step: Step, work: Path) -> None:
    """What another command made would be taken for what this one makes."""
    for path in (work / step.name, work / f"{step.name}.lance"):
        if path.exists():
            raise InputError(f"{path} was made by another command than that of now; remove it, or name another --work")


def _run_step(rows: Rows, step: Step, places: Places, size: Size, run: Run) -> None:
    words = _words(rows, step.command, places, size)
    if not words:  # of this size there is nothing to do
        return
    if step.resumes and Path(step.resumes.replace("{work}", str(places.work))).exists():
        words.append("--resume")
    _run(run, words, None, step.name)


def _measure(rows: Rows, row: Row, arm: str, places: Places, size: Size, run: Run) -> None:
    """Run an arm and record it."""
    commands = records.Commands.of(rows, row, arm, size)
    mark = hashlib.sha256("\n".join([commands.arm, *commands.steps]).encode()).hexdigest()[:8]  # of others stay apart
    out = places.work / "runs" / row.name / f"{arm}-{mark}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    words = _words(rows, row.arms[arm], places, size)
    is_evaluation = words[0] == "eval"
    printed = out.with_suffix(".printed.json")
    with timed(out.with_suffix(".seconds")) as seconds:
        _run(run, [*words, *(["--out", str(out)] if is_evaluation else []), "--json"], printed, f"{row.name}, {arm}")
    found = records.evaluated(row, out) if is_evaluation else records.answered(json.loads(printed.read_bytes()))
    records.write(places.results, records.of_run(row, arm, commands, size, seconds(), found))


@contextmanager
def timed(file: Path, *, every_s: float = 10.0) -> Iterator[Callable[[], float]]:
    """Seconds that are kept in a file again and again, so that those of attempts that were killed count."""
    before = float(file.read_text("utf-8")) if file.exists() else 0.0
    start = time.monotonic()
    ended = threading.Event()

    def so_far() -> float:
        return before + time.monotonic() - start

    def keep() -> None:
        while not ended.wait(every_s):
            io.write_file(file, f"{so_far()}".encode())

    keeping = threading.Thread(target=keep, daemon=True)
    keeping.start()
    try:
        yield so_far
    finally:
        ended.set()
        keeping.join()
        io.write_file(file, f"{so_far()}".encode())


def _run(run: Run, words: Sequence[str], printed: Path | None, what: str) -> None:
    code = run(words, printed)
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise DataError(
            f"{what}: `latentrag {shlex.join(words)}` ended with exit code {code}; mend what it says above, then the "
            "same command goes on"
        )
