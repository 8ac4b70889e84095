"""The HTTP API as one app: the routes, those about the memory and the server itself, errors, the guard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Body, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from latentrag.errors import LatentRagError, MemoryStoreError, UnknownVersionError
from latentrag.memory.scratch import sweep
from latentrag.serving import docs_page, documents, feedback, looking, openai_routes, page, routes, schemas
from latentrag.serving.embeddings import Encoders
from latentrag.serving.engine import Engine
from latentrag.serving.failures import Refused, unavailable
from latentrag.serving.guard import Access, Guard
from latentrag.serving.memories import Memories
from latentrag.serving.metrics import Metrics, text_of
from latentrag.serving.options import ServeOptions
from latentrag.serving.rights import Rights, require_exchange, require_unbound, rights_now
from latentrag.serving.service import ERRORS, Service, json_response, responses
from latentrag.serving.writing import Documents

if TYPE_CHECKING:
    from latentrag.conditions import Condition
    from latentrag.memory import ServedMemory
    from latentrag.protocols import PassageEncoder
    from latentrag.rag import Rag

_LOG = logging.getLogger("latentrag.serving")


def create_app(
    rag: Rag,
    live: ServedMemory,
    *,
    name: str,
    load: Callable[[], Rag] | None = None,
    load_passage_encoder: Callable[[], PassageEncoder] | None = None,
    options: ServeOptions | None = None,
    access: Access | None = None,
    where: Condition | None = None,
) -> FastAPI:
    """The API for a model over a memory that may be exchanged.

    Args:
        rag: loaded over ``live``.
        name: of the model, for OpenAI's clients.
        load: loads the model anew over ``live``, for whoever asks for that; None: nobody can.
        load_passage_encoder: for vectors of passages, where the query encoder is not one too; None: nobody gets any.
        access: who may ask; None: everybody who can reach it.
        where: a condition on the passages of every answer, beside that of the request.
    """
    options, metrics = options or ServeOptions(), Metrics()
    encoders = Encoders(load_passage_encoder)
    service = Service(name, Memories(rag, live, load, where), Engine(options, metrics), metrics, options, encoders)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(_swept, service.memories)
        with live.watched():
            yield
        service.memories.close()
        await asyncio.to_thread(service.engine.batcher.close, options.drain_s)

    app = FastAPI(
        title="latentrag",
        version=version("latentrag"),
        description="Answers with their exact probability, and with the share that each passage has in them.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        servers=[{"url": options.root_path}] if options.root_path else None,
    )
    app.state.service = service
    for router in (routes.answers, routes.others, openai_routes.router, looking.router, _model, _memory, _status):
        app.include_router(router(service))
    app.include_router(documents.router(service, Documents(service.memories, service.engine)))
    if options.feedback is not None:
        app.include_router(feedback.router(options.feedback))
    _add_errors(app, service)
    described = app.openapi()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page.page(described))

    app.include_router(page.page())

    methods = {path: frozenset(method.upper() for method in known) for path, known in described["paths"].items()}
    methods[f"/v1/models/{name}"] = methods.pop("/v1/models/{model}")
    methods |= dict.fromkeys(("/docs", "/openapi.json", *page.paths()), frozenset({"GET"}))
    app.add_middleware(
        Guard,
        options=options,
        access=access or Access(without_key=Rights(write=options.allow_writes, exchange=True)),
        metrics=metrics,
        methods=methods,
        files=page.paths(),
        uploads=frozenset({documents.PATH}),
        own_pages_only=frozenset({documents.PATH}),
    )
    return app


def _swept(memories: Memories) -> None:
    """What killed processes have left in the memory's folder is gone, where this machine sees the folder."""
    with suppress(MemoryStoreError):
        sweep(memories.stored.local)


def _model(service: Service) -> APIRouter:
    router = APIRouter(tags=["model"])

    def record() -> Response:
        rag = service.memories.rag
        loaded, device = service.memories.loaded.isoformat(), str(rag.generator.device)
        return json_response(
            {
                "name": service.name,
                "variant": rag.variant,
                "k": rag.k,
                "device": device,
                "loaded": loaded,
                "feedback": service.options.feedback is not None,
                "writes": rights_now().write,
                "exchanges": rights_now().may_exchange,
            }
        )

    @router.get("/v1/model", responses=responses(schemas.ServedModelRecord), response_model=None)
    async def model() -> Response:
        """The model that answers, and since when."""
        return record()

    load = service.memories.load
    if load is None:
        return router

    @router.post("/v1/model", responses=responses(schemas.ServedModelRecord), response_model=None)
    async def change(_asked: Annotated[schemas.Reload, Body()]) -> Response:
        """Load the model anew from its files. Requests that came before are answered by the old one, which goes
        then; for some time both are in memory."""
        require_exchange()
        try:
            await asyncio.to_thread(service.memories.exchange_model, load)
        except LatentRagError as error:
            _LOG.error("the model from before goes on: %s", error)
            message = "the model cannot be loaded, the server's log says why; the one from before goes on"
            raise Refused(409, message, "model") from error
        return record()

    return router


def _memory(service: Service) -> APIRouter:
    memories = service.memories
    comparing = asyncio.Lock()  # whoever waits here occupies no thread
    router = APIRouter(tags=["memory"])

    @router.get("/v1/memory", responses=responses(schemas.MemoryRecord), response_model=None)
    async def memory() -> Response:
        """The version that is served, all versions, their names, and synced folders."""
        return json_response(await asyncio.to_thread(memories.record))

    @router.post("/v1/memory", responses=responses(schemas.MemoryRecord), response_model=None)
    async def change(asked: Annotated[schemas.MemoryRequest, Body()]) -> Response:
        """Serve another version, or name versions. Answers under way end with the version that they began with."""
        require_exchange()
        await asyncio.to_thread(lambda: memories.stored)  # without which what is done could not be told
        if isinstance(asked, schemas.Use):
            await asyncio.to_thread(memories.use, asked.version)
        elif isinstance(asked, schemas.Tag):
            await asyncio.to_thread(memories.tag, asked.name, asked.version)
        else:
            await asyncio.to_thread(memories.untag, asked.name)
        return json_response(await asyncio.to_thread(memories.record))

    @router.get("/v1/memory/diff", responses=responses(schemas.DiffRecord), response_model=None)
    async def diff(asked: Annotated[schemas.DiffRequest, Query()]) -> Response:
        """What leads from one version to another: passages added, changed and removed. 404 where there is no such."""
        try:
            async with comparing:
                found = await asyncio.to_thread(memories.difference, asked.before, asked.after, limit=asked.limit)
        except UnknownVersionError as error:
            raise Refused(404, service.refusal(error).message, "version") from error
        return json_response(found)

    return router


def _status(service: Service) -> APIRouter:
    router = APIRouter(tags=["status"])

    @router.get("/healthz", responses=responses(schemas.StatusRecord), response_model=None)
    async def healthz() -> Response:
        """The process is alive; whether it can answer is said by `/readyz`."""
        return json_response({"status": "alive"})

    @router.get("/readyz", responses=responses(schemas.StatusRecord), response_model=None)
    async def readyz() -> Response:
        """Questions are accepted, and the memory they need is there: of one in a cluster each shard has a replica that
        holds the version that is served. Says what was seen within the last seconds, and waits for nothing."""
        if not service.engine.batcher.is_alive:
            raise Refused(503, "the server is stopping; ask another one", "stopping")
        problem = service.memories.live.health().problem
        if problem is not None:
            raise unavailable(f"{problem}; ask another server, or again in a moment")
        return json_response({"status": "ready"})

    @router.get("/metrics", responses=ERRORS, response_model=None, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters and gauges for Prometheus, for a memory in a cluster also of each shard."""
        require_unbound("read the counters, which are of all clients")
        gauges = {
            "latentrag_queue_length": len(service.engine.batcher),
            "latentrag_memory_version": service.memories.live.version,
            "latentrag_memory_passages": len(service.memories.live),
        }
        return PlainTextResponse(service.metrics.text(gauges) + text_of(service.memories.live.health()))

    return router


def _add_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(LatentRagError)
    async def _library(_request: Request, error: Exception) -> Response:
        return _failed(service.refusal(error))

    @app.exception_handler(Refused)
    async def _refused(_request: Request, error: Refused) -> Response:
        return _failed(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        # The path to the field, without what it is part of and without what was given, which may be secret or huge.
        param = ".".join(str(each) for each in first["loc"][1:])[:200]
        message = f"{param or 'the body'}: {first['msg'][:500]}; see /docs"
        return _failed(Refused(422, message, "invalid_value", param=param or None))

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, error: HTTPException) -> Response:
        response = _failed(Refused(error.status_code, f"{error.detail}; see /docs".lower(), "http"))
        response.headers.update(error.headers or {})
        return response


def _failed(refused: Refused) -> Response:
    return Response(refused.body, refused.status, refused.headers, "application/json")
