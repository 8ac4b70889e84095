"""What the routes work with, and what they have in common."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from starlette.requests import Request
from starlette.responses import Response

from latentrag.errors import LatentRagError, MemoryStoreError, UnavailableError, UnknownVersionError
from latentrag.io import finite
from latentrag.options import ConfidenceOptions, DecodingOptions, EvidenceOptions, OneAnswerOptions
from latentrag.serving import schemas
from latentrag.serving.failures import Gone, Refused, busy, refusal, unavailable
from latentrag.serving.rights import rights_now
from latentrag.serving.waiting import EventStream, StreamState, finished

if TYPE_CHECKING:
    from latentrag.asking import HowToAnswer
    from latentrag.decoding import Sources
    from latentrag.rag import Rag
    from latentrag.serving.batching import Job
    from latentrag.serving.embeddings import Encoders
    from latentrag.serving.engine import Engine
    from latentrag.serving.memories import Memories
    from latentrag.serving.metrics import Metrics
    from latentrag.serving.options import ServeOptions
    from latentrag.types import Question

_LOG = logging.getLogger("latentrag.serving")

Responses = dict[int | str, dict[str, Any]]
ERRORS: Responses = {"default": {"model": schemas.ErrorRecord, "description": "Got, needed, remedy."}}
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "event": {"enum": ["sources", "token", "answer", "error"], "description": "Absent for OpenAI's clients."},
        "data": {"type": "string", "description": "One line of JSON."},
    },
}
EVENTS: Responses = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {"itemSchema": _EVENT}}}
}


@dataclass(frozen=True, slots=True)
class Service:
    """A model under its name, its memory, and what does the work."""

    name: str
    memories: Memories
    engine: Engine
    metrics: Metrics
    options: ServeOptions
    encoders: Encoders

    async def rag(self, asked: schemas.Retrieval) -> Rag:
        """The model over the version of the memory and the passages that are asked for, as far as the client's key may
        see them. Raises: LatentRagError; Refused."""
        rag = self.memories.rag if asked.as_of is None else await self._opened(asked.as_of)
        if asked.where is None and rights_now().where is None and self.memories.where is None:
            return rag
        return await asyncio.to_thread(self.memories.narrowed, rag, asked.where)

    async def _opened(self, as_of: int | str) -> Rag:
        opening = asyncio.wrap_future(await asyncio.to_thread(self.memories.rag_at, as_of))
        try:
            async with asyncio.timeout(self.options.max_wait_s):
                return await asyncio.shield(opening)  # others may wait for it, too
        except TimeoutError:
            raise busy("the version is still being opened; ask again later", retry_after_s=10) from None

    async def answering(
        self,
        question: str | Question,
        asked: schemas.Answering,
        stream: StreamState | None = None,
        *,
        top_tokens: int = 0,
    ) -> Job:
        """A job for an answer. Raises: LatentRagError; Refused."""
        how: dict[str, Any] = {
            **asdict(asked.options(OneAnswerOptions)),
            **asdict(asked.options(EvidenceOptions)),
            **asdict(asked.options(ConfidenceOptions)),
            **asked.given(DecodingOptions),
            "top_tokens": top_tokens,
        }
        tell = None if stream is None else stream.tell
        return self.engine.answer(await self.rag(asked), question, cast("HowToAnswer", how), tell=tell)

    async def done(self, job: Job, request: Request) -> Any:
        """The job's result, as long as the client is there. Raises: as the job; Gone; Refused."""
        wait_s = self.options.max_wait_s
        return await finished(job, request.receive, batcher=self.engine.batcher, max_wait_s=wait_s)

    async def begun(self, stream: StreamState, job: Job, request: Request) -> Sources:
        """The first event of a stream. Raises: as ``done``."""
        wait_s = self.options.max_wait_s
        return await stream.begin(job, request.receive, batcher=self.engine.batcher, max_wait_s=wait_s)

    def refusal(self, error: Exception) -> Refused:
        """What a client hears of it."""
        if isinstance(error, Refused):
            return error
        if isinstance(error, MemoryStoreError) and rights_now().where is not None:
            return self._hidden(error)
        if isinstance(error, LatentRagError):
            return refusal(error, place=str(self.memories.path))
        return Refused(500, "the server has failed; its log says why", "internal")

    def _hidden(self, error: MemoryStoreError) -> Refused:
        """For a key that may know of some passages alone: an error of the memory may tell of others, and of tags."""
        if isinstance(error, UnavailableError):
            return unavailable("a part of the memory does not answer; ask again in a moment")
        if isinstance(error, UnknownVersionError):
            return Refused(409, "the memory has no such version; give its number, newest or served", "memory")
        _LOG.warning("hidden from an API key that is bound to a condition: %s", error)
        return Refused(409, "this key can see no passage at that version, or the memory cannot be read", "memory")

    def streamed(self, events: AsyncIterator[bytes], job: Job, *, failed: bytes = b"") -> EventStream:
        """The response that tells events about a job; ``failed`` stands before the error where something goes wrong."""
        return EventStream(self._whole_stream(events, failed), job, keep_alive_s=self.options.keep_alive_s)

    async def _whole_stream(self, events: AsyncIterator[bytes], failed: bytes) -> AsyncIterator[bytes]:
        """The events; one more where something goes wrong midway: ``failed`` and the error."""
        try:
            async for event in events:
                yield event
        except Gone:
            return
        except Exception as error:  # noqa: BLE001  the batcher has logged it
            yield failed + b"data: " + self.refusal(error).body + b"\n\n"


def check_streamed(asked: schemas.Answering) -> None:
    """Raises: Refused for what is certain only when all is decoded."""
    decoding = asked.options(OneAnswerOptions).decoding
    if decoding != "exact":
        raise Refused(
            422,
            f"decoding={decoding!r} chooses when all is decoded; needed 'exact' to stream",
            "invalid_value",
            param="decoding",
        )


def responses(model: type) -> Responses:
    """For OpenAPI: what a route answers."""
    return {200: {"model": model, "description": "Done."}, **ERRORS}


def json_response(record: Mapping[str, object]) -> Response:
    """−∞ is null."""
    return Response(as_json(record), media_type="application/json")


def as_json(record: Mapping[str, object]) -> bytes:
    """In one line."""
    return json.dumps(finite(record, strict=True), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
