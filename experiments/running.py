"""What experiments share: how their commands end, lines of results that a kill may cut short, reports."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import latentrag

START = "<!-- measured: begin -->"
END = "<!-- measured: end -->"


def run(main: Callable[[], int]) -> None:
    """Run it and exit with its code: 2, and one line, for what a user can mend."""
    try:
        sys.exit(main())
    except latentrag.LatentRagError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The results in a file of JSON lines; none where there is no file. A line that a kill cut short is left out."""
    rows = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def between_marks(file: Path, measured: str, *, title: str) -> None:
    """Put what was measured between the marks of a report, whose words are written by hand."""
    text = file.read_text("utf-8") if file.exists() else f"# {title}\n\n{START}\n{END}\n"
    before, rest = text.split(START)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{before}{START}\n\n{measured}\n\n{END}{rest.split(END)[1]}", "utf-8")


def is_for_fitting(id_: str) -> bool:
    """Whether an example is in the half that something is fitted on, by the first byte of its id's SHA-256.

    The files of questions are halves by the last byte: it would put all of them into one.
    """
    return hashlib.sha256(id_.encode()).digest()[0] % 2 == 0
