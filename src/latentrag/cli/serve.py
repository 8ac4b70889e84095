"""`latentrag serve` and `latentrag mcp`."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentrag.cli import arguments as arg
from latentrag.cli.heap import keep_memory, uncollected
from latentrag.cli.output import say, working
from latentrag.config import DEMO
from latentrag.errors import InputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentrag.assemble import ModelSpec
    from latentrag.config import RetrieverKind
    from latentrag.memory import LiveMemory
    from latentrag.rag import Rag


def serve(
    memory: arg.MemoryName = DEMO,
    model: arg.ModelName = None,
    encoder: arg.EncoderName = None,
    generator: arg.GeneratorName = None,
    passage_encoder: arg.PassageEncoderName = None,
    retriever: arg.RetrieverName = None,
    k: arg.NumPassages = None,
    variant: arg.VariantName = None,
    as_of: arg.AsOf = None,
    dtype: arg.DtypeName = "auto",
    host: Annotated[str, typer.Option(help="Address to listen at; any but this machine's own needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="API keys, one a line; or one in the variable LATENTRAG_API_KEY.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests a second of each client; default: 10 where a key is needed, else no limit."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Questions decoded together.")] = 16,
    queue: Annotated[int, typer.Option(help="Requests that may wait.")] = 256,
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="How long one may wait.")] = 60,
    passage_cache: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="What may be kept in memory of passages that the generator has read, 3.5 MB each for the demo's.",
        ),
    ] = "1GiB",
    passage_cache_folder: Annotated[
        Path | None, typer.Option(help="Keeps all of them on disk, too, for the server's next start.")
    ] = None,
    log_questions: Annotated[
        bool, typer.Option("--log-questions", help="Questions are logged, too, not only that there was one.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log no requests.")] = False,
) -> None:
    """Answer over HTTP: a JSON API, streams, and what OpenAI's clients speak. Ends with what it has accepted."""
    keep_memory()
    _require("serve", "fastapi", "uvicorn")
    from latentrag.serving.options import ServeOptions
    from latentrag.serving.run import access_to, address, bound, limited, run

    options = ServeOptions(max_batch=batch, max_queue=queue, max_wait_s=wait, rate=rate, log_questions=log_questions)
    access = access_to(host, key_file=api_key_file)
    source = arg.model_source(model, encoder=encoder, generator=generator, passage_encoder=passage_encoder)
    kept = arg.size_in_bytes(passage_cache, "--passage-cache")
    folder = None if passage_cache_folder is None else passage_cache_folder.expanduser()
    with bound(host, port) as listening:
        with uncollected():
            live, load = _sources(source, memory, version=as_of, retriever=retriever, k=k, variant=variant, dtype=dtype)
            load = partial(load, passage_cache_bytes=kept, passage_cache_folder=folder)
            rag = _opened(live, load)
            from latentrag.serving.app import create_app

        name = _name(source)
        app = create_app(rag, live, name=name, load=load, options=limited(options, host), access=access)
        _log(quiet=quiet)
        listening.listen()  # whoever reads the next line can connect
        say(f"serving {name} over {Path(live.name).name} version {live.version} at {address(listening)}")
        run(app, listening, options)


def mcp(
    memory: arg.MemoryName = DEMO,
    model: arg.ModelName = None,
    encoder: arg.EncoderName = None,
    generator: arg.GeneratorName = None,
    passage_encoder: arg.PassageEncoderName = None,
    retriever: arg.RetrieverName = None,
    k: arg.NumPassages = None,
    variant: arg.VariantName = None,
    as_of: arg.AsOf = None,
    dtype: arg.DtypeName = "auto",
) -> None:
    """Offer ask and search to a program that speaks the Model Context Protocol, over standard input and output."""
    _require("mcp", "mcp")
    source = arg.model_source(model, encoder=encoder, generator=generator, passage_encoder=passage_encoder)
    with uncollected():
        live, load = _sources(source, memory, version=as_of, retriever=retriever, k=k, variant=variant, dtype=dtype)
        rag = _opened(live, load)
    from latentrag.serving.tools import run

    run(rag, live)


def _sources(
    source: str | ModelSpec,
    memory: str,
    *,
    version: str | None,
    retriever: RetrieverKind | None,
    k: int | None,
    variant: str | None,
    dtype: str,
) -> tuple[LiveMemory, Callable[..., Rag]]:
    """The memory, and what loads the model over it."""
    from latentrag.assemble import live_memory, load
    from latentrag.model import checked

    chosen = None if variant is None else checked(variant)
    if k is not None and k < 1:
        raise InputError(f"k={k} passages cannot be retrieved; choose 1 or more")
    live = live_memory(memory, version=version)
    return live, partial(load, source, memory=live, retriever=retriever, k=k, variant=chosen, dtype=dtype)


def _opened(live: LiveMemory, load: Callable[[], Rag]) -> Rag:
    """Model and memory, both ready to answer at once."""
    with working("loading the model and its memory"):
        rag = load()
        live.snapshot().warm_up()
    return rag


def _name(source: str | ModelSpec) -> str:
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
    from importlib.util import find_spec

    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        raise ModelError(f"this needs {' and '.join(absent)}; run `pip install 'latentrag[{extra}]'`")
