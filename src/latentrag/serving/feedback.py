"""What users think of answers, as lines that `latentrag train` reads. Off unless `--feedback` names a file."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from latentrag.errors import InputError
from latentrag.io import append_lines
from latentrag.serving import options as limit
from latentrag.serving import schemas
from latentrag.serving.failures import Refused
from latentrag.serving.service import json_response, responses

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 256 * 1024 * 1024
"""Of the file: strangers may write to it."""


class FeedbackRequest(schemas.Asked):
    """What a user thinks of an answer. ``correction``: what would have been right; for an answer that is not."""

    question: schemas.Text
    answer: Annotated[str, Field(max_length=limit.MAX_TEXT)]
    is_right: bool
    correction: schemas.Text | None = None
    memory_version: Annotated[int, Field(ge=0, le=10**9)]
    sources: schemas.Ids = Field(default_factory=list, description="Ids of the passages that it was made from.")

    def row(self, time: datetime) -> dict[str, Any]:
        """A line of the file: ``answer`` is what is right, ``rejected`` what is not.

        Raises: Refused for a right answer with a correction, and for one without text, of which nothing can be learnt.
        """
        if self.is_right and self.correction is not None:
            raise Refused(422, "a right answer needs no correction; leave it out", "invalid_value", param="correction")
        right = self.answer if self.is_right else self.correction
        if right is not None and not right.strip():
            raise Refused(422, "the right answer is empty; write some text", "invalid_value", param="answer")
        return {
            "question": self.question,
            **({} if right is None else {"answer": right}),
            **({} if self.is_right else {"rejected": self.answer}),
            "memory_version": self.memory_version,
            "sources": self.sources,
            "time": time.isoformat(timespec="seconds"),
        }


def check(path: Path) -> None:
    """Raises: InputError if the file cannot be written."""
    try:
        path.open("ab").close()
    except OSError as error:
        raise InputError(f"--feedback {path} cannot be written ({error.strerror}); name another file") from error


def router(path: Path) -> APIRouter:
    """`POST /api/feedback`."""
    found, writing = APIRouter(tags=["feedback"]), asyncio.Lock()

    @found.post("/api/feedback", responses=responses(schemas.StatusRecord), response_model=None)
    async def feedback(asked: FeedbackRequest) -> Response:
        """Keep what a user thinks of an answer, to train on it: a right one, a wrong one, or what would be right."""
        row = asked.row(datetime.now(UTC))
        async with writing:
            await asyncio.to_thread(_append, path, row)
        return json_response({"status": "kept"})

    return found


def _append(path: Path, row: dict[str, Any]) -> None:
    """Raises: Refused where there is no more room."""
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise Refused(409, "the file for feedback is full; tell who runs this server", "full")
    append_lines(path, [row], durable=True)
