"""`latentrag index sync`: keep a memory equal to a folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentrag.addresses import memory_path
from latentrag.cli import arguments as arg
from latentrag.cli.index import MemoryPath, listed_versions, load_encoder, resumable, say_advice
from latentrag.cli.output import EXIT_PROBLEMS, print_json, print_line, say
from latentrag.cli.preview import FileReport
from latentrag.io import Progress as Bar
from latentrag.io import progress
from latentrag.options import PassageEncoderOptions, SyncOptions
from latentrag.records import file_record

if TYPE_CHECKING:
    from latentrag.sync import Progress, Report


def sync(
    memory: MemoryPath,
    folder: Annotated[Path, typer.Argument(help="A folder, with its subfolders, of files as for `index add`.")],
    *,
    encoder: PassageEncoderOptions,
    options: SyncOptions,
    strict: arg.Strict = False,
    as_json: arg.AsJson = False,
) -> None:
    """Make a memory hold what the files of a folder hold now: add, update, encode only what is new.

    Files that are gone are reported, or removed with --delete-missing; files that cannot be read are skipped and
    keep what the memory has of them. What `index add` has added stays. Interrupted or killed, the same command goes
    on where it was.
    """
    from latentrag.sync import sync as run

    if options.name is not None:
        arg.check_text(options.name, "name")
    path = memory_path(memory)
    with resumable(), progress("files", None, wanted=sys.stderr.isatty()) as bar:
        report = run(path, folder, lambda: load_encoder(encoder), options=options, on_progress=_shown_on(bar))
    _show(report, as_json=as_json)
    if strict and report.skipped:
        raise typer.Exit(EXIT_PROBLEMS)


def _show(report: Report, *, as_json: bool) -> None:
    from latentrag.memory import Memory

    files, passages = report.files, report.passages
    of_files = FileReport(report.ledgers, report.skipped)
    of_files.tell()
    if report.missing:
        say(
            f"{len(report.missing)} files are gone from {report.folder}, their {passages.missing} passages "
            "stay; --delete-missing removes them"
        )
    if report.version is not None and not report.dry_run:
        say_advice(Memory.open(report.memory))
    if as_json:
        of_passages = {"encoded": report.num_encoded, "in_all": report.num_passages}
        print_json(
            {
                "memory": str(report.memory),
                "folder": str(report.folder),
                "name": report.name,
                "dry_run": report.dry_run,
                "version": report.version,
                "files": {**asdict(files), "skipped": len(report.skipped)},
                "passages": {**asdict(passages), **of_passages},
                "skipped": [{"file": str(file), "reason": reason} for file, reason in report.skipped],
                "ledgers": [file_record(ledger) for ledger in report.ledgers],
                "missing": report.missing,
                "pruned": report.pruned,
            }
        )
        return
    version = "no memory" if report.version is None else f"version {report.version}"
    print_line(
        f"{'dry run, nothing is changed: ' if report.dry_run else ''}{report.memory} {version}: "
        f"files {files.added} added, {files.changed} changed, {files.removed} removed, {files.unchanged} unchanged, "
        f"{len(report.skipped)} skipped; passages {passages.added} added, {passages.changed} changed, "
        f"{passages.removed} removed, {passages.unchanged} unchanged, {report.num_encoded} encoded; "
        f"{report.num_passages} in all" + (f"; removed {listed_versions(report.pruned)}" if report.pruned else "")
    )


def _shown_on(bar: Bar) -> Callable[[Progress], None]:
    """Files done, and passages a second."""
    start_s = time.monotonic()

    def show(done: Progress) -> None:
        rate = done.num_passages / max(time.monotonic() - start_s, 1e-9)
        passages = f", {done.num_passages} passages, {rate:.0f}/s" if done.num_passages else ""
        bar.update(completed=done.num_files_done, total=done.num_files, description=f"files{passages}")

    return show
