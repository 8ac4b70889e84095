"""`latentrag index`: what differs between versions, which have names, which is served."""

from __future__ import annotations

from typing import Annotated

import typer

from latentrag.addresses import memory_path
from latentrag.cli import arguments as arg
from latentrag.cli.index import MemoryPath
from latentrag.cli.output import print_json, print_line
from latentrag.errors import InputError

VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="A number, a tag, a date, or newest.")]


def diff(
    memory: MemoryPath,
    before: Annotated[str, typer.Argument(metavar="A", help="A version: a number, a tag, a date, newest or served.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another, older or newer.")],
    as_json: arg.AsJson = False,
) -> None:
    """What leads from version A to version B: ids of added, changed and removed passages."""
    from latentrag.memory import Memory

    path = memory_path(memory)
    a, b = (Memory.open(path, version=name) for name in (before, after))
    found = a.diff(b)
    encoders = {"from": a.card.encoder, "to": b.card.encoder}
    if as_json:
        changes = {"added": found.added, "changed": found.changed, "removed": found.removed}
        print_json(
            {"memory": str(path), "from": a.version, "to": b.version, **changes, "reencoded": found.reencoded}
            | {"encoders": encoders}
        )
        return
    for sign, ids in (("+", found.added), ("~", found.changed), ("-", found.removed)):
        for key in ids:
            print_line(f"{sign} {key}")
    vectors = f"; vectors by {encoders['to']} instead of {encoders['from']}" if found.reencoded else ""
    counts = f"{len(found.added)} added, {len(found.changed)} changed, {len(found.removed)} removed"
    print_line(f"{path} version {a.version} to {b.version}: {counts}{vectors}")


def tag(
    memory: MemoryPath,
    name: Annotated[str | None, typer.Argument(help="The name. Without it: list the tags.")] = None,
    version: Annotated[str | None, typer.Argument(help="A number, a tag or a date. Default: the newest.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the name away.")] = False,
    as_json: arg.AsJson = False,
) -> None:
    """Give a version a name, list the names, or take one away. A version with a name is never pruned."""
    from latentrag.memory import Memory

    path = memory_path(memory)
    newest = Memory.open(path)
    if remove and (name is None or version is not None):
        raise InputError("--remove takes one name and no version; give the name")
    if name is None:
        named = newest.tags()
        if as_json:
            print_json({"memory": str(path), "tags": named})
        for each, number in () if as_json else named.items():
            print_line(f"{each} {number}")
        return
    if remove:
        number = newest.untag(name)
    else:
        number = newest.at(version).version
        newest.tag(name, number)
    if as_json:
        print_json({"memory": str(path), "tag": name, "version": number, "removed": remove})
        return
    print_line(f"{path} version {number} is {'no longer' if remove else 'now'} named {name}")


def use(memory: MemoryPath, version: VersionName, as_json: arg.AsJson = False) -> None:
    """Choose the version that is asked by default; `newest` undoes it, and new versions are served at once again.

    The choice is kept in the memory as the tag `served`. It changes no passage: `index add` and the like go on from the
    newest version.
    """
    from latentrag.memory import Memory

    path = memory_path(memory)
    chosen = Memory.open(path, version=version)
    number = chosen.number_of(version)
    chosen.serve(number)
    if as_json:
        print_json({"memory": str(path), "served": chosen.version, "follows_newest": number is None})
        return
    follows = ", the newest, as every later one will be" if number is None else ""
    print_line(f"{path} version {chosen.version} is served{follows}; {len(chosen)} passages")
