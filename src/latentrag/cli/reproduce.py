"""`latentrag reproduce`: the paper's tables and figures, each one command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from latentrag.cli import arguments as arg
from latentrag.cli.output import print_json, say
from latentrag.errors import DataError, InputError

if TYPE_CHECKING:
    from latentrag.evaluation.reproduce.rows import Row, Rows, Size

_WORK = Path("reproduced")


def reproduce(
    what: Annotated[
        str,
        typer.Argument(
            metavar="ROW|all|list|check|page",
            help="A row to run, or all that need no model hub or GPU; list: the rows; check: whether what is recorded "
            "is what must come out (exit code 1 if not); page: write the page of results.",
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")] = Path("data"),
    work: Annotated[Path, typer.Option(help="Folder for models, memories and runs; the same one goes on.")] = _WORK,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder of the records; what is recorded there is not run again. [default: WORK/results]"),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Run on tiny models and data made for it, to see that every command works."),
    ] = False,
    as_json: arg.AsJson = False,
) -> None:
    """Run the rows of the paper's tables and figures, and check what comes out.

    Interrupted or killed, the same command goes on.
    """
    from latentrag.evaluation.reproduce.page import write_page
    from latentrag.evaluation.reproduce.rows import read_rows

    rows = read_rows()
    size: Size = "quick" if quick else "full"
    check = ["latentrag reproduce check", *([f"--results {results}"] if results else [f"--work {work}"])]
    results = results or work / ("quick/results" if quick else "results")
    if as_json and what not in ("list", "check"):
        raise InputError(f"--json has no effect on {what}; leave it out")
    if what == "list":
        _list(rows, results, size, as_json=as_json)
    elif what == "check":
        _check(rows, results, size, as_json=as_json)
    elif what == "page":
        say(f"the page is {write_page(rows, results, size)}")
    else:
        wanted = [row for row in rows.rows.values() if not row.needs] if what == "all" else [rows.named(what)]
        _run(rows, wanted, data, work, results, quick=quick)
        said = " ".join([*check, *(["--quick"] if quick else [])])
        say(f"the page is {write_page(rows, results, size)}; what must come out: {said}")


def _run(rows: Rows, wanted: Sequence[Row], data: Path, work: Path, results: Path, *, quick: bool) -> None:
    from latentrag.evaluation.reproduce.running import Places, reproduce

    if not quick:
        reproduce(rows, wanted, Places(data, work, results), "full", _in_a_process_of_its_own, say=say)
        return
    from latentrag.evaluation.reproduce.quick import make

    places = Places(work / "quick" / "data", work / "quick", results)
    make(places.work)
    corpus = places.data / "wiki-en-2018.corpus.jsonl.gz"
    memory = places.work / "quick.lance"
    if not memory.exists():
        _make_memory(memory, corpus, places.work / "encoder")
    reproduce(rows, wanted, places, "quick", _in_this_process, say=say)


def _make_memory(memory: Path, corpus: Path, encoder: Path) -> None:
    """Whole or not at all. Raises: DataError if it cannot be made."""
    scratch = memory.with_name(f"new-{memory.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    words = ["index", "add", str(scratch), str(corpus), "--encoder", str(encoder), "--workers", "0"]
    if code := _in_this_process(words, None):
        raise DataError(f"the memory of --quick cannot be made: `index add` ended with exit code {code}; see above")
    scratch.rename(memory)


def _in_a_process_of_its_own(words: Sequence[str], printed: Path | None) -> int:
    """A process of its own: what it takes of memory is given back."""
    with ExitStack() as opened:
        out: IO[Any] = sys.stderr if printed is None else opened.enter_context(printed.open("wb"))
        command = [sys.executable, "-m", "latentrag", *words]
        process = opened.enter_context(subprocess.Popen(command, stdout=out))  # noqa: S603 - commands of our own rows
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the command heard of it too, says what it keeps, and ends


def _in_this_process(words: Sequence[str], printed: Path | None) -> int:
    """This process, which has imported everything already."""
    from contextlib import redirect_stdout
    from io import StringIO

    from latentrag.cli.main import app

    written = StringIO()
    with redirect_stdout(written):
        try:
            app()(list(words), prog_name="latentrag")
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
    if printed is not None:
        printed.write_text(written.getvalue(), "utf-8")
    return code


def _list(rows: Rows, results: Path, size: Size, *, as_json: bool) -> None:
    from latentrag.evaluation.reproduce.records import current

    found = {name: current(results, rows, row, size) for name, row in rows.rows.items()}
    recorded = {name: len(of_row) for name, of_row in found.items()}
    if as_json:
        shown = [
            {**asdict(row), "must": [str(must) for must in row.must], "recorded": recorded[name]}
            for name, row in rows.rows.items()
        ]
        print_json({"rows": shown})
        return
    from latentrag.cli.render import show_rows, terminal

    lines = []
    for name, row in rows.rows.items():
        took = sum(record.seconds for record in found[name].values()) / 60
        about = took if recorded[name] == len(row.arms) else row.minutes
        minutes = "–" if about is None else f"{about:.0f} min"
        lines.append((name, row.of, f"{recorded[name]}/{len(row.arms)}", minutes, row.needs, row.shows))
    show_rows(["row", "of the paper", "recorded", "takes", "needs", "what it shows"], lines, terminal())


def _check(rows: Rows, results: Path, size: Size, *, as_json: bool) -> None:
    from latentrag.evaluation.reproduce.checking import verdicts
    from latentrag.evaluation.reproduce.records import current

    found = [verdict for row in rows.rows.values() for verdict in verdicts(row, current(results, rows, row, size))]
    if all(each.outcome == "not run" for each in found):
        raise InputError(
            f"{results} holds no record of a row as its commands are now; run `latentrag reproduce ROW` first, or name "
            "--results"
        )
    if as_json:
        print_json({"checks": [{**asdict(each), "must": str(each.must)} for each in found]})
    else:
        from latentrag.cli.render import show_rows, terminal

        lines = [(each.row, str(each.must), each.found, each.outcome) for each in found]
        show_rows(["row", "must come out", "came out", ""], lines, terminal())
    if any(each.outcome == "off" for each in found):
        raise typer.Exit(1)
