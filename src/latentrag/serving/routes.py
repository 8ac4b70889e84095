"""Routes that ask the model: answers, streams, scores, labels, passages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from latentrag.decoding import Sources
from latentrag.options import AskOptions, EvidenceOptions, RetrievalOptions
from latentrag.records import (
    AnswerRecord,
    ClassificationRecord,
    ScoreRecord,
    answer_record,
    classification_record,
    passage_record,
    score_record,
    token_record,
)
from latentrag.serving import schemas
from latentrag.serving.service import ERRORS, EVENTS, Service, as_json, check_streamed, json_response, responses
from latentrag.serving.waiting import StreamState
from latentrag.types import Answer, Found, Token


def answers(service: Service) -> APIRouter:
    """`/v1/answer` and its stream."""
    router = APIRouter(tags=["answers"])

    @router.post("/v1/answer", responses=responses(AnswerRecord), response_model=None)
    async def answer(asked: schemas.AnswerRequest, request: Request) -> Response:
        """The most probable answer, its probability, its sources with prior and posterior, and each token's."""
        job = await service.answering(asked.asked(), asked)
        return json_response(answer_record(await service.done(job, request)))

    @router.post("/v1/answer/stream", responses={**EVENTS, **ERRORS}, response_model=None, response_class=Response)
    async def stream(asked: schemas.AnswerRequest, request: Request) -> Response:
        """The same as server-sent events: `sources`, each `token` as soon as it is certain, the `answer` or an `error`.

        A token is certain once no hypothesis that can still win has another in its place.
        """
        check_streamed(asked)
        stream = StreamState()
        job = await service.answering(asked.asked(), asked, stream)
        sources = await service.begun(stream, job, request)
        return service.streamed(_events(sources, stream.rest()), job, failed=b"event: error\n")

    return router


def others(service: Service) -> APIRouter:
    """`/v1/score`, `/v1/classify`, `/v1/search`."""
    router = APIRouter(tags=["answers"])

    @router.post("/v1/score", responses=responses(ScoreRecord), response_model=None)
    async def score(asked: schemas.ScoreRequest, request: Request) -> Response:
        """How probable a given answer is, and thanks to which passages."""
        rag = await service.rag(asked)
        how = asdict(asked.options(AskOptions)) | asdict(asked.options(EvidenceOptions))
        job = service.engine.score(rag, asked.asked(), asked.y, **how)
        return json_response(score_record(await service.done(job, request)))

    @router.post("/v1/classify", responses=responses(ClassificationRecord), response_model=None)
    async def classify(asked: schemas.ClassifyRequest, request: Request) -> Response:
        """Choose among labels, with the probability of each."""
        rag = await service.rag(asked)
        job = service.engine.classify(rag, asked.asked(), asked.labels, **asdict(asked.options(AskOptions)))
        return json_response(classification_record(await service.done(job, request)))

    @router.post("/v1/search", responses=responses(schemas.SearchRecord), response_model=None)
    async def search(asked: schemas.SearchRequest, request: Request) -> Response:
        """The passages that would be retrieved for a question, with score and prior."""
        rag = await service.rag(asked)
        job = service.engine.search(rag, asked.asked(), k=asked.options(RetrievalOptions).k)
        return json_response(found_record(await service.done(job, request)))

    return router


async def _events(sources: Sources, rest: AsyncIterator[tuple[Token, ...] | Answer]) -> AsyncIterator[bytes]:
    passages = [{**passage_record(passage), "prior": prior} for passage, prior in sources.passages]
    missing = {"missing": list(sources.missing)} if sources.missing else {}
    yield _event("sources", {"memory_version": sources.version, "sources": passages, **missing})
    index = 0
    async for event in rest:
        if isinstance(event, Answer):
            yield _event("answer", answer_record(event))
            return
        for token in event:
            yield _event("token", {"index": index, **token_record(token)})
            index += 1


def _event(name: str, record: Mapping[str, object]) -> bytes:
    return f"event: {name}\n".encode() + b"data: " + as_json(record) + b"\n\n"


def found_record(found: Found) -> schemas.SearchRecord:
    """Passages that were found, best first."""
    record: schemas.SearchRecord = {
        "question": found.question,
        "memory_version": found.version,
        "passages": [
            {**passage_record(passage), "score": score, "prior": prior} for passage, score, prior in found.passages
        ],
    }
    if found.missing:
        record["missing"] = list(found.missing)
    return record
