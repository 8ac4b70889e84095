"""What experiments share: how their commands end, lines of results that a kill may cut short, reports."""

import gzip
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import latentrag
from latentrag.assemble import load_passage_encoder
from latentrag.evaluation.intervals import bounded_interval, paired_difference
from latentrag.memory import Memory, add
from latentrag.types import Passage

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


def read_gzipped(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of the data."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def filled(path: Path, passages: Iterable[Passage], encoder: str, *, at_once: int) -> int:
    """Have a memory hold these passages, with a commit for so many at once; one that was interrupted goes on.

    Returns: how many were encoded.
    """
    known = {passage.id for passage in Memory.open(path).passages()} if path.exists() else set()
    missing = [passage for passage in passages if passage.id not in known]
    if missing:
        add(path, missing, lambda: load_passage_encoder(encoder), passages_per_commit=at_once, progress=True)
    return len(missing)


def between_marks(file: Path, measured: str, *, title: str) -> None:
    """Put what was measured between the marks of a report, whose words are written by hand."""
    text = file.read_text("utf-8") if file.exists() else f"# {title}\n\n{START}\n{END}\n"
    before, rest = text.split(START)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{before}{START}\n\n{measured}\n\n{END}{rest.split(END)[1]}", "utf-8")


def mean_shown(values: Sequence[float]) -> str:
    """The mean of values between 0 and 1, and its 95 % interval."""
    low, high = bounded_interval(np.asarray(values), (0.0, 1.0))
    return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"


def paired_shown(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The mean of ours − theirs, values between 0 and 1 of the same questions, and its 95 % interval."""
    mean, low, high = paired_difference(ours, theirs)
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def is_for_fitting(id_: str) -> bool:
    """Whether an example is in the half that something is fitted on, by the first byte of its id's SHA-256.

    The files of questions are halves by the last byte: it would put all of them into one.
    """
    return hashlib.sha256(id_.encode()).digest()[0] % 2 == 0
