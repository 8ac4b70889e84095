"""`latentrag score`: JSON lines in, JSON lines out, as a stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from latentrag.cli import arguments as arg
from latentrag.cli.output import message_of, print_json, say
from latentrag.errors import DataError, InputError
from latentrag.options import (
    AskOptions,
    EvidenceOptions,
    SystemOptions,
)
from latentrag.records import score_record
from latentrag.types import Variant

if TYPE_CHECKING:
    from latentrag.rag import Rag
    from latentrag.types import Score

STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True)
class Pair:
    """A line of the input: where it stands, and what it says."""

    place: str
    x: str
    y: str


def score(
    file: Annotated[
        str, typer.Argument(help='File with lines of {"x": question, "y": answer}; -: standard input.')
    ] = "-",
    *,
    system: SystemOptions,
    how: AskOptions,
    evidence: EvidenceOptions,
    batch_size: Annotated[int, typer.Option(min=1, help="Lines scored and written together.")] = 8,
    as_json: arg.AsJson = False,
) -> None:
    """How probable given answers are, and how much each passage contributes.

    Results appear batch by batch. A line that cannot be scored ends the run, after the results of the lines before it.
    """
    from rich.console import Console

    arg.refuse_rewrites(system.model, "score")
    with _opened(file) as lines:
        rag = arg.open_rag(system)
        name = "standard input" if file == STANDARD_INPUT else file
        num_scored = 0
        # Nobody needs a count who sees the results themselves, and both on one terminal would collide.
        with Console(stderr=True, quiet=sys.stdout.isatty()).status("scoring") as status:
            for batch in batches(pairs(lines, name=name), size=batch_size):
                for scores in scored(rag, batch, **asdict(how), **asdict(evidence)):
                    _write(scores, as_json=as_json, first=num_scored == 0)
                    num_scored += len(scores)
                    status.update(f"{num_scored} scored")


def pairs(lines: Iterable[bytes], *, name: str) -> Iterator[Pair]:
    """The pairs of a stream of JSON lines; blank lines are passed over.

    Raises: DataError, with the line's number, for one that is not {"x": text, "y": text}.
    """
    for number, raw in enumerate(lines, start=1):
        if raw.strip():
            place = f"{name} line {number}"
            yield _pair(raw, place)


def batches(found: Iterable[Pair], *, size: int) -> Iterator[list[Pair]]:
    """Up to ``size`` pairs at a time. What came before a bad line is yielded before its error is raised."""
    batch: list[Pair] = []
    try:
        for pair in found:
            batch.append(pair)
            if len(batch) == size:
                yield batch
                batch = []
    except DataError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def scored(
    rag: Rag, batch: Sequence[Pair], *, k: int | None, variant: Variant | None, sentences: bool = False
) -> Iterator[list[Score]]:
    """The batch's scores at once; one by one if a pair cannot be scored, so that its line can be named.

    Raises: DataError for that pair, after the scores of those before it.
    """
    try:
        x, y = [pair.x for pair in batch], [pair.y for pair in batch]
        scores = rag.score_batch(x, y, k=k, variant=variant, sentences=sentences)
    except InputError as error:
        if len(batch) == 1:
            raise DataError(f"{batch[0].place}: {message_of(error)}") from error
        for pair in batch:
            yield from scored(rag, [pair], k=k, variant=variant, sentences=sentences)
    else:
        yield scores


def _pair(raw: bytes, place: str) -> Pair:
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error}); fix or remove the line") from error
    if not isinstance(row, dict):
        raise DataError(f'{place}: not an object; needed {{"x": question, "y": answer}}')
    for key in ("x", "y"):
        value = row.get(key)
        if not isinstance(value, str):
            got = "missing" if key not in row else f"a {type(value).__name__}"
            raise DataError(f'{place}: {key} is {got}; needed text: {{"x": question, "y": answer}}')
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f"{place}: {key} holds half a character (a lone surrogate); correct it") from None
    return Pair(place, row["x"], row["y"])


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == STANDARD_INPUT:
        if sys.stdin.isatty():
            say("reading JSON lines from standard input; end with Ctrl-D")
        yield sys.stdin.buffer
        return
    try:
        stream = Path(file).expanduser().open("rb")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path and its permissions") from error
    with stream:
        yield stream


def _write(scores: Sequence[Score], *, as_json: bool, first: bool) -> None:
    if as_json:
        for each in scores:
            print_json(score_record(each))
    else:
        from latentrag.cli.render import show_scores, terminal

        show_scores(scores, terminal(), header=first)
        sys.stdout.flush()
