"""`latentrag index`: keep a memory small and whole, and forget passages for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentrag.addresses import memory_path
from latentrag.cli import arguments as arg
from latentrag.cli.index import MemoryPath, listed_versions
from latentrag.cli.output import EXIT_PROBLEMS, print_json, print_line, say
from latentrag.errors import InputError
from latentrag.options import MemoryOptions, ModelOptions, SystemOptions, VersionOptions
from latentrag.types import KEPT_ATTRIBUTES

if TYPE_CHECKING:
    from latentrag.memory.object_path import Folder
    from latentrag.memory.repair import Repaired
    from latentrag.memory.upkeep import Forgotten
    from latentrag.memory.verify import Report
    from latentrag.rag import Rag
    from latentrag.types import Passage

SHOWN_IDS = 20
WORDS_SCORED = 32
"""So many of a passage's words are asked of the generator without the passage."""


def prune(
    memory: MemoryPath,
    keep: Annotated[int | None, typer.Option(help="Keep so many of the newest versions.")] = None,
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Remove versions that were committed earlier.")
    ] = None,
    as_json: arg.AsJson = False,
) -> None:
    """Remove old versions for good and free their room on the disk.

    The newest version, the served one and all with a tag stay.
    """
    from latentrag.memory import upkeep

    path = memory_path(memory)
    if (keep is None) == (older_than is None):
        raise InputError("got both or neither of --keep and --older-than; give one of them")
    done = upkeep.prune(path, keep=keep, older_than_days=older_than)
    if as_json:
        print_json({"memory": str(path), **asdict(done)})
        return
    kept = f"; kept {listed_versions(done.kept)}, which have a name" if done.kept else ""
    print_line(f"{path}: removed {listed_versions(done.removed)}, {_megabytes(done.freed_bytes)} freed{kept}")


def compact(memory: MemoryPath, as_json: arg.AsJson = False) -> None:
    """Commit a version with the same passages in fewer files, and without the room of deleted ones.

    Older versions keep their files until `index prune`.
    """
    from latentrag.memory import upkeep

    path = memory_path(memory)
    done = upkeep.compact(path)
    if as_json:
        print_json({"memory": str(path), **asdict(done)})
        return
    changed = f"{done.files_before} files are now {done.files_after}" if done.changed else "nothing to compact"
    print_line(f"{path} version {done.version}: {changed}")


def forget(
    memory: MemoryPath,
    ids: Annotated[list[str], typer.Argument(help="Ids of passages, in whichever version they are.")],
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help="Also show how probable its generator finds them without the memory."),
    ] = None,
    as_json: arg.AsJson = False,
) -> None:
    """Delete passages, then every older version and every file that holds them. This cannot be undone.

    An older version goes if one of its files holds a passage, with its tags and with whatever only it had. What stays
    is written anew, the indexes are removed, and all files are searched for the texts at the end. A passage that came
    by `index sync` comes back with the next one unless its file goes too; such files are named.
    """
    from latentrag.memory import Memory
    from latentrag.memory.upkeep import forget as forget_ids

    for each in ids:
        arg.check_text(each, "id")
    path = memory_path(memory)
    local = Memory.open(path).local
    newest = SystemOptions(MemoryOptions(memory), VersionOptions("newest"), model=ModelOptions(model))
    rag = None if model is None else arg.open_rag(newest)
    done = forget_ids(path, ids)
    known = [] if rag is None else _closed_book(rag, done.passages)
    reminder = (
        "the memory no longer holds these passages; a generator that was trained on them still does, "
        "deleting a passage does not unlearn parameters"
    )
    returning = _returning(local, done.passages)
    if as_json:
        kept = [{name: getattr(passage, name) for name in KEPT_ATTRIBUTES} for passage in done.passages]
        record = asdict(done) | {"forgotten": kept}
        del record["passages"]
        print_json({"memory": str(path), **record, "returning": returning, "closed_book": known, "note": reminder})
    else:
        _show_forgotten(path, done, known)
        for origin in returning:
            say(
                f"{_listed(origin['ids'])} came by sync and comes back with the next one unless its file goes too: "
                f"{origin['file'] or origin['origin']}"
            )
        say(reminder)
    if done.left:
        raise typer.Exit(EXIT_PROBLEMS)


def _show_forgotten(path: Folder, done: Forgotten, known: list[dict[str, Any]]) -> None:
    for passage in done.passages:
        print_line(f"- {passage.id}: {passage.text}")
    names = f" with the tags {', '.join(done.tags)}" if done.tags else ""
    dropped = f"removed {listed_versions(done.dropped)}{names}, which shared files with them"
    print_line(f"{path} version {done.version}: forgot {len(done.passages)}; {dropped}; {_megabytes(done.freed_bytes)}")
    for key, others in done.same_text.items():
        print_line(f"the text of {key} is also in {_listed(others)}, which stays")
    for each in known:
        print_line(f"closed book, the generator gives {each['id']} {each['log_prob']:.2f} nats")
    for name in done.left:
        say(f"warning: {name} still holds a text; remove that file or report this")


def _returning(local: Path, passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """What the next sync would bring back: origins, their files where that is known, and the ids that came from there.

    A file that is gone brings nothing back.
    """
    from latentrag.sync.journal import files_of

    ids: dict[str, dict[str, None]] = {}
    for passage in passages:
        if passage.origin:
            ids.setdefault(passage.origin, {})[passage.id] = None
    return [
        {"origin": origin, "file": None if file is None else str(file), "ids": list(ids[origin])}
        for origin, file in files_of(local, ids).items()
        if file is None or file.exists()
    ]


def _closed_book(rag: Rag, passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """log p_θ(the second half of a passage | its title and first half), without any passage, for each."""
    import torch

    rows: list[dict[str, Any]] = []
    for passage in passages:
        words = passage.text.split()
        half = len(words) // 2
        x, y = " ".join([passage.title, *words[:half]]).strip(), " ".join(words[half : half + WORDS_SCORED])
        if not x or not y:
            continue
        targets = rag.generator.targets([y])
        with torch.no_grad():
            log_p = rag.model.closed_book_log_p([x], targets).item()
        rows.append({"id": passage.id, "x": x, "y": y, "log_prob": log_p, "num_tokens": int(targets.mask.sum())})
    return rows


def verify(
    memory: MemoryPath,
    sample: Annotated[
        int,
        typer.Option(min=0, help="Passages to search for, to measure what indexes find of what there is; 0: none."),
    ] = 200,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed for the sample. Default: 0.")] = None,
    as_json: arg.AsJson = False,
) -> None:
    """Check that a memory is as it was written: every file, every version, the newest passages, the indexes.

    An index must hold every passage of the version that is asked once and nothing else, and find 98 % of the five best
    and 95 % of the hundred best of a sample, give or take two standard errors.

    Exits with 1 if something is wrong, and says what to do.
    """
    from latentrag.memory.verify import verify as check

    path = memory_path(memory)
    if seed is not None and not sample:
        raise InputError("--seed has no effect, since --sample 0 draws nothing; leave it out")
    report = check(path, num_questions=sample, seed=seed or 0)
    if as_json:
        print_json({"memory": str(path), "whole": not report.problems, **asdict(report)})
    else:
        _show_report(path, report)
    if report.problems:
        raise typer.Exit(EXIT_PROBLEMS)


def _show_report(path: object, report: Report) -> None:
    for problem in report.problems:
        print_line(f"problem: {problem.what}; {problem.remedy}")
    for note in report.notes:
        print_line(f"note: {note}")
    for index in report.indexes:
        for recall in index.recall:
            print_line(
                f"the index {index.folder} finds {recall.share:.1%} (±{recall.standard_error:.1%}) of the {recall.k} "
                f"best passages, over {recall.num_questions} questions"
            )
    if report.num_unrecorded:
        print_line(f"note: {report.num_unrecorded} files were written without a checksum and could not be compared")
    state = "whole" if not report.problems else f"{len(report.problems)} problems"
    size = f"{report.num_files} files, {_megabytes(report.size_bytes)}"
    print_line(
        f"{path} version {report.version}: {state}; {report.num_passages} passages, "
        f"{report.num_versions} versions, {size}"
    )


def repair(memory: MemoryPath, as_json: arg.AsJson = False) -> None:
    """Give up versions with damaged files, and go on from the newest that is whole or from what is intact.

    Every file is compared with its recorded checksum. Damaged versions move to the folder `_damaged` in the memory,
    with the files that no other version needs. Nothing is deleted. If the newest version is among them and more of it
    is intact than the newest whole version has, that becomes a version of its own. Passages that are missing then
    are listed.
    """
    from latentrag.memory.repair import repair as repair_folder

    path = memory_path(memory)
    done = repair_folder(path)
    if as_json:
        print_json({"memory": str(path), **asdict(done)})
        return
    _show_missing(done)
    names = f" and their tags {', '.join(done.tags)}" if done.tags else ""
    aside = f"set aside {listed_versions(done.set_aside)}{names}" if done.set_aside else "every version is whole"
    rescued = f", {done.num_rescued} of them from older versions' files" if done.num_rescued else ""
    made = "" if done.num_rescued is None else f"; made of what is intact: {done.num_passages} passages{rescued}"
    print_line(f"{path} version {done.newest}: {aside}{made}")


def _show_missing(done: Repaired) -> None:
    for what in dict.fromkeys(done.why.values()):
        suffer = [version for version, why in done.why.items() if why == what]
        print_line(f"{listed_versions(suffer)}: {what}")
    for version in sorted(set(done.older.values())):
        ids = [key for key, number in done.older.items() if number == version]
        print_line(f"missing, an older passage of that id is in version {version}: {_some(ids)}")
    if done.lost:
        print_line(f"lost: {_some(done.lost)}")
    if done.num_unnamed:
        print_line(f"lost: {done.num_unnamed} passages whose ids cannot be read")
    if done.num_returned:
        print_line(f"{done.num_returned} passages are back that had been deleted or replaced")


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _some(ids: Sequence[str]) -> str:
    more = f", … ({len(ids)} in all, see --json)" if len(ids) > SHOWN_IDS else ""
    return _listed(sorted(ids)[:SHOWN_IDS]) + more


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
