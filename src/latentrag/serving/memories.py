"""The model and the memory of a server: exchanged while they are asked; versions, names and synced folders."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from latentrag.assemble import with_memory
from latentrag.errors import InputError, MemoryStoreError, UnknownVersionError
from latentrag.memory.filtered import num_seen_apart, seen_diff
from latentrag.memory.history import SERVED
from latentrag.memory.version_files import is_unwritable
from latentrag.model import filtered
from latentrag.serving.failures import busy
from latentrag.serving.options import MAX_COMPARED
from latentrag.serving.places import client_condition
from latentrag.serving.rights import rights_now
from latentrag.serving.schemas import ChangesRecord, DiffRecord, MemoryRecord, SyncedRecord
from latentrag.sync.journal import Journal, journals_in

if TYPE_CHECKING:
    from pathlib import Path

    from latentrag.conditions import Condition
    from latentrag.memory import FilteredMemory, Memory, ServedMemory
    from latentrag.memory.object_path import Folder
    from latentrag.rag import Rag

_LOG = logging.getLogger("latentrag.serving")
_KEPT = 2
"""Other versions that stay open, each with its index."""
_OPENED_AT_ONCE = 8
"""Other versions that may be waiting to be opened."""
_SHOWN_VERSIONS = 100
_KEPT_CONDITIONS = 64
"""Of requests, each with a model of its own, which shares all that is large."""


class Memories:
    """What is served, and the same model over other versions. Its methods read files: not for the event loop.

    Args:
        rag: the model over ``live``.
        load: loads the model anew, over ``live``; None: this one stays.
        where: what is retrieved satisfies this, too.
    """

    def __init__(
        self,
        rag: Rag,
        live: ServedMemory,
        load: Callable[[], Rag] | None = None,
        where: Condition | None = None,
    ) -> None:
        self.rag, self.live, self.where = rag, live, where
        self.loaded = datetime.now(UTC)
        """When the model was."""
        self.is_choice_kept = True
        """Whether the served version was chosen in the memory too, or none was."""
        self.load = load
        self._others: OrderedDict[int, Future[Rag]] = OrderedDict()
        self._narrowed: OrderedDict[tuple[int, str, str], tuple[Rag, Rag]] = OrderedDict()
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="latentrag-versions")
        self._lock = threading.Lock()
        self._changing = threading.Lock()

    @property
    def path(self) -> Folder:
        """Where it is on this machine, or in an object store."""
        return self.live.path

    @property
    def stored(self) -> Memory:
        """The version that is served as a memory in its folder: for other versions, their names, and documents.

        Raises: MemoryStoreError where this machine does not see the folder.
        """
        return self.live.snapshot().stored

    def rag_at(self, as_of: int | str) -> Future[Rag]:
        """The model over a version of the memory, which is opened once for all who ask for it, in a thread of its own.

        Raises: MemoryStoreError if there is none; Refused if many others are to be opened first. The future may raise
            MemoryStoreError, or EncoderMismatchError if the version's vectors are another encoder's.
        """
        if rights_now().where is not None and not _is_number(as_of):
            raise UnknownVersionError(f"no version {as_of!r}")
        number = self.live.snapshot().number_of(as_of)
        if number is None:
            number = self.stored.at("newest").version
        with self._lock:
            if number == self.live.version:
                current: Future[Rag] = Future()
                current.set_result(self.rag)
                return current
            self._forget_failed()
            if number not in self._others:
                if sum(not future.done() for future in self._others.values()) >= _OPENED_AT_ONCE:
                    raise busy("other versions of the memory are being opened; ask again later", retry_after_s=10)
                self._others[number] = self._opener.submit(self._opened, self.rag, number)
            self._others.move_to_end(number)
            for older in [key for key, future in self._others.items() if future.done()][:-_KEPT]:
                del self._others[older]
            return self._others[number]

    def narrowed(self, rag: Rag, where: str | None) -> Rag:
        """The model over those passages that the client may know of and that satisfy its condition.

        Requests share it, and are done together, if their keys see the same and their conditions are the same, and not
        otherwise.

        Raises: InputError for a condition that cannot be.
        """
        scope, condition = rights_now().where, None if where is None else client_condition(where)
        if scope is None and condition is None and self.where is None:
            return rag
        key = (id(rag), str(scope), str(condition))
        with self._lock:
            known = self._narrowed.get(key)
            if known is not None and known[0] is rag:
                self._narrowed.move_to_end(key)
                return known[1]
        memory: Any = rag.retriever.memory
        if scope is not None:
            memory = memory.only(scope)
        if condition is not None:
            memory = filtered(memory, condition)
        if self.where is not None:
            memory = memory.beside(self.where)
        found = with_memory(rag, memory)
        with self._lock:
            in_use = {id(self.rag), *(id(each.result()) for each in self._others.values() if _is_open(each))}
            for old in [each for each in self._narrowed if each[0] not in in_use]:
                del self._narrowed[old]
            self._narrowed[key] = rag, found
            if len(self._narrowed) > _KEPT_CONDITIONS:
                self._narrowed.popitem(last=False)
        return found

    def _forget_failed(self) -> None:
        for number, future in list(self._others.items()):
            if future.done() and not _is_open(future):
                del self._others[number]

    def _opened(self, rag: Rag, number: int) -> Rag:
        memory = self.live.snapshot().at(number)
        memory.warm_up()
        return with_memory(rag, memory)

    def close(self) -> None:
        """Open no more versions."""
        self._opener.shutdown(wait=False, cancel_futures=True)

    def use(self, which: int | str) -> None:
        """Serve a version from now on, and where the memory is opened next; ``newest`` chooses none.

        Where the memory cannot be written, this process alone serves it.

        Raises: MemoryStoreError or EncoderMismatchError; the version from before is served then.
        """
        with self._changing:
            number = self.live.snapshot().number_of(which)
            before = self.live.use("newest" if number is None else number)
            try:
                before.serve(number)
                self.is_choice_kept = True
            except BaseException as error:
                if not (isinstance(error, MemoryStoreError) and is_unwritable(error)):
                    self.live.use(before)
                    raise
                _LOG.warning("the choice of version %s is not kept: %s", which, error)
                self.is_choice_kept = False

    def seen(self, memory: Any) -> Any:
        """A version (or some of it) as far as the client may know of it and answers are made of it."""
        scope = rights_now().where
        if scope is not None:
            memory = memory.only(scope)
        return memory if self.where is None else memory.beside(self.where)

    def follow(self, before: Memory) -> None:
        """Serve the newest version from now on, if ``before``, which was the newest, is served until now because it
        was, and not because somebody has chosen it. Raises: as ``use``."""
        with self._changing:
            serving = self.live.snapshot()
            if serving.version == before.version and serving.chosen is None:
                self.live.use("newest")

    def exchange_model(self, load: Callable[[], Rag]) -> None:
        """Answer with another model from now on; requests that came before end with the old one.

        Raises: ModelError; EncoderMismatchError. The old model goes on then.
        """
        with self._changing:
            rag = load()
            with self._lock:
                self.rag, self.loaded = rag, datetime.now(UTC)
                self._others.clear()
                self._narrowed.clear()

    def tag(self, name: str, which: int | str | None) -> None:
        """Name a version; None: the newest. Raises: InputError or MemoryStoreError."""
        with self._changing:
            memory = self.stored
            memory.tag(name, memory.at(which).version)

    def untag(self, name: str) -> None:
        """Take a name away. Raises: MemoryStoreError if there is no such tag."""
        with self._changing:
            self.stored.untag(name)

    def difference(self, before: str, after: str, *, limit: int) -> DiffRecord:
        """What ``GET /v1/memory/diff`` answers.

        Args:
            limit: how many passages are named of each kind.
        Raises: UnknownVersionError; InputError where too many passages would have to be read; MemoryStoreError.
        """
        scope = rights_now().where
        if scope is not None and not (_is_number(before) and _is_number(after)):
            raise UnknownVersionError(f"no versions {before!r} and {after!r}")
        old, new = (self.stored.at(which) for which in (before, after))
        seen = None if scope is None else (old.only(scope), new.only(scope))
        reading = old.num_compared(new) if seen is None else num_seen_apart(*seen)
        if reading > MAX_COMPARED:
            of = "" if scope is not None else f" in files of {reading} passages"
            raise InputError(
                f"versions {old.version} and {new.version} differ{of}; this server compares {MAX_COMPARED} passages at "
                "most; run `latentrag index diff` where the memory is"
            )
        found = old.diff(new) if seen is None else seen_diff(*seen)
        there, gone = {*found.added[:limit], *found.changed[:limit]}, set(found.removed[:limit])
        if seen is None:
            titles = new.titles(there, against=old) | old.titles(gone, against=new)
        else:
            passages = seen[1].find([*there]) | seen[0].find([*gone])
            titles = {key: passage.title for key, passage in passages.items()}
        return {
            "from": found.before,
            "to": found.after,
            "added": _changes(found.added, titles, limit),
            "changed": _changes(found.changed, titles, limit),
            "removed": _changes(found.removed, titles, limit),
            "reencoded": found.reencoded,
            "encoders": {"from": old.card.encoder, "to": new.card.encoder},
        }

    def record(self) -> MemoryRecord:
        """What ``GET /v1/memory`` answers."""
        serving, scope = self.live.snapshot(), rights_now().where
        if scope is not None:
            return _seen(serving.only(scope), name=self.path.name)
        stored = serving.stored
        log, named = stored.at("newest").log(), stored.tags()
        named.pop(SERVED, None)
        return {
            "name": self.path.name,
            "version": serving.version,
            "passages": len(serving),
            "encoder": serving.card.encoder,
            "newest": log[-1].number,
            "follows_newest": serving.chosen is None and serving.version == log[-1].number,
            "choice_kept": self.is_choice_kept,
            "tags": named,
            "versions": [
                {
                    "version": each.number,
                    "time": each.time.isoformat(),
                    "passages": each.num_passages,
                    "change": each.change,
                    "tags": [name for name, number in named.items() if number == each.number],
                }
                for each in log[-_SHOWN_VERSIONS:]
            ],
            "synced": [_synced(stored, path) for path in journals_in(stored.local)],
        }


def _is_open(future: Future[Rag]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _is_number(which: int | str) -> bool:
    """Whether a version is named otherwise than by a tag or a date, which tell of others' work."""
    return isinstance(which, int) or which in {"newest", "served"} or (which.isascii() and which.isdigit())


def _synced(stored: Memory, notes: Path) -> SyncedRecord:
    name = unquote(notes.stem)
    digests = Journal.load(stored.local, name).in_memory
    return {
        "name": name,
        "files": len(digests),
        "passages": sum(digest.num_passages for digest in digests.values()),
        "time": datetime.fromtimestamp(notes.stat().st_mtime, UTC).isoformat(),
    }


def _seen(memory: FilteredMemory, *, name: str) -> MemoryRecord:
    """What a key hears that may know of these passages alone: versions and folders count others, too."""
    return {
        "name": name,
        "version": memory.version,
        "passages": len(memory),
        "encoder": memory.card.encoder,
        "newest": memory.version,
        "follows_newest": True,
        "choice_kept": True,
        "tags": {},
        "versions": [],
        "synced": [],
    }


def _changes(ids: Sequence[str], titles: Mapping[str, str], limit: int) -> ChangesRecord:
    return {"count": len(ids), "passages": [{"id": key, "title": titles[key]} for key in ids[:limit]]}
