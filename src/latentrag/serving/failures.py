"""What goes wrong with a request, in one shape, which OpenAI's clients understand too."""

from __future__ import annotations

import json

from latentrag.errors import (
    DataError,
    EncoderMismatchError,
    InputError,
    LatentRagError,
    MemoryStoreError,
    OptionError,
    UnavailableError,
)
from latentrag.options import options_of_answers

BAD_REQUEST = "invalid_request_error"
_KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refused(Exception):  # noqa: N818  it is no error of ours
    """A request that is not done.

    Args:
        status: of HTTP.
        message: got, needed, remedy.
        code: for programs.
        param: the field that is wrong, where it is one.
        retry_after_s: when to try again.
    """

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s = retry_after_s

    @property
    def record(self) -> dict[str, object]:
        """The body of the response."""
        kind = _KINDS.get(self.status, BAD_REQUEST)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def body(self) -> bytes:
        """As JSON. Escapes stand for all but ASCII, so that half a character in a client's text does no harm."""
        return json.dumps(self.record).encode("ascii")

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After, and what 401 has to say."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return {**headers, "www-authenticate": "Bearer"} if self.status == 401 else headers


class Gone(Exception):  # noqa: N818
    """The client has gone away; nobody reads what is sent."""


def busy(message: str, *, retry_after_s: int) -> Refused:
    """More requests than the model can take."""
    return Refused(429, message, "busy", retry_after_s=retry_after_s)


def unavailable(message: str) -> Refused:
    """What the server needs and has not now; a moment later it may."""
    return Refused(503, message, "unavailable", retry_after_s=1)


def refusal(error: LatentRagError, *, place: str = "") -> Refused:
    """What the library did not accept.

    Args:
        place: of the memory on this machine, which the client need not know.
    """
    message = error.called(_name_of) if isinstance(error, OptionError) else str(error)
    message = message.replace(place, "the memory") if place else message
    if isinstance(error, InputError):
        return Refused(422, message, "invalid_value", param=error.field and _name_of(error.field))
    if isinstance(error, DataError):
        return Refused(422, message, "invalid_value")
    if isinstance(error, EncoderMismatchError):
        return Refused(409, message, "encoder_mismatch")
    if isinstance(error, UnavailableError):
        return unavailable(message)
    if isinstance(error, MemoryStoreError):
        return Refused(409, message, "memory")
    return Refused(500, message, "model")


def _name_of(field: str) -> str:
    """What the API calls an option."""
    known = options_of_answers()
    return known[field].name if field in known else field
