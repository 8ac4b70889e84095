"""`/api/documents`: what the memory is made of, listed, added and deleted, for those who may."""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from latentrag.memory.scratch import scratch_folder
from latentrag.protocols import HasQueryEncoder
from latentrag.records import FileRecord
from latentrag.serving import options as limit
from latentrag.serving.failures import Gone, Refused
from latentrag.serving.rights import require_write, rights_now
from latentrag.serving.service import Service, json_response, responses
from latentrag.serving.uploads import received
from latentrag.serving.waiting import disconnected
from latentrag.serving.writing import Documents, Progress

if sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict

if TYPE_CHECKING:
    from latentrag.protocols import PassageEncoder

PATH = "/api/documents"
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "additionalProperties": False,
                    "properties": {
                        "files": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": limit.MAX_FILES,
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            }
        },
    }
}


_Shown = Annotated[int, Field(ge=1, le=limit.MAX_LISTED)]
_Id = Annotated[str, Field(max_length=limit.MAX_ID)]


class ListRequest(BaseModel):
    """Which documents: those after an id, in the order of ids."""

    model_config = ConfigDict(extra="forbid")

    after: _Id = ""
    containing: Annotated[_Id, Field(description="Text in the id or title.")] = ""
    limit: _Shown = 50


class DeleteRequest(BaseModel):
    """Which documents."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=limit.MAX_ID)]],
        Field(min_length=1, max_length=limit.MAX_DELETED, description="Ids, as the list shows them."),
    ]


class DocumentRecord(TypedDict):
    """A document. ``synced``: a folder has it, and `index sync` keeps it; it cannot be deleted here."""

    id: str
    title: str
    source: str
    passages: int
    synced: bool


class DocumentsRecord(TypedDict):
    """Documents of the newest version, in the order of their ids. ``count``: of all that were asked for, whatever the
    limit; ``max_upload_bytes``: what one request may add."""

    memory_version: int
    count: int
    documents: list[DocumentRecord]
    max_upload_bytes: int


class ChangedRecord(TypedDict):
    """The version that a change has made, and the one that is served now: another where a version was chosen."""

    memory_version: int
    served_version: int


class AddedRecord(ChangedRecord):
    """What was added, in passages, and what became of each file. ``unchanged``: was there already, word for word."""

    added: int
    replaced: int
    removed: int
    unchanged: int
    files: list[FileRecord]


class DeletedRecord(ChangedRecord):
    """How many passages were deleted."""

    deleted: int


class ProgressRecord(TypedDict):
    """The change under way: files that have arrived, passages that were read and encoded so far."""

    stage: Literal["idle", "receiving", "reading", "deleting"]
    files: int
    read: int
    encoded: int


def router(service: Service, documents: Documents) -> APIRouter:
    """The routes."""
    found = APIRouter(tags=["documents"])

    @found.get(PATH, responses=responses(DocumentsRecord), response_model=None)
    async def listed(asked: Annotated[ListRequest, Query()]) -> Response:
        """The documents of the newest version, for those who may change them."""
        require_write()
        version, known = await asyncio.to_thread(documents.listed)
        wanted = asked.containing.casefold()
        kept = [each for each in known if wanted in each.id.casefold() or wanted in each.title.casefold()]
        start = bisect_right(kept, asked.after, key=lambda each: each.id) if asked.after else 0
        shown = [
            {
                "id": each.id,
                "title": each.title,
                "source": each.source,
                "passages": each.num_passages,
                "synced": each.is_synced,
            }
            for each in kept[start : start + asked.limit]
        ]
        most = service.options.max_upload_bytes
        return json_response(
            {"memory_version": version, "count": len(kept), "documents": shown, "max_upload_bytes": most}
        )

    @found.post(PATH, responses=responses(AddedRecord), response_model=None, openapi_extra=_FORM)
    async def add(request: Request) -> Response:
        """Add files, as `latentrag index add --upsert` does: all of them in one version, or none. A file replaces what
        the memory has under its name. Questions are answered from the version before until it is there."""
        require_write()
        documents.require_whole()
        with documents.changing("receiving") as progress:
            encoder = await _encoder(service)
            async with _scratch(service) as folder:
                try:
                    files = await received(request.stream(), request.headers, folder)
                except ClientDisconnect:
                    raise Gone from None
                return json_response(await _added(documents, files, encoder, progress, request))

    @found.delete(PATH, responses=responses(DeletedRecord), response_model=None)
    async def delete(asked: Annotated[DeleteRequest, Query()]) -> Response:
        """Delete documents, all of them in one version, or none. Earlier versions keep them; `latentrag index forget`
        leaves none."""
        require_write()
        with documents.changing("deleting"):
            version, served, deleted = await asyncio.to_thread(documents.delete, asked.id)
        return json_response({"memory_version": version, "served_version": served, "deleted": deleted})

    @found.get(f"{PATH}/progress", responses=responses(ProgressRecord), response_model=None)
    async def progress() -> Response:
        """How far the change of documents is that is under way."""
        require_write()
        # Who sees some passages alone hears nothing of what others add.
        now = documents.progress if rights_now().where is None else Progress()
        return json_response(
            {"stage": now.stage, "files": now.num_files, "read": now.num_read, "encoded": now.num_encoded}
        )

    return found


async def _added(
    documents: Documents, files: list[Path], encoder: PassageEncoder, progress: Progress, request: Request
) -> AddedRecord:
    """Adds them, unless the client goes away before they are committed. Raises: as ``Documents.add``."""
    progress.stage, progress.num_files = "reading", len(files)
    work = asyncio.ensure_future(asyncio.to_thread(documents.add, files, encoder, progress))
    gone = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        progress.is_wanted = work.done()  # the files are needed until it has ended
        await asyncio.wait({work})
    if not progress.is_wanted and work.exception() is not None:
        raise Gone
    done = work.result()
    return {
        "memory_version": done.added.memory.version,
        "served_version": done.served,
        "added": done.added.added,
        "replaced": done.added.replaced,
        "removed": done.added.removed,
        "unchanged": done.added.unchanged,
        "files": done.files,
    }


async def _encoder(service: Service) -> PassageEncoder:
    retriever = service.memories.rag.retriever
    own = retriever.query_encoder if isinstance(retriever, HasQueryEncoder) else None
    found = await service.encoders.of_passages(own)
    if found is None:
        message = "this server has no encoder of passages; add documents with `latentrag index add`"
        raise Refused(409, message, "encoder")
    return found


@asynccontextmanager
async def _scratch(service: Service) -> AsyncIterator[Path]:
    with ExitStack() as stack:
        stored = await asyncio.to_thread(lambda: service.memories.stored)
        yield await asyncio.to_thread(stack.enter_context, scratch_folder(stored.local))
