"""The bodies of requests: JSON, read whole and checked; or a form with files, handed on as it comes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from latentrag.serving.failures import Gone, Refused

if TYPE_CHECKING:
    from latentrag.serving.options import ServeOptions
    from latentrag.serving.waiting import Message, Receive

_DRAINED_BYTES = 4 * 1024 * 1024
"""How much of a body that is refused is read all the same: who is still sending does not hear why it is refused."""
_DRAIN_S = 2.0
_SHOWN = 200


def headers_of(scope: Message) -> dict[str, str]:
    """Of a request, by their names in lower case."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def shown(text: str) -> str:
    """A client's text for a log or a message: one line, not long."""
    return ascii(text[:_SHOWN])[1:-1]


async def json_body(receive: Receive, options: ServeOptions, headers: Mapping[str, str]) -> bytes:
    """The whole body, JSON for certain. Raises: Refused; Gone."""
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(options.body_s):
            async for part in _parts(receive):
                size += len(part)
                if size <= options.max_body_bytes:
                    body += part
                elif size > _DRAINED_BYTES:
                    break
    except TimeoutError:
        raise _too_slow(options.body_s) from None
    if size > options.max_body_bytes:
        raise Refused(413, f"the body exceeds {options.max_body_bytes} bytes; send less", "too_large")
    # Only now: who is refused while still sending may not hear why.
    check_kind(headers, "application/json")
    _check_json(bytes(body))
    return bytes(body)


class _Reply(Protocol):
    async def send(self, message: Message) -> None: ...


class Upload:
    """A form with files on its way: bounded in size and time, and read to some extent if it is refused.

    Args: receive: ASGI's.
    """

    def __init__(self, receive: Receive, options: ServeOptions, headers: Mapping[str, str]) -> None:
        self._receive, self._options, self._headers = receive, options, headers
        self._until_s = time.monotonic() + options.upload_s
        self._size_bytes, self._is_whole, self._is_gone = 0, False, False

    async def receive(self) -> Message:
        """As ASGI has it. Raises: Refused."""
        if self._is_whole:
            return await self._receive()
        if not self._size_bytes:
            self._check_size(_number(self._headers.get("content-length", "")))
        try:
            async with asyncio.timeout(min(self._options.body_s, self._until_s - time.monotonic())):
                message = await self._next()
        except TimeoutError:
            raise _too_slow(self._options.body_s) from None
        self._check_size(self._size_bytes)
        return message

    async def send(self, reply: _Reply, message: Message) -> None:
        """As ASGI has it. Who is still sending is listened to for a moment, and then the connection ends."""
        if message["type"] == "http.response.start" and not self._is_whole and not self._is_gone:
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_S):
                    await self._drain()
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await reply.send(message)

    async def _next(self) -> Message:
        message = await self._receive()
        self._is_gone = message["type"] == "http.disconnect"
        self._is_whole = not self._is_gone and not message.get("more_body", False)
        self._size_bytes += len(message.get("body", b""))
        return message

    async def _drain(self) -> None:
        end = self._size_bytes + _DRAINED_BYTES
        while not self._is_whole and not self._is_gone and self._size_bytes < end:
            await self._next()

    def _check_size(self, size_bytes: int) -> None:
        most = self._options.max_upload_bytes
        if size_bytes > most:
            message = f"the files exceed {self._options.max_upload} together; send fewer at once, or start the server "
            raise Refused(413, message + "with a larger --max-upload", "too_large")


def check_kind(headers: Mapping[str, str], needed: str) -> None:
    """Raises: Refused for another type, or what is packed."""
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != needed:
        raise Refused(415, f"Content-Type {shown(kind)!r}; needed {needed}", "type")
    packed = headers.get("content-encoding", "").strip().lower()
    if packed not in {"", "identity"}:
        message = f"Content-Encoding {shown(packed)!r}; needed identity; send the body as it is"
        raise Refused(415, message, "encoding")


def _too_slow(limit_s: float) -> Refused:
    return Refused(408, f"the body has not arrived within {limit_s:g} s; send it at once", "timeout")


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    """The body as it comes. Raises: Gone."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        more = message.get("more_body", False)
        yield message.get("body", b"")


def replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body once more, then what really comes."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


def _check_json(body: bytes) -> None:
    """Raises: Refused for what is no JSON, or too deep."""
    try:
        json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise Refused(400, f"byte {error.start} of the body is not UTF-8; encode it as UTF-8", "encoding") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deeply; send plain objects", "json") from None
    except ValueError as error:
        raise Refused(400, f"the body is not valid JSON ({error}); correct it", "json") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
