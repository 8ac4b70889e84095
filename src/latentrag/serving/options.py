"""What a server allows. The limits on single fields are constants, so that OpenAPI can show them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from latentrag.errors import InputError
from latentrag.options import Option, check_options, size_in_bytes

MAX_TEXT = 4_000
"""Characters of a question, an answer to score, or a message."""
MAX_MESSAGES = 100
"""Messages of a conversation that are read; of a chat completion the newest."""
MAX_HISTORY = 40_000
"""Characters of the earlier messages of a chat completion that are read, the newest."""
MAX_PASSAGES = 100
MAX_BEAMS = 32
MAX_TOKENS = 512
MAX_SEED = 2**63 - 1
MAX_LABELS = 64
MAX_LABEL = 200
MAX_STOPS = 4
MAX_STOP = 64
MAX_TOP_LOGPROBS = 20
"""As OpenAI's."""
MAX_EMBEDDED = 2_048
"""Texts in one request for vectors; as OpenAI's."""
MAX_NAME = 100
MAX_ID = 1_000
MAX_LISTED = 200
"""Passages that a difference of versions names, of each kind."""
MAX_FILES = 100
"""Files in one request that adds documents."""
MAX_ADDED = 20_000
"""Passages that one request adds; their ids, texts and vectors are some 60 MB."""
MAX_SUMMARISED = 1_000_000
"""Passages of a memory whose documents are listed: 10 s and 1 GB."""
MAX_DELETED = 100
"""Documents that one request deletes."""
MAX_COMPARED = 100_000
"""Passages that are read to tell two versions apart: some 20 MB while it lasts."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/]+", re.IGNORECASE)
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How much a server takes on. Raises: InputError for a value that cannot be.

    Attributes:
        max_batch: Questions decoded together.
        max_queue: Requests that may wait for the model; more are refused with 429.
        max_wait_s: How long a request may wait; then it is refused with 429.
        rate: Requests a second of each client, in bursts of twice as many.
        log_questions: Log the text of questions, too.
        feedback: Keep what users say of answers (`POST /api/feedback`, two buttons on the page) in this file of JSON
            lines, which `latentrag train` reads.
        allow_writes: Let everybody on this machine add and delete documents, where no API key is needed; a key needs
            the right to write instead.
        max_upload: Largest size of the files that one request may add.
        origins: Web site whose pages may use the server (CORS), as https://example.org; "*": every site. May be
            repeated.
        hosts: Name under which the server may be spoken to, beside those of this machine, as behind a proxy; may be
            repeated.
        root_path: Path under which a proxy offers the server, as /rag.
        max_rows: Question × value of z × beam of a batch, and of each request: bounds the RAM of decoding.
        gather_s: How long the first request of a batch waits for others, in seconds.
        max_body_bytes: Longest body of a request.
        body_s: How long a request's head may take to arrive, and its body likewise.
        send_s: How long a client may leave a part of the response unread.
        max_connections: Connections open at once.
        keep_alive_s: After how long without an event a stream sends a comment, so that nothing on the way closes it.
        upload_s: How long the files of a request may take to arrive; none of their parts may take ``body_s``.
        drain_s: How long requests under way may take to finish when the server stops.
    """

    max_batch: Annotated[int, Option(name="batch", ge=1)] = 16
    max_queue: Annotated[int, Option(name="queue", ge=1)] = 256
    max_wait_s: Annotated[float, Option(name="wait", metavar="SECONDS", gt=0)] = 60.0
    rate: Annotated[float | None, Option(default="10 where others can connect, else no limit", gt=0)] = None
    log_questions: Annotated[bool, Option()] = False
    feedback: Annotated[Path | None, Option(metavar="FILE", default="none: off")] = None
    allow_writes: Annotated[bool, Option()] = False
    max_upload: Annotated[str, Option(metavar="SIZE")] = "100MB"
    origins: Annotated[tuple[str, ...], Option(name="cors_origin", metavar="ORIGIN", default="none")] = ()
    hosts: Annotated[tuple[str, ...], Option(name="allow_host", metavar="NAME")] = ()
    root_path: Annotated[str | None, Option(metavar="PATH", default="none")] = None
    max_rows: Annotated[int, Option(ge=1, public=False)] = 320
    gather_s: Annotated[float, Option(ge=0, public=False)] = 0.005
    max_body_bytes: Annotated[int, Option(ge=1, public=False)] = 256 * 1024
    body_s: Annotated[float, Option(gt=0, public=False)] = 10.0
    send_s: Annotated[float, Option(gt=0, public=False)] = 30.0
    keep_alive_s: Annotated[float, Option(gt=0, public=False)] = 15.0
    max_connections: Annotated[int, Option(ge=1, public=False)] = 1_024
    upload_s: Annotated[float, Option(gt=0, public=False)] = 600.0
    drain_s: Annotated[float, Option(gt=0, public=False)] = 120.0

    def __post_init__(self) -> None:
        check_options(self)
        _ = self.max_upload_bytes
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise InputError(f"--cors-origin {origin!r} is no origin; write it as https://example.org, or '*'")
        if self.root_path is not None and not _ROOT_PATH.fullmatch(self.root_path):
            raise InputError(f"--root-path {self.root_path!r} is no path; write it as /rag")

    @property
    def max_upload_bytes(self) -> int:
        """Raises: InputError if it is no size."""
        return size_in_bytes(self.max_upload, "--max-upload")
