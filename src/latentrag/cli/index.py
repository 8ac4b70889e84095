"""`latentrag index`: make memories and their indexes, look at their history, remove passages."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer

from latentrag import assemble
from latentrag.addresses import memory_path
from latentrag.cli import arguments as arg
from latentrag.cli.output import EXIT_INTERRUPTED, EXIT_PROBLEMS, print_json, print_line, say
from latentrag.cli.preview import FileReport, Files, Words
from latentrag.errors import InputError, LatentRagError
from latentrag.options import PassageEncoderOptions, ReadingOptions, size_in_bytes

if TYPE_CHECKING:
    from latentrag.memory import Memory
    from latentrag.protocols import PassageEncoder

WORDS = "words"
MemoryPath = Annotated[str, typer.Argument(metavar="MEMORY", help="Path of the memory, s3://BUCKET/NAME, or demo.")]


@contextmanager
def resumable() -> Iterator[None]:
    """Within: passages are committed in parts, and who interrupts it, or an error, is told what stays."""
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted; what was committed stays, run the same command again to continue")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except LatentRagError as error:
        for note in getattr(error, "__notes__", ()):
            say(note)
        raise


def load_encoder(options: PassageEncoderOptions) -> PassageEncoder:
    """The passage encoder that options name, with the prompt and dimension that they give it."""
    return assemble.load_passage_encoder(options.source, device=options.device, encoding=options.of_encoder)


def add(
    memory: MemoryPath,
    files: Files,
    *,
    encoder: PassageEncoderOptions,
    reading: ReadingOptions,
    words: Words = 100,
    upsert: Annotated[
        bool,
        typer.Option("--upsert", help="Replace what the memory has of these documents."),
    ] = False,
    report: arg.FileOfReport = None,
    strict: arg.Strict = False,
    as_json: arg.AsJson = False,
) -> None:
    """Split files into passages, encode them, and commit them to a memory, which is made if it is not there.

    Every --commit-every passages become a version. Interrupted or killed, the same command goes on after its last
    commit: passages that the memory has already, word for word, are not encoded again. A memory keeps to the encoder
    that it began with. Files in a folder that cannot be read are skipped and listed at the end.
    """
    from latentrag.memory import Memory
    from latentrag.memory import add as add_to
    from latentrag.memory.version_files import is_free

    path = memory_path(memory)
    of_files = FileReport()
    if report is not None:
        of_files.write_first(report)  # what cannot be written shows before a model is loaded

    @cache
    def loaded() -> PassageEncoder:
        found = load_encoder(encoder)
        if not is_free(path):
            Memory.open(path).card.check_passage_encoder(found)
        return found

    # The files are looked up here, so that a misspelt name is found before a model is loaded.
    found = of_files.passages(files, loaded, words=words, reading=reading)
    with of_files.told_of(found, report), resumable():
        done = add_to(
            path,
            found,
            loaded,
            upsert=upsert,
            passages_per_commit=reading.passages_per_commit,
            progress=sys.stderr.isatty(),
        )
    after = done.memory
    if as_json:
        print_json(
            {
                "memory": str(path),
                "version": after.version,
                "added": done.added,
                "replaced": done.replaced,
                "removed": done.removed,
                "unchanged": done.unchanged,
                "passages": len(after),
                "skipped": [{"file": str(file), "reason": reason} for file, reason in of_files.skipped],
            }
        )
    else:
        replaced = f", replaced {done.replaced}" if upsert else ""
        replaced += f", removed {done.removed}" if done.removed else ""
        unchanged = f", {done.unchanged} were there already" if done.unchanged else ""
        in_all = f"{len(after)} passages in all"
        print_line(f"{path} version {after.version}: added {done.added}{replaced}{unchanged}; {in_all}")
    if strict and of_files.skipped:
        raise typer.Exit(EXIT_PROBLEMS)


def reencode(memory: MemoryPath, *, encoder: PassageEncoderOptions, as_json: arg.AsJson = False) -> None:
    """Commit a version with the vectors of another encoder, whatever their dimension.

    Texts and ids stay. Earlier versions keep their vectors and are asked with their encoder. Interrupted or killed, the
    same command goes on where it was, unless the memory was changed meanwhile.
    """
    before = assemble.open_memory(memory, version="newest")
    with arg.uncollected():
        loaded = load_encoder(encoder)
    is_new = loaded.fingerprint != before.card.fingerprint
    try:
        after = before.reencode(loaded, resumes=True, progress=sys.stderr.isatty()) if is_new else before
    except KeyboardInterrupt:
        say("interrupted; run the same command again to continue")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    card = after.card
    if as_json:
        record = {"version": after.version, "reencoded": len(after) if is_new else 0, "passages": len(after)}
        print_json({"memory": after.name, **record, "encoder": card.encoder, "dimension": card.dimension})
        return
    done = f"re-encoded {len(after)} passages with" if is_new else "its vectors are already of"
    print_line(f"{after.name} version {after.version}: {done} {card.encoder} ({card.dimension} dimensions)")


def log(memory: MemoryPath, as_json: arg.AsJson = False) -> None:
    """Every version of a memory, oldest first. Ask an earlier one with `latentrag ask --as-of VERSION`."""
    newest = assemble.open_memory(memory, version="newest")
    path, versions = newest.name, newest.log()
    named = newest.tags()
    served = named.pop("served", versions[-1].number)
    say_advice(newest)
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
        print_json({"memory": path, "versions": rows})
        return
    from latentrag.cli.render import show_rows, terminal

    rows_shown = []
    for v in versions:
        names = [*of_version[v.number], *(["(served)"] if v.number == served else [])]
        time = f"{v.time:%Y-%m-%d %H:%M:%S}"
        rows_shown.append((str(v.number), time, str(v.num_passages), ", ".join(names), v.change))
    show_rows(["version", "time (UTC)", "passages", "tags", "change"], rows_shown, terminal())


def say_advice(memory: Memory) -> None:
    """Suggest what makes the memory smaller and quicker, where it is worth it."""
    from latentrag.memory.upkeep import advice

    if what := advice(memory.table):
        say(f"note: {what}")


def listed_versions(numbers: Sequence[int]) -> str:
    """In words, runs of three or more as first–last."""
    if not numbers:
        return "no version"
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = (f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return f"version{'s' if len(numbers) > 1 else ''} {', '.join(parts)}"


def delete(
    memory: MemoryPath,
    ids: Annotated[list[str], typer.Argument(help="Ids of passages, as the sources of an answer show them.")],
    as_json: arg.AsJson = False,
) -> None:
    """Commit a version without these passages. Earlier versions keep them; `index forget` leaves none."""
    for each in ids:
        arg.check_text(each, "id")
    before = assemble.open_memory(memory, version="newest")
    after = before.delete(ids)
    deleted = len(before) - len(after)
    if as_json:
        record = {"version": after.version, "deleted": deleted, "passages": len(after)}
        print_json({"memory": after.name, **record})
        return
    print_line(f"{after.name} version {after.version}: deleted {deleted}; {len(after)} passages left")


def build(
    memory: MemoryPath,
    kind: Annotated[
        str,
        typer.Option(
            "--index",
            metavar="KIND",
            help="flat: exact, all vectors in RAM; ivf-rabitq: 1 bit a number in RAM; auto: by the number of passages; "
            "words: for --retriever bm25 and hybrid.",
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
    have changed. The index flat needs no files and removes those of the others. The index words is made by the first
    search that needs it, a file of passages at a time; later versions only add their new passages to it.
    """
    if kind in {"flat", WORDS} and max_memory is not None:
        raise InputError(f"--max-memory has no effect on the index {kind}; leave it out")
    bound = None if max_memory is None else size_in_bytes(max_memory, "--max-memory")
    opened = assemble.open_memory(memory)
    if kind == WORDS:
        _build_words(opened, as_json=as_json)
        return
    made = opened.build_index(kind, max_memory=bound, progress=sys.stderr.isatty())
    if as_json:
        print_json({"memory": opened.name, **asdict(made)})
        return
    print_line(
        f"{opened.name} version {made.version}: {made.kind} of {made.num_passages} passages in {made.wall_s:.1f} s; "
        f"{made.ram_bytes / 1e6:.1f} MB in memory, {made.disk_bytes / 1e6:.1f} MB on disk; "
        f"finds {made.recall:.1%} of the five best"
        + (f", searched {made.effort:g} times as far as usual" if made.effort > 1 else "")
    )


def _build_words(opened: Memory, *, as_json: bool) -> None:
    made = opened.build_words(progress=sys.stderr.isatty())
    if as_json:
        print_json({"memory": opened.name, "kind": WORDS, **made._asdict()})
        return
    print_line(
        f"{opened.name} version {made.version}: words of {made.num_passages} passages in {made.wall_s:.1f} s; "
        f"{made.disk_bytes / 1e6:.1f} MB on disk"
    )
