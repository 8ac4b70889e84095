"""`latentrag index`: make memories and their indexes, look at their history, remove passages."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentrag.cli import arguments as arg
from latentrag.cli.output import print_json, print_line, say
from latentrag.config import DEMO, resolve_memory
from latentrag.corpus import TIME_LIMIT_S
from latentrag.errors import InputError

if TYPE_CHECKING:
    from latentrag.memory import Memory
    from latentrag.types import Passage

MemoryPath = Annotated[str, typer.Argument(metavar="MEMORY", help="Path of the memory, or demo.")]
Workers = Annotated[int, typer.Option(help="Processes that read the files. 0: read in this process, without a limit.")]
TimeLimit = Annotated[
    float,
    typer.Option(metavar="SECONDS", help="Longest time for reading one document; a file with a longer one is skipped."),
]


def add(
    memory: MemoryPath,
    files: Annotated[
        list[Path],
        typer.Argument(help="Files and folders: text, Markdown, HTML, PDF, DOCX, JSON lines, TSV, Wikipedia's dumps."),
    ],
    model: arg.ModelName = None,
    encoder: Annotated[
        str | None, typer.Option(help="In place of -m: the encoder of the passages, a folder or hub id.")
    ] = None,
    words: Annotated[int, typer.Option(help="Length of a passage.")] = 100,
    upsert: Annotated[bool, typer.Option("--upsert", help="Replace passages whose id is there already.")] = False,
    workers: Workers = 1,
    time_limit: TimeLimit = TIME_LIMIT_S,
    as_json: arg.AsJson = False,
) -> None:
    """Split files into passages, encode them, and commit them as one version, all or nothing.

    The memory is made if it is not there. A memory keeps to the encoder that it began with. Files in a folder
    that cannot be read are skipped and listed at the end.
    """
    from latentrag.corpus import passages

    if model is not None and encoder is not None:
        raise InputError("got both -m and --encoder; give one of them")
    path = resolve_memory(memory)
    skipped: list[tuple[Path, str]] = []
    # The files are looked up here, so that a misspelt name is found before a model is loaded.
    found = passages(
        files,
        words=words,
        on_skip=lambda file, reason: skipped.append((file, reason)),
        workers=workers,
        time_limit_s=time_limit,
    )
    counted = _Counted(found)
    try:
        before, after = _commit(path, counted, encoder=encoder or model or DEMO, upsert=upsert)
    finally:
        found.close()  # ends the processes that read
        for file, reason in skipped:
            say(f"skipped {file}: {reason}")
    added = len(after) - before
    if as_json:
        print_json(
            {
                "memory": str(path),
                "version": after.version,
                "added": added,
                "replaced": counted.total - added,
                "passages": len(after),
                "skipped": [{"file": str(file), "reason": reason} for file, reason in skipped],
            }
        )
        return
    replaced = f", replaced {counted.total - added}" if upsert else ""
    print_line(f"{path} version {after.version}: added {added}{replaced}; {len(after)} passages in all")


def log(memory: MemoryPath, as_json: arg.AsJson = False) -> None:
    """Every version of a memory, oldest first. Ask an earlier one with `latentrag ask --as-of VERSION`."""
    from latentrag.assemble import open_memory
    from latentrag.memory.tags import SERVED, tags

    newest = open_memory(memory, version="newest")
    path, versions = newest.path, newest.log()
    named = tags(path)
    served = named.pop(SERVED, versions[-1].number)
    of_version = {v.number: [name for name in named if named[name] == v.number] for v in versions}
    if as_json:
        rows = [
            {
                "version": v.number,
                "time": v.time.isoformat(),
                "passages": v.num_passages,
                "change": v.change,
                "tags": of_version[v.number],
                "served": v.number == served,
            }
            for v in versions
        ]
        print_json({"memory": str(path), "versions": rows})
        return
    from latentrag.cli.render import show_rows, terminal

    rows_shown = []
    for v in versions:
        names = [*of_version[v.number], *(["(served)"] if v.number == served else [])]
        time = f"{v.time:%Y-%m-%d %H:%M:%S}"
        rows_shown.append((str(v.number), time, str(v.num_passages), v.change, ", ".join(names)))
    show_rows(["version", "time (UTC)", "passages", "change", "tags"], rows_shown, terminal())


def delete(
    memory: MemoryPath,
    ids: Annotated[list[str], typer.Argument(help="Ids of passages, as the sources of an answer show them.")],
    as_json: arg.AsJson = False,
) -> None:
    """Commit a version without these passages. Earlier versions keep them; `index forget` leaves none."""
    from latentrag.assemble import open_memory

    for each in ids:
        arg.check_text(each, "id")
    before = open_memory(memory, version="newest")
    after = before.delete(ids)
    deleted = len(before) - len(after)
    if as_json:
        record = {"version": after.version, "deleted": deleted, "passages": len(after)}
        print_json({"memory": str(after.path), **record})
        return
    print_line(f"{after.path} version {after.version}: deleted {deleted}; {len(after)} passages left")


def build(
    memory: MemoryPath,
    kind: Annotated[
        str,
        typer.Option(
            "--index",
            metavar="KIND",
            help="flat: exact, all vectors in RAM; ivf-rabitq: 1 bit a number in RAM; auto: by the number of passages.",
        ),
    ] = "auto",
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="What the build may hold in memory, as 4GB; default: all there is."),
    ] = None,
    as_json: arg.AsJson = False,
) -> None:
    """Build an index of the version that is asked (the newest; see `index use`), and search by it from then on.

    Up to 200,000 passages none is needed: they are searched exactly. Files of an index are in MEMORY/_indexes and can
    be deleted at any time. Passages added and deleted later are found and not found at once; build again when many
    have changed. The index flat needs no files and removes those of the others.
    """
    from latentrag.assemble import open_memory

    bound = None if max_memory is None else arg.size_in_bytes(max_memory, "--max-memory")
    opened = open_memory(memory)
    made = opened.build_index(kind, max_memory=bound, progress=sys.stderr.isatty())
    if as_json:
        print_json({"memory": str(opened.path), **asdict(made)})
        return
    print_line(
        f"{opened.path} version {made.version}: {made.kind} of {made.num_passages} passages in {made.wall_s:.1f} s; "
        f"{made.ram_bytes / 1e6:.1f} MB in memory, {made.disk_bytes / 1e6:.1f} MB on disk; "
        f"finds {made.recall:.1%} of the five best"
        + (f", searched {made.effort:g} times as far as usual" if made.effort > 1 else "")
    )


class _Counted:
    """Passages, counted as they pass."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self.total = 0
        self._passages = passages

    def __iter__(self) -> Iterator[Passage]:
        for passage in self._passages:
            self.total += 1
            yield passage


def _commit(path: Path, passages: Iterable[Passage], *, encoder: str, upsert: bool) -> tuple[int, Memory]:
    """How many passages there were, and the memory as it is then."""
    from latentrag.assemble import load_passage_encoder
    from latentrag.memory import Memory
    from latentrag.memory.building import build, is_free

    progress = sys.stderr.isatty()
    if is_free(path):
        return 0, build(path, passages, load_passage_encoder(encoder), progress=progress)
    before = Memory.open(path)
    change = before.upsert if upsert else before.add
    return len(before), change(passages, load_passage_encoder(encoder), progress=progress)
