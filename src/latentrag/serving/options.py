"""What a server allows. The limits on single fields are constants, so that OpenAPI can show them."""

from __future__ import annotations

from dataclasses import dataclass

from latentrag.errors import InputError

MAX_TEXT = 4_000
"""Characters of a question, an answer to score, or a message."""
MAX_PASSAGES = 100
MAX_BEAMS = 32
MAX_TOKENS = 512
MAX_LABELS = 64
MAX_LABEL = 200
MAX_STOPS = 4
MAX_STOP = 64
MAX_MESSAGES = 256
MAX_NAME = 100
MAX_ID = 1_000
MAX_LISTED = 200
"""Passages that a difference of versions names, of each kind."""
MAX_COMPARED = 100_000
"""Passages that are read to tell two versions apart: some 20 MB while it lasts."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How much a server takes on.

    Attributes:
        max_batch: requests decoded together.
        max_rows: question × passage × beam of a batch, and of each request: what bounds the memory of decoding.
        gather_s: how long the first request of a batch waits for others.
        max_queue: requests that wait for the model; more are refused.
        max_wait_s: how long one waits before it is refused.
        max_body_bytes: of a request.
        body_s: how long a request's body may take to arrive, and its head likewise.
        send_s: how long a client may leave a part of the response unread.
        max_connections: open at once.
        rate: requests a second of each client, in bursts of twice as many; None: no limit.
        drain_s: how long requests under way may take to finish when the server is told to stop.
        log_questions: whether the log has the questions' texts.
    Raises: InputError for a value that cannot be.
    """

    max_batch: int = 16
    max_rows: int = 320
    gather_s: float = 0.005
    max_queue: int = 256
    max_wait_s: float = 60.0
    max_body_bytes: int = 256 * 1024
    body_s: float = 10.0
    send_s: float = 30.0
    max_connections: int = 1_024
    rate: float | None = None
    drain_s: float = 120.0
    log_questions: bool = False

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_rows", "max_queue", "max_body_bytes", "max_connections"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; needed 1 or more")
        for name in ("max_wait_s", "body_s", "send_s", "drain_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)}; needed more than 0")
        if not self.gather_s >= 0:
            raise InputError(f"gather_s={self.gather_s}; needed 0 or more")
        if self.rate is not None and not self.rate > 0:
            raise InputError(f"rate={self.rate}; needed more than 0, or none")
