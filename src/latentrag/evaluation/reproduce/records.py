"""What a command of a row gave, kept without any text of the data: FOLDER/ROW/ARM.json."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from latentrag import io
from latentrag.errors import DataError
from latentrag.evaluation.compare import Difference, difference, values_of_run
from latentrag.evaluation.report import read_run, settings_path
from latentrag.evaluation.reproduce.rows import Row, Rows, Size
from latentrag.place import cpu_name

_PACKAGES = ("latentrag", "torch", "transformers", "sentence-transformers", "faiss-cpu", "llama-cpp-python")
_FORGOTTEN = {"model", "memory", "model_files", "memory_identity"}
"""Settings that name places of one machine, or are hashes which the versions stand for."""


@dataclass(frozen=True, slots=True)
class Record:
    """One arm.

    Attributes:
        command: with its variables filled in, and the folders as placeholders.
        seconds: by the clock, all attempts together.
        machine: processor, cores, RAM, system.
        settings: of the evaluation.
        metrics: every estimate of the evaluation: mean, low, high, num_examples.
        ids: of the questions, in order.
        values: measure → a value for each question, None where it is not measured.
        bounds: measure → between which its values lie.
        texts: the first answers, as many as the row shows.
        answer: of an arm that asks: the answer's text and tokens, without question and passages.
        steps: commands of the steps that came before, in order.
    """

    row: str
    arm: str
    command: str
    size: Size
    date: str
    seconds: float
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    ids: Sequence[str]
    values: Mapping[str, Sequence[float | None]]
    bounds: Mapping[str, tuple[float, float] | None]
    texts: Sequence[str] = ()
    answer: Mapping[str, Any] | None = None
    steps: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Commands:
    """What an arm is measured by: its own command and those of the steps that it depends on. Folders stay placeholders,
    so that they are the same on every machine."""

    arm: str
    steps: tuple[str, ...]

    @classmethod
    def of(cls, rows: Rows, row: Row, arm: str, size: Size) -> Commands:
        """As they are now."""
        before = [step.command for step in rows.steps_of_arm(row, arm) if step.command]
        command, *steps = (rows.kept(each, size) for each in (row.arms[arm], *before))
        return cls(command, tuple(steps))


def of_run(row: Row, arm: str, commands: Commands, size: Size, seconds: float, found: Mapping[str, Any]) -> Record:
    """A record of what was found: keyword arguments of ``Record``, such as ``evaluated`` gives."""
    now = datetime.now(UTC).strftime("%Y-%m-%d")
    known: dict[str, Any] = {"settings": {}, "metrics": {}, "ids": [], "values": {}, "bounds": {}, **found}
    known |= {"command": commands.arm, "steps": commands.steps, "machine": _machine(), "versions": _versions()}
    return Record(row=row.name, arm=arm, size=size, date=now, seconds=round(seconds, 1), **known)


def evaluated(row: Row, rows_path: Path) -> dict[str, Any]:
    """Settings, estimates and the values of the row's measures of a finished evaluation.

    Raises: DataError if it is not one, or has not measured the first of them.
    """
    settings, run_rows = read_run(rows_path)
    metrics = json.loads(settings_path(rows_path).read_bytes())["metrics"]
    if row.measures[0] not in metrics:  # others, such as recall, a closed book does not have
        raise DataError(f"{rows_path} has not measured {row.measures[0]}; it has {', '.join(metrics)}")
    ids = sorted(run_rows)
    found = values_of_run(settings, [run_rows[each] for each in ids])
    kept = {name: found[name] for name in row.measures if name in found}
    return {
        "settings": {name: value for name, value in settings.items() if name not in _FORGOTTEN},
        "metrics": metrics,
        "ids": ids,
        "values": {name: [_rounded(value) for value in values] for name, (values, _) in kept.items()},
        "bounds": {name: bounds for name, (_, bounds) in kept.items()},
        "texts": [run_rows[each].get("text") for each in ids[: row.examples]],
    }


def answered(printed: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an answer that `ask --json` printed. Raises: DataError if it is none."""
    try:
        tokens = [{name: token[name] for name in ("text", "posterior")} for token in printed["tokens"]]
        answer = {"text": printed["answer"], "log_prob": printed["log_prob"], "tokens": tokens}
    except (KeyError, TypeError) as error:
        raise DataError(f"the command printed no answer ({error!r}); needed one of eval or ask") from error
    return {"answer": answer}


def write(folder: Path, record: Record) -> None:
    """Raises: DataError if it cannot be written."""
    path = _path(folder, record.row, record.arm)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        io.write_json(path, asdict(record), indent=None)
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror or error}; check the path and the space") from error


def read(folder: Path, row: Row) -> dict[str, Record]:
    """The records of a row's arms, by arm, those that are there. Raises: DataError for a file that is no record."""
    found = {}
    for arm in row.arms:
        path = _path(folder, row.name, arm)
        if path.exists():
            try:
                found[arm] = Record(**json.loads(path.read_bytes()))
            except (OSError, ValueError, TypeError) as error:
                raise DataError(f"{path} is not a record of `reproduce` ({error}); remove it") from error
    return found


def current(folder: Path, rows: Rows, row: Row, size: Size) -> dict[str, Record]:
    """Those of ``read`` that were measured in this size by the commands that the row and its steps have now."""
    return {
        arm: record
        for arm, record in read(folder, row).items()
        if (record.size, Commands(record.command, tuple(record.steps))) == (size, Commands.of(rows, row, arm, size))
    }


def compared(ours: Sequence[Record], theirs: Sequence[Record], measure: str) -> Difference | None:
    """Ours − theirs over the questions that all have, of several records the mean; None if there is no such question or
    the measure has no value for each."""
    if any(measure not in record.values for record in (*ours, *theirs)):
        return None
    sides = [[_values(record, measure) for record in records] for records in (ours, theirs)]
    both = [id_ for id_ in ours[0].ids if all(id_ in values for side in sides for values in side)]
    pairs = [[fmean(values[id_] for values in side) for side in sides] for id_ in both]
    return difference(np.array(pairs, dtype=float), ours[0].bounds[measure]) if pairs else None


def _values(record: Record, measure: str) -> dict[str, float]:
    pairs = zip(record.ids, record.values[measure], strict=True)
    return {id_: value for id_, value in pairs if value is not None}


def told(records: Iterable[Record]) -> list[str]:
    """Machines and versions of records, each once, in words."""
    lines: dict[str, None] = {}
    for record in records:
        machine = ", ".join(str(value) for value in record.machine.values())
        packages = ", ".join(f"{name} {value}" for name, value in record.versions.items())
        lines[f"{record.date}: {machine}; {packages}"] = None
    return sorted(lines)


def _path(folder: Path, row: str, arm: str) -> Path:
    return folder / row / f"{arm}.json"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 5)


def _machine() -> dict[str, Any]:
    ram = io.num_bytes_of_ram()
    return {
        "processor": cpu_name(),
        "cores": f"{os.cpu_count()} cores",
        "ram": f"{ram / 2**30:.0f} GiB" if ram else "RAM unknown",
        "system": platform.system(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
