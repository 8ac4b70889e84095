"""The one way by which passages enter a memory: encoded, written to files, committed in parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from latentrag import io
from latentrag.errors import DataError, LatentRagError, ModelError, ShapeError
from latentrag.memory import table as table_module
from latentrag.memory.schema import columns_needed
from latentrag.memory.table import Staged, Table
from latentrag.protocols import FromFiles, Part
from latentrag.types import Passage

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from latentrag.memory.memory import Memory
    from latentrag.protocols import PassageEncoder

PASSAGES_PER_ENCODING = 1_024
"""How many passages the encoder gets at a time: enough to sort by length, few enough to stream."""


class Writer:
    """Gathers passages and commits them as versions. Made by ``Memory.writing``: nobody else writes meanwhile.

    Attributes:
        table: the newest version.
        num_pending: passages that the next commit adds.
    """

    def __init__(
        self,
        table: Table,
        encoder: Callable[[], PassageEncoder],
        *,
        on_passages: Callable[[int], None] | None = None,
        staged: Staged | None = None,
        on_staged: Callable[[Staged, int], None] | None = None,
        rows_per_file: int | None = None,
    ) -> None:
        """
        Args:
            encoder: loads the passage encoder; called if something has to be encoded.
            on_passages: called with the number of passages that got their vectors since the last call.
            staged: what was put before and is to be committed first.
            on_staged: called with what was written to files, and how many rows that is.
            rows_per_file: None: as many as a file has best.
        """
        self.table = table
        self.num_pending = 0
        self._load_encoder = encoder
        self._encoder: PassageEncoder | None = None
        self._on_passages = on_passages or (lambda _: None)
        self._rows: list[pa.RecordBatch] = []
        self._staged = staged or Staged()
        self._on_staged = on_staged or (lambda *_: None)
        self._rows_per_file = rows_per_file

    def put(self, passages: Sequence[Passage], vectors: Mapping[int, npt.NDArray[np.float16]] | None = None) -> None:
        """Encode passages and write them; they are in no version before the next commit.

        Args:
            vectors: place in ``passages`` → d(z), (D,), of those that need not be encoded.
        Raises: EncoderMismatchError; ModelError or ShapeError for vectors, DataError for passages that cannot be kept.
        """
        if not passages:
            return
        known = vectors or {}
        of_all = np.empty((len(passages), self.table.card.dimension), np.float16)
        for place, vector in known.items():
            of_all[place] = vector
        if known:
            self._on_passages(len(known))
        others = [place for place in range(len(passages)) if place not in known]
        for start in range(0, len(others), PASSAGES_PER_ENCODING):
            places = others[start : start + PASSAGES_PER_ENCODING]
            of_all[places] = fp16_vectors([passages[place] for place in places], self._checked_encoder())
            self._on_passages(len(places))
        table = self.table.with_columns(columns_needed(passages))
        if table is not self.table:
            self._stage()  # rows without the new columns
            self.table = table
        self._rows.append(self.table.record_batch(passages, of_all))
        self.num_pending += len(passages)
        if sum(map(len, self._rows)) >= (self._rows_per_file or table_module.ROWS_PER_FRAGMENT):
            self._stage()

    def commit(self, *, removed_ids: Collection[str] = (), change: str) -> None:
        """One new version, all or nothing: without ``removed_ids``, then with all that was put since the last commit.

        Ids to be replaced have to be among ``removed_ids``. Raises: MemoryStoreError.
        """
        self._stage()
        self._committed(self.table.commit(self._staged, removed_ids=removed_ids, change=change))

    def replace_all(self, *, change: str) -> None:
        """One new version with nothing but what was put since the last commit. Raises: MemoryStoreError."""
        self._stage()
        self._committed(self.table.replace_all(self._staged, change=change))

    def stage(self) -> Staged:
        """What was put since the last commit, in files, for whichever process commits it. Raises: MemoryStoreError."""
        self._stage()
        return self._staged

    def _stage(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            staged = self.table.stage(rows)
            self._staged += staged
            self._on_staged(staged, sum(map(len, rows)))

    def _committed(self, table: Table) -> None:
        self.table, self._staged, self.num_pending = table, Staged(), 0

    def _checked_encoder(self) -> PassageEncoder:
        if self._encoder is None:
            encoder = self._load_encoder()
            self.table.card.check_passage_encoder(encoder)
            self._encoder = encoder
        return self._encoder


class KnownVectors:
    """Vectors of a memory that are written to it once more, so that they need not be computed again."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._intact: set[tuple[str, ...]] = set()

    def of(self, row_ids: Sequence[int]) -> npt.NDArray[np.float16]:
        """The vectors with these row ids, in this order, repeats allowed: (n, D).

        Raises: MemoryStoreError at a file with one of them that is not as it was written.
        """
        self._intact.update(self._table.require_as_written(row_ids, besides=self._intact))
        return self._table.vectors_of(np.asarray(row_ids, np.int64))


@dataclass(frozen=True, slots=True)
class Added:
    """What ``add_passages`` did.

    Attributes:
        memory: at its newest version.
        unchanged: passages that the memory had already, word for word.
        removed: passages that their documents have no more.
    """

    memory: Memory
    added: int
    replaced: int
    unchanged: int
    removed: int


def add_passages(
    memory: Memory,
    passages: Iterable[Passage],
    encoder: Callable[[], PassageEncoder],
    *,
    upsert: bool = False,
    passages_per_commit: int | None = None,
    progress: bool = False,
) -> Added:
    """Encode passages and commit them. They are streamed; the ids of all are in RAM meanwhile, about 100 bytes each.

    Args:
        encoder: loads the passage encoder; called if something has to be encoded.
        passages: those of files that ``corpus.passages`` gives keep the ids and the cuts that the memory has.
        upsert: a passage replaces the one that has its id; what a document has no more is removed.
        passages_per_commit: None: one version, all or nothing. Otherwise a version for about so many passages; those
            that the memory has already, word for word, are left alone, so that a run which was killed can be repeated
            and goes on after its last commit. What was committed stays if a later passage fails.
    Raises: DataError if there are none, or an id is there already, is empty or comes twice; EncoderMismatchError;
        MemoryStoreError if this is not the newest version.
    """
    total = len(passages) if isinstance(passages, Sized) else None
    with memory.writing(encoder) as writer, io.progress("encoding passages", total, wanted=progress) as bar:
        adding = _Adding(memory, writer, upsert=upsert, resumes=passages_per_commit is not None)
        try:
            for part in _parts(passages, memory, at_most=passages_per_commit):
                adding.put(part)
                if passages_per_commit is not None and writer.num_pending >= passages_per_commit:
                    adding.commit()
                bar.advance(len(part.passages))
            adding.commit()
        except LatentRagError as error:
            if adding.added or adding.replaced:
                error.add_note(f"the first {adding.added + adding.replaced} passages were committed and stay")
            raise
        of_adding = (adding.added, adding.replaced, adding.unchanged, adding.removed)
        return Added(memory.with_table(writer.table), *of_adding)


def _parts(passages: Iterable[Passage], memory: Memory, *, at_most: int | None) -> Iterator[Part]:
    """As many passages at a time as the encoder gets, and at most so many, with what is gone from their documents."""
    if not isinstance(passages, FromFiles):
        yield from (Part(batch) for batch in batches(passages, at_most=at_most))
        return
    size = min(PASSAGES_PER_ENCODING, at_most or PASSAGES_PER_ENCODING)
    pending, gone = list[Passage](), list[str]()
    for part in passages.beside(memory.ids_under, lambda ids: memory.find(list(ids)).values()):
        pending += part.passages
        gone += part.gone
        while len(pending) >= size:
            yield Part(pending[:size], gone)
            pending, gone = pending[size:], []
    if pending or gone:
        yield Part(pending, gone)


class _Adding:
    """One call of ``add_passages``: what it has seen, and what the next commit replaces and removes."""

    def __init__(self, memory: Memory, writer: Writer, *, upsert: bool, resumes: bool) -> None:
        self.added = self.replaced = self.unchanged = self.removed = 0
        self._memory = memory
        self._writer = writer
        self._upsert = upsert
        self._resumes = resumes
        self._vectors = KnownVectors(memory.table)
        self._seen: set[str] = set()
        self._gone: set[str] = set()
        self._replaced_ids: list[str] = []
        self._removed_ids: list[str] = []

    def put(self, part: Part) -> None:
        """Raises: DataError for an id that is empty, comes twice or is taken."""
        for passage in part.passages:
            if not passage.id:
                raise DataError(f"a passage of {passage.source or 'the input'} has no id; give each passage one")
            if passage.id in self._seen:
                raise DataError(f"passage {passage.id!r} comes twice in the input; give each passage its own id")
            self._seen.add(passage.id)
        present = self._memory.rows([passage.id for passage in part.passages])
        for key in self._gone.intersection(present):
            del present[key]
        old = {key: passage for key, (_, passage) in present.items()}
        kept = [passage for passage in part.passages if not (self._resumes and old.get(passage.id) == passage)]
        gone = [key for key in dict.fromkeys(part.gone) if key not in self._seen and key not in self._gone]
        taken = [*gone, *(passage.id for passage in kept if passage.id in old)]
        if taken and not self._upsert:
            raise DataError(f"passage {taken[0]!r} is in the memory already; use upsert to replace it")
        self.unchanged += len(part.passages) - len(kept)
        self._gone.update(gone)
        self._removed_ids += gone
        self._replaced_ids += [passage.id for passage in kept if passage.id in old]
        rows = {place: present[z.id][0] for place, z in enumerate(kept) if z.id in old and _reads_as(z, old[z.id])}
        self._writer.put(kept, dict(zip(rows, self._vectors.of(list(rows.values())), strict=True)) if rows else None)

    def commit(self) -> None:
        """Raises: DataError if there was no passage at all."""
        if not self._seen and not self._gone:
            raise DataError("no passages in the input; give at least one document that has text")
        replaced, removed = len(self._replaced_ids), len(self._removed_ids)
        if not self._writer.num_pending and not removed:
            return
        added = self._writer.num_pending - replaced
        change = f"added {added}, replaced {replaced}" if self._upsert else f"added {added}"
        change += f", removed {removed}" if removed else ""
        self._writer.commit(removed_ids=[*self._replaced_ids, *self._removed_ids], change=change)
        self.added += added
        self.replaced += replaced
        self.removed += removed
        self._replaced_ids, self._removed_ids = [], []


def _reads_as(passage: Passage, other: Passage) -> bool:
    """Whether an encoder reads the same."""
    return (passage.title, passage.text) == (other.title, other.text)


def fp16_vectors(batch: Sequence[Passage], encoder: PassageEncoder) -> npt.NDArray[np.float16]:
    """d(z) as the table keeps it, (n, D)."""
    vectors = np.asarray(encoder.encode_passages(batch).detach().cpu(), dtype=np.float32)
    if vectors.shape != (len(batch), encoder.dimension):
        raise ShapeError(
            f"{encoder.name} gave vectors of shape {vectors.shape} for {len(batch)} passages, "
            f"needed ({len(batch)}, {encoder.dimension}); correct the encoder"
        )
    with np.errstate(over="ignore"):  # an overflow is reported below, with the passage's id
        kept = vectors.astype(np.float16)
    bad = ~np.isfinite(kept).all(axis=1)
    if bad.any():
        raise ModelError(
            f"{encoder.name} gave passage {batch[int(bad.argmax())].id!r} a vector that is not finite in fp16; "
            "check the encoder's weights or let it normalise its vectors"
        )
    return kept


def batches(passages: Iterable[Passage], *, at_most: int | None = None) -> Iterator[list[Passage]]:
    """As the encoder gets them; ``at_most`` so many at a time."""
    size = min(PASSAGES_PER_ENCODING, at_most or PASSAGES_PER_ENCODING)
    stream = iter(passages)
    while batch := list(islice(stream, size)):
        yield batch
