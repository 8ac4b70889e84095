"""A running server as what answers: `latentrag ask --server`. Nothing heavy is imported."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from latentrag.cli.output import working
from latentrag.errors import InputError
from latentrag.options import KEY_VARIABLE, DecodingOptions, Given, options_of
from latentrag.records import AnswerRecord, answer_of

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from latentrag.types import Answer

_PATIENCE_S = 600.0


def refuse_own(*groups: object) -> None:
    """Raises: InputError for an option of a model or a memory, of which the server has its own."""
    for group in groups:
        for name, field in options_of(type(group)).items():
            if getattr(group, name) != field.default:
                flag = next(flag for flag in field.flags if flag.startswith("--"))
                raise InputError(f"{flag} has no effect with --server, which has a model and a memory; leave it out")


def options_body(decoding: Given[DecodingOptions], *groups: object) -> dict[str, object]:
    """The options that were given, as the API calls them."""
    body: dict[str, object] = {}
    for group in groups:
        for name, field in options_of(type(group)).items():
            if (value := getattr(group, name)) != field.default:
                body[field.name] = value
    return body | {options_of(DecodingOptions)[name].name: value for name, value in decoding.items()}


def answer(url: str, body: Mapping[str, object]) -> Answer:
    """What the server at an address answers. Raises: InputError if there is none, if it refuses, or if it is another
    version's, whose answers look otherwise."""
    record = _posted(url, body)
    try:
        return answer_of(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the answer of {url} cannot be read; run the same version of latentrag there") from error


def _posted(url: str, body: Mapping[str, object]) -> AnswerRecord:
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    if not url.startswith(("http://", "https://")):
        raise InputError(f"--server {url!r} is no address; write it as http://127.0.0.1:8000")
    headers = {"content-type": "application/json"}
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        headers["authorization"] = f"Bearer {key}"
    asked = Request(f"{url.rstrip('/')}/v1/answer", json.dumps(body).encode(), headers)  # noqa: S310
    try:
        with working("asking the server"), urlopen(asked, timeout=_PATIENCE_S) as response:  # noqa: S310
            found: AnswerRecord = json.load(response)
            return found
    except HTTPError as error:
        raise InputError(f"the server at {url} refuses: {_message(error)}") from error
    except (URLError, OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise InputError(
            f"no latentrag answers at {url} ({why}); start one with `latentrag serve`, or leave --server out"
        ) from error


def _message(error: Any) -> str:
    response: HTTPResponse = error
    try:
        return str(json.loads(response.read())["error"]["message"])
    except (ValueError, LookupError, TypeError, OSError):
        return f"status {error.code}"
