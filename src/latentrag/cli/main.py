"""The entry point: which commands there are, and how a run ends.

Exit codes: 0 done; 2 the user can mend it (one line on standard error, or the usage); 1 a bug (with its
traceback), or a check that found something wrong; 130 interrupted; 141 nobody reads the output any more.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from latentrag.cli import cluster, output, streams
from latentrag.cli.arguments import command
from latentrag.cli.ask import ask, classify, demo
from latentrag.cli.calibrate import calibrate
from latentrag.cli.chat import chat
from latentrag.cli.doctor import doctor
from latentrag.cli.evaluate import compare, evaluate
from latentrag.cli.exchange import pull, push
from latentrag.cli.export import export
from latentrag.cli.fit_prior import fit_prior
from latentrag.cli.importing import import_
from latentrag.cli.index import add, build, delete, log, reencode
from latentrag.cli.preview import preview
from latentrag.cli.questions import make_questions
from latentrag.cli.reproduce import reproduce
from latentrag.cli.score import score
from latentrag.cli.serve import mcp, serve
from latentrag.cli.sync import sync
from latentrag.cli.train import train
from latentrag.cli.upkeep import compact, forget, prune, repair, verify
from latentrag.cli.versions import diff, tag, use
from latentrag.errors import InputError, LatentRagError, OutputError

EXIT_BROKEN_PIPE = 141
_UNCUT = 10_000
_LESS_MEMORY = "lower -k or --beams, in training --micro-batch-size; or choose --dtype bfloat16 or another --device"


COLLECTED = (100_000, 20, 100)
"""New objects after which Python looks for cycles, and how many of these looks go deeper. Libraries and tokenizers
make a million objects that stay: with the usual 700 a cold ``ask`` spends a second on them, and two more at its end."""


def run() -> None:
    """What the command ``latentrag`` calls."""
    streams.prepare()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its log would mix with our messages
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # accelerate imports it wherever it is installed
    gc.set_threshold(*COLLECTED)
    try:
        try:
            app()(prog_name="latentrag")
        finally:
            gc.freeze()  # nor are they looked through at the end
            sys.stdout.flush()
    # Of what is written before and after a command: help, the version.
    except OutputError as error:
        output.say(f"error: {error}")
        sys.exit(output.EXIT_USER)
    except BrokenPipeError:
        output.silence()
        sys.exit(EXIT_BROKEN_PIPE)


def app() -> typer.Typer:
    """The commands. None of them imports anything heavy before it runs."""
    settings = {"help_option_names": ["-h", "--help"]}
    make = partial(typer.Typer, no_args_is_help=True, rich_markup_mode=None, context_settings=settings)
    of_questions: tuple[Callable[..., None], ...] = (demo, ask, chat, score, classify)
    of_memories: tuple[Callable[..., None], ...] = (
        *(add, preview, sync, delete, forget, reencode),
        *(log, diff, tag, use),
        *(push, pull),
        *(build, prune, compact, verify, repair),
    )
    commands = make(cls=_Commands, pretty_exceptions_enable=False)
    commands.callback()(_top)
    for function in of_questions:
        commands.command()(command(function))
    index = make(cls=_Group, help="Make memories, change them, go through their versions, keep them whole.")
    for function in of_memories:
        index.command()(command(function))
    index.command("import")(command(import_))
    commands.add_typer(index, name="index")
    on_ray = make(cls=_Group, help="Encode and search with several machines, on a Ray cluster.")
    for function in (cluster.build, cluster.up, cluster.use, cluster.status, cluster.down):
        on_ray.command()(command(function))
    commands.add_typer(on_ray, name="cluster")
    commands.command("eval")(command(evaluate))
    for function in (serve, mcp, make_questions, train, fit_prior, calibrate, export, compare, reproduce, doctor):
        commands.command()(command(function))
    commands.command("help")(_help)
    return commands


class _Group(TyperGroup):
    """Commands, whose list says what each one does in whole sentences, however wide the terminal."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, each.get_short_help_str(_UNCUT)) for name, each in found if each is not None and not each.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class _Commands(_Group):
    """The commands, with our way of ending."""

    def invoke(self, ctx: Any) -> object:
        output.lenient_streams()
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except LatentRagError as error:
            output.say(f"error: {output.message_of(error)}")
            raise typer.Exit(output.EXIT_USER) from error
        except RuntimeError as error:
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            first = ". ".join(" ".join(str(error).split()).split(". ")[:2]).removesuffix(".")
            output.say(f"error: {first}; {_LESS_MEMORY}")
            raise typer.Exit(output.EXIT_USER) from error
        except FileNotFoundError:
            if _has_temporary_folder():
                raise
            output.say(
                "error: no folder for temporary files can be written, and libraries need one; set TMPDIR to one that "
                "can be, for example a tmpfs"
            )
            raise typer.Exit(output.EXIT_USER) from None
        except KeyboardInterrupt:
            output.say("interrupted")
            raise typer.Exit(output.EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            output.silence()
            raise typer.Exit(EXIT_BROKEN_PIPE) from None


def _has_temporary_folder() -> bool:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return False
    return True


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        output.print_line(f"latentrag {version('latentrag')}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version.")
    ] = False,
) -> None:
    """Retrieval-augmented generation with the passages as a latent variable."""


def _help(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]...", show_default=False)] = None,
) -> None:
    """Show what a command does, and its options; without one, all commands."""
    context: Any = ctx.find_root()
    for word in words or []:
        find = getattr(context.command, "get_command", None)
        found = None if find is None else find(context, word)
        if found is None:
            raise InputError(f"no command {' '.join(words or [])!r}; `latentrag help` lists them")
        context = type(context)(found, info_name=word, parent=context)
    sys.stdout.write(context.get_help() + "\n")


def _show_warning(message: Warning | str, *_where: object, **_rest: object) -> None:
    """One line, without the place in the code."""
    output.say(f"warning: {message}")
