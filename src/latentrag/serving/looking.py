"""What the page shows of the memory besides answers: questions to begin with, and a passage between its neighbours."""

from __future__ import annotations

import asyncio
import re
import sys
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from latentrag.memory.documents import document_id, neighbours
from latentrag.records import PassageRecord, passage_record
from latentrag.serving import options as limit
from latentrag.serving import schemas
from latentrag.serving.failures import Refused
from latentrag.serving.places import placed
from latentrag.serving.service import Service, json_response, responses

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latentrag.types import Passage

NUM_EXAMPLES = 3
_LOOKED_AT = 512
"""Passages from the beginning of the memory among which examples are chosen."""
_LONGEST_TITLE = 60
_VERB = re.compile(r"\s(is|was|are|were)\s(?:an?|the|one)\s")
_OPEN = "What do you know about "
_PERSON = re.compile(r"\bborn\b|\(\d{1,2} \w+ \d{3,4}|\b(?:his|her)\b")


class ExamplesRecord(TypedDict):
    """Questions that the memory has something to say about, made from its passages."""

    questions: list[str]


class PlaceRequest(BaseModel):
    """A passage at a version of the memory."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=limit.MAX_ID)]
    as_of: Annotated[schemas.VersionName | None, Field(description="Null: the version that is served.")] = None


class PlaceRecord(TypedDict):
    """A passage, and what stands before and after it in its document, nearest last and first."""

    document: str
    before: list[PassageRecord]
    passage: PassageRecord
    after: list[PassageRecord]


def router(service: Service) -> APIRouter:
    """The routes."""
    found = APIRouter(tags=["memory"])

    @found.get("/api/examples", responses=responses(ExamplesRecord), response_model=None)
    async def examples() -> Response:
        """Up to three questions to begin with, about passages of the memory."""
        memory = await asyncio.to_thread(lambda: service.memories.seen(service.memories.live.snapshot()))
        questions = await asyncio.to_thread(lambda: questions_about(islice(memory.passages(), _LOOKED_AT)))
        return json_response({"questions": questions})

    @found.get("/api/passage", responses=responses(PlaceRecord), response_model=None)
    async def place(asked: Annotated[PlaceRequest, Query()]) -> Response:
        """A passage between its neighbours: up to two before it, and two after."""
        rag = await service.rag(schemas.Retrieval(as_of=asked.as_of))
        served: Any = rag.retriever.memory
        memory = await asyncio.to_thread(lambda: service.memories.seen(served.snapshot()))
        around = await asyncio.to_thread(neighbours, memory, asked.id)
        if around is None:
            raise Refused(404, "there is no such passage at this version", "passage")
        before, passage, after = around
        return json_response(
            {
                "document": document_id(passage.id, passage.source),
                "before": [passage_record(placed(each)) for each in before],
                "passage": passage_record(placed(passage)),
                "after": [passage_record(placed(each)) for each in after],
            }
        )

    return found


def questions_about(passages: Iterable[Passage]) -> list[str]:
    """Up to three questions, about passages of documents that are spread over these."""
    found: dict[str, str] = {}
    for passage in passages:
        if passage.title and len(passage.title) <= _LONGEST_TITLE:
            found.setdefault(passage.title, _question(passage))
    exact = [question for question in found.values() if not question.startswith(_OPEN)]
    asked = exact if len(exact) >= NUM_EXAMPLES else list(found.values())
    return asked[:: max(1, len(asked) // NUM_EXAMPLES)][:NUM_EXAMPLES]


def _question(passage: Passage) -> str:
    """What a beginning as "Emma is a novel" answers; the title alone where it is not known what to ask."""
    title = re.sub(r"\s*\([^)]*\)$", "", passage.title)
    verb = _VERB.search(passage.text[:300])
    if verb is None or not passage.text.removeprefix("The ").startswith(title.split(maxsplit=1)[0]):
        return f"{_OPEN}{title}?"
    return f"{'Who' if _PERSON.search(passage.text[:300]) else 'What'} {verb[1]} {_in_a_sentence(title, passage.text)}?"


def _in_a_sentence(title: str, text: str) -> str:
    """A title as its text has it: "the Iliad", "contemporary art"."""
    small = title[0].lower() + title[1:]
    name = small if re.search(rf"\b{re.escape(small)}\b", text) else title
    return f"the {name}" if text.startswith(f"The {title}") else name
