"""The event loop's side of a job: waiting for it, streaming what is told, leaving when the client does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from latentrag.decoding import Begun, Sources
from latentrag.serving.failures import Gone, busy
from latentrag.types import Answer, Token

if TYPE_CHECKING:
    from latentrag.serving.batching import Batcher, Job

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def finished(job: Job, receive: Receive, *, batcher: Batcher, max_wait_s: float) -> Any:
    """The job's result.

    Raises: what the job ended with; Gone if the client went away; Refused if it waited too long to be begun.
    """
    done = asyncio.wrap_future(job.result)
    gone = asyncio.ensure_future(disconnected(receive))
    try:
        await _begun_or_refused({done, gone}, job, batcher, max_wait_s)
        if not done.done():
            await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise Gone
        return done.result()
    finally:
        gone.cancel()
        job.leave()


async def _begun_or_refused(what: set[Any], job: Job, batcher: Batcher, max_wait_s: float) -> None:
    """Waits until one of them is done, or the job has been begun. Raises: Refused."""
    done, _ = await asyncio.wait(what, timeout=max_wait_s, return_when=asyncio.FIRST_COMPLETED)
    if not done and not job.result.running() and job.leave():
        raise busy(
            f"the request has waited {max_wait_s:g} s for the model; try again later",
            retry_after_s=batcher.retry_after_s,
        )


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamState:
    """What a job says before its end, as it comes: ``Sources``, then ``Begun``, at the end its result.

    It is made before the job, in the event loop; ``tell`` may be called from any thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._num_tokens = 0
        self._sources: Sources | None = None

    def tell(self, event: Any) -> None:
        """One more event."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def begin(self, job: Job, receive: Receive, *, batcher: Batcher, max_wait_s: float) -> Sources:
        """The first event, so that what is wrong with a request is known before the response begins.

        Raises: as ``finished``.
        """
        job.result.add_done_callback(self.tell)
        first = asyncio.ensure_future(self._events.get())
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await _begun_or_refused({first, gone}, job, batcher, max_wait_s)
            if not first.done():
                await asyncio.wait({first, gone}, return_when=asyncio.FIRST_COMPLETED)
            self._sources = _sources(first)
        finally:
            first.cancel()
            gone.cancel()
            if self._sources is None:
                job.leave()
        return self._sources

    async def rest(self) -> AsyncIterator[tuple[Token, ...] | Answer]:
        """Tokens that are new each time, and the answer at the end. Raises: what the job ended with; Gone."""
        while True:
            event = await self._events.get()
            answer: Answer | None = None if isinstance(event, Begun) else event.result()
            if answer is None and not isinstance(event, Begun):
                raise Gone
            tokens = event.tokens if answer is None else answer.tokens
            if answer is not None and answer.best_guess is not None:
                tokens = ()  # they are the guess's
            if len(tokens) > self._num_tokens:
                yield tokens[self._num_tokens :]
                self._num_tokens = len(tokens)
            if answer is not None:
                yield answer
                return


def _sources(first: asyncio.Future[Any]) -> Sources:
    """The first event, if it is what it should be. Raises: what the job ended with; Gone."""
    event = first.result() if first.done() else None
    if isinstance(event, Future):
        event.result()
    if not isinstance(event, Sources):
        raise Gone
    return event


class EventStream(Response):
    """Server-sent events, which end when the client goes, and the job with them.

    Args:
        events: the encoded events.
        keep_alive_s: after so long without one a comment is sent.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], job: Job, *, keep_alive_s: float) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._job, self._keep_alive_s = events, job, keep_alive_s

    async def __call__(self, _scope: Message, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        gone = asyncio.ensure_future(disconnected(receive))
        sending = asyncio.ensure_future(self._sent(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self._job.leave()
            gone.cancel()
            sending.cancel()

    async def _sent(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while (event := await self._next(send)) is not None:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self, send: Send) -> bytes | None:
        """The next event, before which comments may be sent; None at the end."""
        coming = asyncio.ensure_future(anext(self._events, None))
        try:
            while not (await asyncio.wait({coming}, timeout=self._keep_alive_s))[0]:
                await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})
            return coming.result()
        finally:
            coming.cancel()
