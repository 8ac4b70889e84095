"""Routes that OpenAI's clients use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from latentrag.options import DecodingOptions
from latentrag.serving import embeddings, schemas
from latentrag.serving.chat import ChatRecord, Completion
from latentrag.serving.chat_request import ChatRequest
from latentrag.serving.failures import Refused
from latentrag.serving.options import MAX_NAME, MAX_TOKENS
from latentrag.serving.service import ERRORS, EVENTS, Service, as_json, check_streamed, json_response, responses
from latentrag.serving.waiting import StreamState

ELSEWHERE = {
    "/v1/completions": "/v1/chat/completions, or /v1/answer, whose question is a plain text",
    "/v1/responses": "/v1/chat/completions",
}
"""What clients look for in vain, and what they should use."""


def router(service: Service) -> APIRouter:
    """`/v1/models`, `/v1/chat/completions`, `/v1/embeddings`."""
    found = APIRouter(tags=["for OpenAI's clients"])
    record: schemas.ModelRecord = {"id": service.name, "object": "model", "created": 0, "owned_by": "latentrag"}

    @found.get("/v1/models", responses=responses(schemas.ModelsRecord), response_model=None)
    async def models() -> Response:
        """The model."""
        return json_response({"object": "list", "data": [record]})

    @found.get("/v1/models/{model}", responses=responses(schemas.ModelRecord), response_model=None)
    async def one(model: str) -> Response:
        """The model, by its name. 404 for another name."""
        _check_model(service, model)
        return json_response(record)

    @found.post(
        "/v1/chat/completions",
        responses={200: {"model": ChatRecord, "content": EVENTS[200]["content"], "description": "Done."}, **ERRORS},
        response_model=None,
    )
    async def completions(asked: ChatRequest, request: Request) -> Response:
        """The conversation up to the user's last message; `latentrag` in the request holds options of `/v1/answer`."""
        return await _completed(service, asked, request)

    @found.post("/v1/embeddings", responses=responses(embeddings.EmbeddingsRecord), response_model=None)
    async def vectors(asked: embeddings.EmbeddingRequest, request: Request) -> Response:
        """Vectors of texts, as the retriever compares them (its scale left out): q(x) of questions, d(z) of
        passages."""
        _check_model(service, asked.model)
        encoder = await service.encoders.encoder(service.memories.rag, asked.input_type)
        num_tokens, encode = embeddings.check(asked, encoder), embeddings.encoding(encoder, asked.input_type)
        rows = [
            (await service.done(service.engine.embed(encode, texts), request)).numpy()
            for texts in embeddings.slices(asked.texts)
        ]
        return json_response(embeddings.record(asked, rows, num_tokens))

    for path, instead in ELSEWHERE.items():
        found.add_api_route(path, _elsewhere(path, instead), methods=["GET", "POST"], include_in_schema=False)
    return found


async def _completed(service: Service, asked: ChatRequest, request: Request) -> Response:
    _check_model(service, asked.model)
    generator = service.memories.rag.generator
    wanted = asked.wanted(min(MAX_TOKENS, generator.max_target_tokens or MAX_TOKENS))
    options, num_top = wanted.options, asked.num_top
    limit = service.memories.rag.options(**options.given(DecodingOptions)).max_tokens
    completion = Completion(asked, wanted, limit)
    if not asked.stream:
        job = await service.answering(wanted.question, options, top_tokens=num_top)
        return json_response(completion.whole(await service.done(job, request)))
    check_streamed(options)
    stream = StreamState()
    job = await service.answering(wanted.question, options, stream, top_tokens=num_top)
    sources = await service.begun(stream, job, request)
    return service.streamed(_data(completion.chunks(sources, stream.rest())), job)


def _check_model(service: Service, name: str) -> None:
    if name != service.name:
        shown = ascii(name[:MAX_NAME])
        raise Refused(404, f"no model {shown}; needed {service.name!r}", "model_not_found", param="model")


def _elsewhere(path: str, instead: str) -> Callable[[], Awaitable[Response]]:
    async def refuse() -> Response:
        raise Refused(404, f"{path} is not offered; use {instead}", "not_offered")

    return refuse


async def _data(records: AsyncIterator[Mapping[str, object]]) -> AsyncIterator[bytes]:
    async for record in records:
        yield b"data: " + as_json(record) + b"\n\n"
    yield b"data: [DONE]\n\n"
