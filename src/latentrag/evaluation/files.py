"""An evaluation on disk: RUN.jsonl, a row an example, and beside it RUN.json, how it was made and its report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from latentrag import io
from latentrag.errors import DataError, InputError
from latentrag.evaluation.report import Report, Row


@contextmanager
def begun(rows_path: Path, settings: Mapping[str, Any]) -> Iterator[dict[str, Row]]:
    """The rows that are there already, by id; none in a new file. In the block nobody else begins with the file.

    A line that a kill cut short is removed.

    Raises: InputError if another process is in such a block, or if the rows were made with other settings, so that
        they cannot be gone on with.
    """
    if rows_path.suffix != ".jsonl":
        raise InputError(f"{rows_path} does not end with .jsonl; needed such a name, since a .json goes beside it")
    with ExitStack() as held:
        with _explained(rows_path):
            rows_path.parent.mkdir(parents=True, exist_ok=True)
            rows_path.touch()
            alone = held.enter_context(io.exclusive(rows_path))
        if not alone:
            raise InputError(f"{rows_path} is being written by another evaluation; wait for it, or name another file")
        yield _begun(rows_path, settings)


def _begun(rows_path: Path, settings: Mapping[str, Any]) -> dict[str, Row]:
    with _explained(rows_path):
        if not rows_path.stat().st_size:
            _write(rows_path, {"settings": settings})
            return {}
        before = _settings(rows_path)
        if before != settings:
            raise InputError(_difference(rows_path, before, settings))
        content = rows_path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with rows_path.open("r+b") as file:
                file.truncate(whole)
    return _rows(rows_path)


def append(rows_path: Path, rows: Sequence[Row]) -> None:
    """Adds rows, each a line."""
    with _explained(rows_path), rows_path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def finish(rows_path: Path, report: Report) -> None:
    """Puts the report, which has the settings in it, in their place."""
    with _explained(rows_path):
        _write(rows_path, report.as_record())


def read_run(rows_path: Path) -> tuple[dict[str, Any], dict[str, Row]]:
    """Settings, and rows by id, of an evaluation. Raises: DataError if it cannot be read or has no rows."""
    with _explained(rows_path):
        rows = _rows(rows_path)
        if not rows:
            raise DataError(f"{rows_path} holds no rows; run `latentrag eval … --out {rows_path}` first")
        return _settings(rows_path), rows


def settings_path(rows_path: Path) -> Path:
    """Where the settings of a file of rows are."""
    return rows_path.with_suffix(".json")


def _settings(rows_path: Path) -> dict[str, Any]:
    path = settings_path(rows_path)
    try:
        settings = json.loads(path.read_bytes())["settings"]
    except FileNotFoundError:
        raise DataError(f"{rows_path} has no {path.name} beside it, which says how it was made") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is no settings file of an evaluation; restore it or name another file") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path} is no settings file of an evaluation; restore it or name another file")
    return settings


def _write(rows_path: Path, content: Mapping[str, Any]) -> None:
    path = settings_path(rows_path)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    new.replace(path)


def _rows(rows_path: Path) -> dict[str, Row]:
    rows = {}
    for number, line in enumerate(rows_path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            rows[row["id"]] = row
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{rows_path} line {number} is no row of an evaluation; remove the line") from error
    return rows


def _difference(rows_path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    name = next(name for name in [*now, *before] if before.get(name) != now.get(name))
    return (
        f"{rows_path} was begun with {name}={before.get(name)!r}, this run has {now.get(name)!r}; "
        f"name another file, or delete it and {settings_path(rows_path).name}"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{error.filename or path}: {reason}; check the path, its permissions and the space") from error
