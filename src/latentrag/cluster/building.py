"""Passages encoded by many processes and committed at once: row for row what one process would have written.

One process, the driver, reads the files and alone may change the memory. It cuts the stream of passages into units; an
actor encodes a unit, in the batches that one process would make of it, and writes the rows with the table's own writer.
What is written is noted; a run that was killed reads the files again and encodes what is not noted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentrag import io
from latentrag.addresses import memory_folder
from latentrag.cluster.connection import connect
from latentrag.cluster.shard import Refused, answers
from latentrag.errors import DataError, InputError, MemoryStoreError
from latentrag.memory import Memory, version_files
from latentrag.memory.reencoding import UnitNotes, WrittenUnit, note_of, staged_of
from latentrag.memory.schema import LATER_COLUMNS
from latentrag.memory.table import Staged, Table
from latentrag.memory.writer import PASSAGES_PER_ENCODING, Writer
from latentrag.options import EncoderOptions
from latentrag.protocols import FromFiles

if TYPE_CHECKING:
    import numpy.typing as npt

    from latentrag.protocols import PassageEncoder
    from latentrag.types import Passage

PASSAGES_PER_UNIT = 8 * PASSAGES_PER_ENCODING
"""What a kill costs at most, for each actor. A multiple of what an encoder gets at a time: vectors depend on it."""
UNITS_PER_ACTOR = 2
"""One that it encodes, and one that waits."""
_TAKEN = "is in the memory already; build a new memory, or replace it with `latentrag index add --upsert`"
TRIES = 3
"""How often a unit is begun again whose actor died."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """What the actors do.

    Attributes:
        source: of the passage encoder, as ``assemble.load_passage_encoder`` takes it, on every node.
        device: where each actor computes.
    """

    path: str
    version: int
    source: str
    device: str
    options: EncoderOptions


class Encoder:
    """Encodes units and writes them; the body of an actor."""

    def __init__(self, work: Encoding) -> None:
        self._work = work

    @answers
    def write(self, passages: Sequence[Passage]) -> dict[str, Any]:
        """A unit as a note. Raises: EncoderMismatchError; MemoryStoreError; ModelError; DataError."""
        writer = Writer(self._table, lambda: self._encoder, rows_per_file=len(passages))
        writer.put(passages)
        return note_of(writer.stage(), len(passages))

    def pid(self) -> int:
        """Of the process that it runs in."""
        return os.getpid()

    @cached_property
    def _table(self) -> Table:
        return Table.open(self._work.path, self._work.version)

    @cached_property
    def _encoder(self) -> PassageEncoder:
        from latentrag.assemble import load_passage_encoder

        return load_passage_encoder(self._work.source, device=self._work.device, encoding=self._work.options)


@dataclass(frozen=True, slots=True)
class Built:
    """What ``build`` or ``add`` did.

    Attributes:
        memory: at its newest version.
        added: passages.
        resumed: how many of them an earlier run had encoded.
    """

    memory: Memory
    added: int
    resumed: int


def build(
    path: str | Path,
    files: str | Path | Sequence[str | Path],
    *,
    encoder: str,
    words: int = 100,
    options: EncoderOptions | None = None,
    device: str = "auto",
    actors: int = 1,
    gpus_per_actor: float = 0,
    progress: bool = False,
) -> Built:
    """``add`` the passages of files and folders, as ``corpus.passages`` cuts them for an encoder.

    Args:
        encoder: a folder, under the same path on every node, a hub id, or demo.
        words: length of a passage.
    Raises: as ``add``; DataError for a file that cannot be read; ModelError.
    """
    from latentrag.assemble import load_passage_encoder
    from latentrag.corpus import bounds_of
    from latentrag.corpus import passages as passages_of

    @cache
    def loaded() -> PassageEncoder:
        # Beside actors that have the GPUs this process counts tokens alone.
        return load_passage_encoder(encoder, device="cpu" if gpus_per_actor else device, encoding=options)

    with closing(passages_of(files, words=words, bounds=lambda: bounds_of(loaded()))) as found:
        return add(
            path,
            found,
            loaded,
            source=str(Path(encoder).absolute()) if Path(encoder).is_dir() else encoder,
            options=options,
            device=device,
            actors=actors,
            gpus_per_actor=gpus_per_actor,
            progress=progress,
        )


def add(
    path: str | Path,
    passages: Iterable[Passage],
    encoder: Callable[[], PassageEncoder],
    *,
    source: str,
    options: EncoderOptions | None = None,
    device: str = "auto",
    actors: int = 1,
    gpus_per_actor: float = 0,
    passages_per_unit: int = PASSAGES_PER_UNIT,
    progress: bool = False,
) -> Built:
    """Add passages to a memory, which is made if it is not there, in one version. Killed, the same call goes on.

    The rows are those of ``memory.add``, in the same order, with the same vectors where the nodes compute alike.

    Args:
        path: of the memory, which every node sees under this path.
        passages: streamed; 8 bytes of RAM each.
        encoder: loads the passage encoder in this process, which makes the memory's card.
        source: the same encoder as actors load it.
        options: how it is used.
        device: where actors compute; with GPUs of their own "auto" is theirs.
        actors: processes that encode, each with one CPU.
        gpus_per_actor: that Ray reserves for each.
        passages_per_unit: a multiple of 1,024.
    Raises: InputError for options that cannot be, or more actors than there is room for; DataError if there are no
        passages, or an id is empty, comes twice or is in the memory already; EncoderMismatchError if the memory, or a
        node, has another encoder; MemoryStoreError.
        What was encoded stays for the next call.
    """
    if actors < 1 or gpus_per_actor < 0:
        raise InputError(f"actors={actors}, gpus_per_actor={gpus_per_actor:g}; needed 1 or more actors, 0 or more GPUs")
    if passages_per_unit < 1 or passages_per_unit % PASSAGES_PER_ENCODING:
        raise InputError(f"passages_per_unit={passages_per_unit}; needed a multiple of {PASSAGES_PER_ENCODING}")
    connect()
    path = memory_folder(path).absolute()
    is_new = version_files.is_free(path)
    memory = Memory.create(path, encoder()) if is_new else Memory.open(path)
    memory.card.check_passage_encoder(encoder())
    try:
        with memory.table.writing(), io.progress("encoding passages", None, wanted=progress) as bar:
            table = memory.table.with_columns(LATER_COLUMNS)
            run = _Run(memory, table, UnitNotes(table))
            work = Encoding(str(path), table.version, source, device, options or EncoderOptions())
            with _Pool(work, actors, gpus_per_actor) as pool:
                run.encode(_new(passages, memory), passages_per_unit, pool, bar.advance)
            committed = run.commit()
            version_files.remove_orphans(table.storage)  # of actors that died
    except BaseException:
        if is_new:
            _remove_if_unused(memory)
        raise
    return Built(memory.with_table(committed), run.num_passages, run.num_resumed)


def _remove_if_unused(memory: Memory) -> None:
    """A memory that was made, and into which nothing was written."""
    with memory.table.storage.lock():
        path = memory.local
        if version_files.newest_version(path) == memory.version and not version_files.noted(path)[1:]:
            shutil.rmtree(path)


@dataclass(slots=True)
class _Run:
    """One call of ``add``."""

    memory: Memory
    table: Table
    notes: UnitNotes
    num_passages: int = 0
    num_resumed: int = 0
    _written: dict[int, WrittenUnit] = field(default_factory=dict)
    _hashes: list[npt.NDArray[np.uint64]] = field(default_factory=list)

    def encode(self, passages: Iterable[Passage], size: int, pool: _Pool, on_passages: Callable[[int], None]) -> None:
        """Have every unit written that is not. Raises: as ``add``."""
        finished = self.notes.begin()
        for number, unit in enumerate(_units(passages, size)):
            self._check_ids(unit)
            digest = _digest(unit)
            self.num_passages += len(unit)
            if number in finished and finished[number].digest == digest:
                self._written[number] = finished[number]
                self.num_resumed += len(unit)
                on_passages(len(unit))
                continue
            for done in pool.submit(number, digest, unit):
                self._note(done, on_passages)
        for done in pool.rest():
            self._note(done, on_passages)
        self._check_all_ids()

    def commit(self) -> Table:
        """One version with all units in their order. Raises: DataError if there are none; MemoryStoreError."""
        num_rows = sum(unit.num_rows for unit in self._written.values())
        if not self.num_passages:
            raise DataError("no passages in the input; give at least one document that has text")
        if num_rows != self.num_passages:
            raise MemoryStoreError(f"{num_rows} of {self.num_passages} passages were written; run the same again")
        staged = Staged()
        for number in range(len(self._written)):
            staged += self._written[number].staged
        committed = self.table.commit(staged, change=f"added {num_rows}")
        self.notes.end()
        return committed

    def _note(self, done: tuple[int, WrittenUnit], on_passages: Callable[[int], None]) -> None:
        number, unit = done
        self.notes.add(number, unit)
        self._written[number] = unit
        on_passages(unit.num_rows)

    def _check_ids(self, unit: Sequence[Passage]) -> None:
        """Raises: DataError for an id that is empty, or taken."""
        ids = [passage.id for passage in unit]
        if "" in ids:
            source = unit[ids.index("")].source or "the input"
            raise DataError(f"a passage of {source} has no id; give each passage one")
        self._hashes.append(np.frombuffer(b"".join(map(_hash, ids)), np.uint64))
        if len(self.memory) and (taken := self.memory.find(ids)):
            raise DataError(f"passage {next(iter(taken))!r} {_TAKEN}")

    def _check_all_ids(self) -> None:
        """Raises: DataError for an id that comes twice."""
        if not self._hashes:
            return
        hashes = np.sort(np.concatenate(self._hashes))
        twice = hashes[1:][hashes[1:] == hashes[:-1]]
        if len(twice):
            seen: set[str] = set()
            for key in self._ids_with(twice):
                if key in seen:
                    raise DataError(f"passage {key!r} comes twice in the input; give each passage its own id")
                seen.add(key)

    def _ids_with(self, hashes: npt.NDArray[np.uint64]) -> Iterator[str]:
        """The ids that have one of these hashes, from the files of the units."""
        wanted = {value.tobytes() for value in hashes}
        for number, of_unit in enumerate(self._hashes):
            if np.isin(of_unit, hashes).any():
                for name in self._written[number].staged.checksums:
                    for passage in version_files.passages_of_file(self.table.storage, name):
                        if _hash(passage.id) in wanted:
                            yield passage.id


def _new(passages: Iterable[Passage], memory: Memory) -> Iterator[Passage]:
    """Passages for a memory, which may have others of the same files. Raises: DataError if those would have to go."""
    if not isinstance(passages, FromFiles):
        yield from passages
        return
    for part in passages.beside(memory.ids_under, lambda ids: memory.find(list(ids)).values()):
        if part.gone:
            raise DataError(f"passage {part.gone[0]!r} {_TAKEN}")
        yield from part.passages


def _units(passages: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
    stream = iter(passages)
    while unit := list(islice(stream, size)):
        yield unit


def _digest(unit: Sequence[Passage]) -> str:
    """Equal passages, equal text."""
    digest = hashlib.sha256()
    for passage in unit:
        digest.update(json.dumps(asdict(passage), ensure_ascii=False, sort_keys=True, default=dict).encode() + b"\n")
    return digest.hexdigest()


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()


def _require_room(there: Mapping[str, float], num_actors: int, gpus_per_actor: float) -> None:
    """Raises: InputError if not all actors can run at once: units would wait for one that never starts."""
    for what, each in (("CPU", 1.0), ("GPU", gpus_per_actor)):
        needed, found = num_actors * each, there.get(what, 0.0)
        if needed > found:
            raise InputError(
                f"{num_actors} actors need {needed:g} {what}s, the cluster has {found:g}; start fewer, or add nodes"
            )


class _Pool:
    """Actors that write units, each a few at a time. Ray begins a unit again whose actor died."""

    def __init__(self, work: Encoding, num_actors: int, gpus_per_actor: float) -> None:
        import ray

        _require_room(ray.cluster_resources(), num_actors, gpus_per_actor)
        made: Any = ray.remote(Encoder)
        made = made.options(
            num_cpus=1,
            num_gpus=gpus_per_actor,
            max_restarts=-1,
            max_task_retries=TRIES,
            scheduling_strategy="SPREAD",
        )
        self._actors = [made.remote(work) for _ in range(num_actors)]
        self._asked: dict[Any, tuple[int, int, str]] = {}

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def submit(self, number: int, digest: str, unit: Sequence[Passage]) -> Iterator[tuple[int, WrittenUnit]]:
        """Units that are written by now; waits for one while all actors are busy."""
        while len(self._asked) >= UNITS_PER_ACTOR * len(self._actors):
            yield self._next()
        busy = [each for each, _, _ in self._asked.values()]
        actor = min(range(len(self._actors)), key=busy.count)
        self._asked[self._actors[actor].write.remote(unit)] = actor, number, digest

    def rest(self) -> Iterator[tuple[int, WrittenUnit]]:
        """All others, as they are written."""
        while self._asked:
            yield self._next()

    def _next(self) -> tuple[int, WrittenUnit]:
        """Raises: what an actor refuses; MemoryStoreError if actors die again and again."""
        import ray

        (ready, *_), _ = ray.wait(list(self._asked), num_returns=1)
        _, number, digest = self._asked.pop(ready)
        try:
            note = ray.get(ready)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            raise MemoryStoreError(
                f"unit {number + 1} of the passages was begun {TRIES + 1} times, and each time its actor died; look "
                "into Ray's logs (often there is too little memory), then run the same again"
            ) from error
        if isinstance(note, Refused):
            raise note.exception()
        return number, WrittenUnit(digest, note["rows"], staged_of(note))
