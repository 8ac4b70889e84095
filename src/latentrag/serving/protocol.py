"""uvicorn's HTTP protocol with what it lacks: limits on connections, and on the time that clients take."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from latentrag.serving.options import ServeOptions


class BoundedProtocol(H11Protocol):
    """Closes a connection that sends no whole head within ``body_s``, or reads nothing for ``send_s``.

    A subclass says what the limits are: uvicorn makes the objects.
    """

    limits: ServeOptions

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.trailing_data[0]:  # the next head has begun already; else uvicorn's own timer closes it
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._head, self._reading):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        # Closing would wait until the client has read what is in the buffer.
        self._reading = self.loop.call_later(self.limits.send_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()

    def _await_head(self) -> None:
        """The time for a head runs from its first byte, or from the connection's beginning, to its last."""
        if self.conn.their_state is not h11.IDLE:
            if self._head is not None:
                self._head.cancel()
                self._head = None
        elif self._head is None:
            self._head = self.loop.call_later(self.limits.body_s, self._close_if_headless)

    def _close_if_headless(self) -> None:
        self._head = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


def bounded(options: ServeOptions) -> type[BoundedProtocol]:
    """The protocol's class for a server with these limits."""
    return type("Bounded", (BoundedProtocol,), {"limits": options})
