"""`latentrag cluster`: memories that the nodes of a Ray cluster encode and search together."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentrag.addresses import memory_folder
from latentrag.cli import arguments as arg
from latentrag.cli.index import MemoryPath, load_encoder
from latentrag.cli.output import EXIT_INTERRUPTED, EXIT_PROBLEMS, print_json, print_line, say
from latentrag.cli.preview import FileReport, Files, Words
from latentrag.errors import InputError
from latentrag.options import FileOptions, PassageEncoderOptions

if TYPE_CHECKING:
    from latentrag.cluster import Built, ShardedMemory
    from latentrag.protocols import PassageEncoder

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the memory in the cluster.")]


def build(
    memory: MemoryPath,
    files: Files,
    *,
    encoder: PassageEncoderOptions,
    reading: FileOptions,
    words: Words = 100,
    actors: Annotated[int, typer.Option(metavar="N", help="Encode with so many processes, each with one CPU.")] = 1,
    gpus: Annotated[
        int | None,
        typer.Option(metavar="N", help="In place of --actors: so many processes, each with one GPU. Default: none."),
    ] = None,
    report: arg.FileOfReport = None,
    strict: arg.Strict = False,
    as_json: arg.AsJson = False,
) -> None:
    """Split files into passages, have the nodes of the running Ray cluster encode them, and commit one version.

    The rows are those of `index add`. This process reads the files; every node has to see the memory's folder, and the
    encoder's, under the same path. Interrupted or killed, the same command goes on: it reads the files again and
    encodes what no process has encoded, 8,192 passages at a time.
    """
    from latentrag.cluster import add

    if gpus is not None and actors != 1:
        raise InputError("got both --actors and --gpus; give one of them")
    if gpus is not None and gpus < 1:
        raise InputError(f"--gpus {gpus}; needed 1 or more")
    path, of_files = memory_folder(memory), FileReport()
    if report is not None:
        of_files.write_first(report)

    @cache
    def loaded() -> PassageEncoder:
        # Beside actors that have the GPUs this process counts tokens alone.
        return load_encoder(encoder if gpus is None else replace(encoder, device="cpu"))

    found = of_files.passages(files, loaded, words=words, reading=reading)
    try:
        with of_files.told_of(found, report):
            done = add(
                path,
                found,
                loaded,
                source=_absolute(encoder.source),
                options=encoder.of_encoder,
                device=encoder.device,
                actors=gpus or actors,
                gpus_per_actor=0 if gpus is None else 1,
                progress=sys.stderr.isatty(),
            )
    except KeyboardInterrupt:
        say("interrupted; run the same command again to continue")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _show_built(done, of_files, as_json=as_json)
    if strict and of_files.skipped:
        raise typer.Exit(EXIT_PROBLEMS)


def _show_built(done: Built, of_files: FileReport, *, as_json: bool) -> None:
    after = done.memory
    if as_json:
        skipped = [{"file": str(file), "reason": reason} for file, reason in of_files.skipped]
        counts = {"added": done.added, "resumed": done.resumed, "passages": len(after), "skipped": skipped}
        print_json({"memory": after.name, "version": after.version, **counts})
        return
    resumed = f", {done.resumed} of them encoded before" if done.resumed else ""
    print_line(f"{after.name} version {after.version}: added {done.added}{resumed}; {len(after)} passages in all")


def _absolute(source: str) -> str:
    """A folder as other processes find it."""
    return str(Path(source).absolute()) if Path(source).is_dir() else source


def up(
    memory: MemoryPath,
    name: Annotated[
        str | None, typer.Option(help="Name in the cluster. Default: the folder's, without its ending.")
    ] = None,
    shards: Annotated[int, typer.Option(metavar="N", help="Divide the passages among so many actors.")] = 1,
    replicas: Annotated[int, typer.Option(metavar="N", help="So many actors hold the same passages.")] = 1,
    version: Annotated[
        str, typer.Option("--as-of", metavar="VERSION", help="A number, a tag, a date, newest or served.")
    ] = "served",
    index: Annotated[str, typer.Option(metavar="KIND", help="Of each shard: flat, ivf-rabitq or auto.")] = "auto",
    index_folder: Annotated[
        Path | None,
        typer.Option(help="Folder for the shards' indexes on each node's own disk. Default: in LATENTRAG_HOME."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long a shard may take to answer before a replica is asked.")
    ] = 2.0,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Answer without a shard that does not answer, and say so. Default: an error."),
    ] = False,
    as_json: arg.AsJson = False,
) -> None:
    """Load a memory into the running Ray cluster, divided among actors; ask it as `-i cluster:NAME`.

    Every node has to see the memory's folder under the same path. The cluster is the one that RAY_ADDRESS names, else
    the one that runs on this machine (`ray start --head`). The actors stay until `cluster down`.
    """
    from latentrag.cluster import ShardedMemory

    started = ShardedMemory.start(
        memory_folder(memory),
        name=name,
        shards=shards,
        replicas=replicas,
        version=version,
        index=index,
        index_folder=index_folder,
        timeout_s=timeout,
        partial=partial,
    )
    _show(started, "up", as_json=as_json)


def use(
    name: Name,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A number, a tag, a date, newest or served.")],
    as_json: arg.AsJson = False,
) -> None:
    """Answer from another version from now on, in every process that asks the memory.

    The shards load it first; until then the old one is served, and if anything fails.
    """
    from latentrag.cluster import ShardedMemory

    memory = ShardedMemory.open(name)
    memory.use(version)
    _show(memory, "served", as_json=as_json)


def _show(memory: ShardedMemory, word: str, *, as_json: bool) -> None:
    now, settings = memory.snapshot(), memory.settings
    if as_json:
        print_json(
            {
                "name": settings.name,
                "memory": settings.path,
                "version": now.version,
                "passages": len(now),
                "shards": list(now.division.rows),
                "replicas": settings.replicas,
            }
        )
        return
    rows = ", ".join(map(str, now.division.rows))
    print_line(
        f"{now.name} version {now.version} is {word}: {len(now)} passages in {settings.shards} shards ({rows}), "
        f"replicas {settings.replicas}"
    )


def status(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Name of the memory. Without it: list the names.")
    ] = None,
    as_json: arg.AsJson = False,
) -> None:
    """Show where each replica of each shard runs. Ends with exit code 1 if one does not answer or loads."""
    from latentrag.cluster import ShardedMemory, names

    if name is None:
        known = names()
        if as_json:
            print_json({"memories": known})
        else:
            for known_name in known:
                print_line(known_name)
        return
    memory = ShardedMemory.open(name)
    now, replicas = memory.snapshot(), memory.status()
    if as_json:
        rows = [asdict(each) for each in replicas]
        print_json({"name": name, "memory": memory.settings.path, "version": now.version, "replicas": rows})
    else:
        print_line(f"{now.name} version {now.version}: {len(now)} passages of {memory.settings.path}")
        for each in replicas:
            where = f"on {each.host}, " if each.is_there else ""
            state = "no answer" if not each.is_there else "loads" if each.rows is None else f"{each.rows} passages"
            print_line(f"shard {each.shard} replica {each.replica}: {where}{state}")
    if any(each.rows is None for each in replicas):
        raise typer.Exit(EXIT_PROBLEMS)


def down(name: Name, as_json: arg.AsJson = False) -> None:
    """End a memory's actors. The memory stays as it is, and the shards' indexes stay on the nodes' disks."""
    from latentrag.cluster import stop

    stop(name)
    if as_json:
        print_json({"name": name})
        return
    print_line(f"cluster:{name} is down")
