"""Documents that are added and deleted while the server answers: one change at a time, one version for each."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch

from latentrag.corpus import Ledger, bounds_of, passages
from latentrag.errors import DataError, InputError
from latentrag.memory import FilteredTable, Memory, add
from latentrag.memory.documents import ids_of, summaries
from latentrag.memory.storage import storage_of
from latentrag.protocols import Part
from latentrag.records import FileRecord, file_record
from latentrag.serving.embeddings import AT_ONCE
from latentrag.serving.failures import Gone, Refused, busy
from latentrag.serving.options import MAX_ADDED, MAX_SUMMARISED
from latentrag.serving.rights import rights_now
from latentrag.types import Passage

if TYPE_CHECKING:
    from pathlib import Path

    from latentrag.corpus.reading import Passages
    from latentrag.ids import IdsUnder
    from latentrag.memory import Added
    from latentrag.memory.documents import Summary
    from latentrag.protocols import PassageEncoder
    from latentrag.serving.engine import Engine
    from latentrag.serving.memories import Memories

Stage = Literal["idle", "receiving", "reading", "deleting"]
_RETRY_S = 0.2


@dataclass(slots=True)
class Progress:
    """How far the change under way is.

    Attributes:
        num_files: that have arrived.
        num_read, num_encoded: passages so far.
        is_wanted: whether somebody still waits for it.
    """

    stage: Stage = "idle"
    num_files: int = 0
    num_read: int = 0
    num_encoded: int = 0
    is_wanted: bool = field(default=True, compare=False)

    def check(self) -> None:
        """Raises: Gone if nobody waits any more."""
        if not self.is_wanted:
            raise Gone


@dataclass(frozen=True, slots=True)
class AddedFiles:
    """What was added.

    Attributes:
        added: of the memory.
        files: what became of each.
        served: the version that is served now.
    """

    added: Added
    files: list[FileRecord]
    served: int


class Documents:
    """The documents of the newest version. Its methods read and write files: not for the event loop.

    Attributes:
        progress: of the change under way, or of none.
    """

    def __init__(self, memories: Memories, engine: Engine) -> None:
        self.progress = Progress()
        self._memories, self._engine = memories, engine
        self._changing = threading.Lock()
        self._known: tuple[tuple[str, int], list[Summary]] | None = None

    @contextmanager
    def changing(self, stage: Stage) -> Iterator[Progress]:
        """Be the only one that changes documents through this server. Raises: Refused if somebody does already."""
        if not self._changing.acquire(blocking=False):
            raise busy("documents are being added or deleted; try again when that is done", retry_after_s=5)
        try:
            self.progress = Progress(stage)
            yield self.progress
        finally:
            self.progress = Progress()
            self._changing.release()

    def seen(self) -> Memory | FilteredTable:
        """The newest version, as far as the client may know of it and answers are made of it."""
        found: Memory | FilteredTable = self._memories.seen(self._memories.stored.at("newest"))
        return found

    def require_whole(self) -> None:
        """Raises: Refused where some passages are hidden: what is added could take the place of one of them."""
        if rights_now().where is not None or self._memories.where is not None:
            raise Refused(
                403,
                "some passages are hidden here by a condition (where=, --where), and a new document could take the "
                "place of one of them; add it with a key that sees all passages",
                "forbidden",
            )

    def listed(self) -> tuple[int, list[Summary]]:
        """Version and documents. Raises: InputError for a memory that is too large to be listed."""
        memory = self.seen()
        if len(memory) > MAX_SUMMARISED:
            raise InputError(
                f"the memory has {len(memory)} passages; this server lists the documents of {MAX_SUMMARISED} at most"
            )
        if isinstance(memory, FilteredTable):
            return memory.version, summaries(memory)
        known, key = self._known, (memory.identity, memory.version)
        if known is None or known[0] != key:
            known = self._known = key, summaries(memory)
        return memory.version, known[1]

    def add(self, files: Sequence[Path], encoder: PassageEncoder, progress: Progress) -> AddedFiles:
        """Read files as `index add --upsert` does, encode what is new, commit one version, and serve it if the newest
        is served.

        Raises: DataError for a file that cannot be read, or if no file has any text; MemoryStoreError;
            EncoderMismatchError; Refused; Gone if nobody waits any more. Nothing is committed then.
        """
        newest = self._memories.stored.at("newest")
        newest.card.check_passage_encoder(encoder)
        ledgers: list[Ledger] = []
        folder = f"{files[0].parent}{os.sep}"
        found = passages(files, bounds=lambda: bounds_of(encoder), on_ledger=ledgers.append, workers=1)
        queued = _QueuedEncoder(encoder, self._engine, progress)
        try:
            with closing(found):
                added = add(
                    storage_of(newest.path),
                    _Uploaded(found, folder, progress),
                    lambda: queued,
                    upsert=True,
                    passages_per_commit=MAX_ADDED + 1,  # one version; what is there, word for word, is left alone
                )
        except DataError as error:
            raise DataError(str(error).replace(folder, "")) from error
        self._memories.follow(newest)
        records = [file_record(replace(each, file=each.file.removeprefix(folder))) for each in ledgers]
        return AddedFiles(added, records, self._memories.live.version)

    def delete(self, documents: Collection[str]) -> tuple[int, int, int]:
        """Commit a version without these documents, as far as the client may know of them, and serve it if the newest
        is served.

        Returns: the version, the one that is served, how many passages went.
        Raises: Refused for a document that is not there; MemoryStoreError. Nothing is committed then.
        """
        memory = self.seen()
        newest = memory.base if isinstance(memory, FilteredTable) else memory
        unwanted: list[str] = []
        for each in dict.fromkeys(documents):
            ids = ids_of(memory, each)
            if not ids:
                raise Refused(
                    404,
                    f"there is no document {each[:200]!r} to delete; GET /api/documents lists them; what `latentrag "
                    "index sync` keeps is deleted in its folder",
                    "document",
                )
            unwanted += ids
        after = newest.delete(unwanted)
        self._memories.follow(newest)
        return after.version, self._memories.live.version, len(unwanted)


class _Uploaded(Iterable[Passage]):
    """Passages of files in a scratch folder, whose source is the file's name. See ``protocols.FromFiles``."""

    def __init__(self, found: Passages, folder: str, progress: Progress) -> None:
        self._found, self._folder, self._progress = found, folder, progress

    def __iter__(self) -> Iterator[Passage]:
        return (self._named(passage) for passage in self._found)

    def beside(self, ids_under: IdsUnder, fetch: Callable[[Collection[str]], Iterable[Passage]]) -> Iterator[Part]:
        """See ``protocols.FromFiles``. Raises: Refused for too many passages; Gone if nobody waits any more."""
        for part in self._found.beside(ids_under, fetch):
            yield Part([self._named(passage) for passage in part.passages], part.gone)

    def _named(self, passage: Passage) -> Passage:
        self._progress.check()
        self._progress.num_read += 1
        if self._progress.num_read > MAX_ADDED:
            message = f"the files have more than {MAX_ADDED} passages; send fewer at once, or run `latentrag index add`"
            raise Refused(413, message, "too_large")
        is_path = passage.source.startswith(self._folder)
        return replace(passage, source=passage.source.removeprefix(self._folder)) if is_path else passage


class _QueuedEncoder:
    """An encoder that waits for its turn with the questions, a slice at a time."""

    def __init__(self, encoder: PassageEncoder, engine: Engine, progress: Progress) -> None:
        self._encoder, self._engine, self._progress = encoder, engine, progress

    @property
    def name(self) -> str:
        return self._encoder.name

    @property
    def fingerprint(self) -> str:
        return self._encoder.fingerprint

    @property
    def dimension(self) -> int:
        return self._encoder.dimension

    @property
    def max_tokens(self) -> int:
        return self._encoder.max_tokens

    @property
    def scale(self) -> float:
        return self._encoder.scale

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> torch.Tensor:
        """As ``PassageEncoder``. Raises: Gone if nobody waits any more; Refused if the server is stopping."""
        del progress
        parts = [torch.empty(0, self.dimension)]
        for start in range(0, len(passages), AT_ONCE):
            part = passages[start : start + AT_ONCE]
            parts.append(self._encoded(part))
            self._progress.num_encoded += len(part)
        return torch.cat(parts)

    def _encoded(self, part: Sequence[Passage]) -> torch.Tensor:
        while True:
            self._progress.check()
            try:
                job = self._engine.embed(lambda _: self._encoder.encode_passages(part), [each.text for each in part])
            except Refused as refused:
                if refused.status != 429:
                    raise
                time.sleep(_RETRY_S)  # questions come first
                continue
            vectors: torch.Tensor = job.result.result()
            return vectors
