"""`latentrag serve` and `latentrag mcp`."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from latentrag import assemble
from latentrag.addresses import memory_for
from latentrag.cli import arguments as arg
from latentrag.cli.output import say, working
from latentrag.conditions import condition_of
from latentrag.errors import InputError, ModelError
from latentrag.options import (
    AskOptions,
    SystemOptions,
    size_in_bytes,
)
from latentrag.serving.options import ServeOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentrag.conditions import Condition
    from latentrag.memory import ServedMemory
    from latentrag.protocols import Memory
    from latentrag.rag import Rag
    from latentrag.serving.guard import Access

M = TypeVar("M", bound="Memory")


def serve(
    system: SystemOptions,
    how: AskOptions,
    limits: ServeOptions,
    host: Annotated[str, typer.Option(help="Address to listen at; any but this machine's own needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File of API keys, one a line; after a key its rights: where=CONDITION, which hides all other "
            "passages from it, and write. Default: the variable LATENTRAG_API_KEY."
        ),
    ] = None,
    passage_cache: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Size of the memory (see --passage-cache-in) for passages that the generator has read, 3.5 MB a "
            "passage with the demo's model. Default: 1GiB.",
        ),
    ] = None,
    passage_cache_folder: Annotated[
        Path | None, typer.Option(help="Folder that keeps them on disk too, for the server's next start.")
    ] = None,
    passage_cache_folder_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Largest size of that folder; passages used longest ago are deleted. Default: 20GiB.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log no requests.")] = False,
) -> None:
    """Answer over HTTP: a JSON API, streams, and the interface of OpenAI's clients.

    Ctrl-C, SIGTERM or SIGHUP finishes accepted requests before exiting.
    """
    _require("serve", "fastapi", "uvicorn", "python_multipart")
    from latentrag.serving.feedback import check as check_feedback
    from latentrag.serving.run import access_to, address, bound, limited, run

    access = access_to(host, key_file=api_key_file, hosts=limits.hosts, allow_writes=limits.allow_writes)
    if quiet and limits.log_questions:
        raise InputError("--log-questions has no effect, since --quiet logs no requests; leave one of them out")
    if passage_cache_folder is None and passage_cache_folder_size is not None:
        raise InputError("--passage-cache-folder-size has no effect without --passage-cache-folder; leave it out")
    if limits.feedback is not None:
        check_feedback(limits.feedback)
    cache_bytes = None if passage_cache is None else size_in_bytes(passage_cache, "--passage-cache")
    folder_bytes = size_in_bytes(passage_cache_folder_size or "20GiB", "--passage-cache-folder-size")
    with bound(host, port) as listening:
        with arg.uncollected():
            live, load = _sources(system, how, assemble.served_memory)
            load = partial(
                load,
                passage_cache_bytes=cache_bytes,
                passage_cache_folder=passage_cache_folder,
                passage_cache_folder_bytes=folder_bytes,
            )
            rag = _opened(live, load)
            from latentrag.serving.app import create_app

        name = _name(arg.model_source(system.model))
        device = system.place.encoder_device or system.place.device
        encoder = partial(assemble.load_passage_encoder, arg.model_source(system.model), device=device)
        app = create_app(
            rag,
            live,
            name=name,
            load=load,
            load_passage_encoder=encoder,
            options=limited(limits, host),
            access=access,
            where=_checked(system.which.where, access, live),
        )
        _log(quiet=quiet)
        listening.listen()  # whoever reads the next line can connect
        say(f"serving {name} over {Path(live.name).name} version {live.version} at {address(listening)}")
        run(app, listening, limits)


def mcp(
    system: SystemOptions,
    how: AskOptions,
) -> None:
    """Offer ask and search to a program that speaks the Model Context Protocol, over standard input and output."""
    _require("mcp", "mcp")
    arg.refuse_rewrites(system.model, "mcp")
    arg.model_source(system.model)  # what is wrong with the options is said at once
    from latentrag.serving.tools import run

    def load() -> Rag:
        with arg.uncollected():
            memory, load_over = _sources(system, how, assemble.memory_at)
            rag = load_over(where=system.which.where)
            warm_up = getattr(memory.snapshot(), "warm_up", None)  # those of other packages need not have it
            if warm_up is not None:
                warm_up()
            return rag

    run(load, on_error=lambda message: say(f"error: {message}"))


def _sources(system: SystemOptions, how: AskOptions, opens: Callable[..., M]) -> tuple[M, Callable[..., Rag]]:
    """The memory, and what loads the model over it."""
    source = arg.model_source(system.model)
    address = memory_for(system.memory.memory, system.model.model)
    memory = opens(address, version=system.version.as_of)
    given = {**arg.loading(system.model), **asdict(how), **asdict(system.place)}
    return memory, partial(assemble.load, source, memory=memory, **given)


def _checked(where: str | None, access: Access, live: ServedMemory) -> Condition | None:
    """The condition on all answers. Raises: InputError for one that cannot be. Warns of keys that see nothing."""
    for number, rights in enumerate(access.rights.values(), 1):
        if rights.where is not None and not len(live.only(rights.where)):
            say(f"warning: API key {number} sees no passage now: none satisfies {rights.where}")
    if where is None:
        return None
    assemble.some_of(live, where)
    return condition_of(where)


def _opened(live: ServedMemory, load: Callable[[], Rag]) -> Rag:
    """Model and memory, both ready to answer at once."""
    with working("loading the model and its memory"):
        rag = load()
        live.snapshot().warm_up(words=getattr(rag.retriever, "searches_words", False))
    return rag


def _name(source: str | assemble.ModelSpec) -> str:
    """What clients call the model: the last part of a folder or hub id, of the generator where there are parts."""
    return Path(source if isinstance(source, str) else source.generator).resolve().name


def _log(*, quiet: bool) -> None:
    """One line a request on standard error."""
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("latentrag.serving")
    logger.addHandler(shown)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False


def _require(extra: str, *modules: str) -> None:
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if absent:
        raise ModelError(f"this needs {' and '.join(absent)}; run `pip install 'latentrag[{extra}]'`")
