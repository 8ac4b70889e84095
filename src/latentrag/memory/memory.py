"""The memory as its users hold it: one version, searched by an index; changes are commits, all or nothing."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentrag.errors import DataError, IndexDamagedError, InputError, MemoryStoreError, ModelError, ShapeError
from latentrag.memory.indexes import BuiltIndex, Hits, Index, IndexSupply, build_index
from latentrag.memory.log import Version
from latentrag.memory.manifest import Manifest
from latentrag.memory.table import Table
from latentrag.memory.versions import resolve
from latentrag.types import Passage, SearchResult

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa
    from lance.fragment import FragmentMetadata

    from latentrag.protocols import PassageEncoder, QueryEncoder

PASSAGES_PER_ENCODING = 1_024
"""How many passages the encoder gets at a time: enough to sort by length, few enough to stream."""


class Memory:
    """A non-parametric memory (Lewis et al. 2020, §2.2) at one version.

    An object never changes: ``add``, ``upsert``, ``delete`` and ``reencode`` commit a new version and return it as a
    new ``Memory``, while searches of the old one go on undisturbed. Only the newest version can be changed, by one
    writer at a time. The index is loaded or built on the first search; versions made from one another share it.
    """

    def __init__(self, table: Table, indexes: IndexSupply | None = None) -> None:
        self._table = table
        self._num_passages = len(table)
        self._indexes = IndexSupply() if indexes is None else indexes
        self._index: Index | None = None
        self._index_lock = threading.Lock()

    @classmethod
    def create(cls, path: str | Path, encoder: PassageEncoder) -> Memory:
        """An empty memory in a new folder, for the vectors of ``encoder``.

        Raises: MemoryStoreError if something is at ``path`` already.
        """
        return cls(Table.create(Path(path), Manifest.of(encoder)))

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        version: int | str | None = None,
        index: str = "auto",
        index_folder: str | Path | None = None,
    ) -> Memory:
        """The memory at ``version``, or at its newest.

        Where the newest cannot be read, the newest that can is opened, with a warning.

        Args:
            version: a number; a tag; "newest" (or None); "served", the one that ``index use`` has chosen; or a moment
                in ISO 8601, for what was the newest then.
            index: how it is searched. "auto": by the index that was built for it; where none was, "flat" (exactly, in
                RAM, 4·N·D bytes) up to 200,000 passages, else "ivf-rabitq". What is not there is built on the first
                search: see ``build_index``.
            index_folder: where its indexes lie, if not in the memory: a folder that no other memory uses, on a faster
                disk, say. `forget` does not reach it: remove it yourself afterwards.
        Raises: MemoryStoreError if there is none, if it is something else, or if it has no such version; InputError
            for an index that does not exist.
        """
        indexes = IndexSupply(index, None if index_folder is None else Path(index_folder))
        return cls(Table.open(Path(path), resolve(Path(path), version)), indexes)

    def at(self, version: int | str | None) -> Memory:
        """Another version of this memory, searched in the same way; the two share an index where that serves both.

        Args: version: as for ``open``.
        Raises: as ``open``.
        """
        table = Table.open(self.path, resolve(self.path, version))
        return Memory(table, self._indexes if self._is_there() else self._indexes.anew())

    def _is_there(self) -> bool:
        """Whether the path still holds this version, and not that of another memory in its place."""
        try:
            now = Table.open(self.path, self.version)
        except MemoryStoreError:
            return False
        return len(self) > 0 and now.fragments().keys() == self._table.fragments().keys()

    @property
    def path(self) -> Path:
        return self._table.path

    @property
    def version(self) -> int:
        """Counts commits from 1, the empty memory."""
        return self._table.version

    @property
    def manifest(self) -> Manifest:
        """What encoded the passages."""
        return self._table.manifest

    def __len__(self) -> int:
        return self._num_passages

    def __repr__(self) -> str:
        return f"Memory({str(self.path)!r}, version={self.version}, passages={len(self)})"

    def log(self) -> list[Version]:
        """Every version up to this one, oldest first."""
        return self._table.log()

    def passages(self) -> Iterator[Passage]:
        """Every passage in the order of the table, streamed."""
        return self._table.passages()

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """The passages with these ids, in this order. Raises: DataError for ids that are not there."""
        found = self._table.find(set(ids))
        _require_known(ids, found, self.path)
        return [found[key] for key in ids]

    # Searching

    def snapshot(self) -> Memory:
        """This memory, which never changes."""
        return self

    def check(self, query_encoder: QueryEncoder) -> None:
        """Refuse a query encoder whose vectors do not live in the space of this memory's; warn if unknown.

        Raises: EncoderMismatchError.
        """
        self.manifest.check_query_encoder(query_encoder)

    def search(self, q: npt.NDArray[np.float32], k: int) -> SearchResult:
        """The K passages with the largest inner products d(z)·q; equal scores as they were added.

        With the index flat these are the K largest of all; the others may miss some. The scores are exact with each:
        float64 sums over the stored vectors, rounded once. What a query finds does not depend on the queries searched
        with it. Safe to call from several threads.

        Args:
            q: (B, D) float32, B ≥ 1.
        Raises: InputError if k < 1, k > len(self) or q is not finite; ShapeError; MemoryStoreError if empty.
        """
        q = np.asarray(q, dtype=np.float32)
        self._check_query(q, k)
        row_ids, vectors, scores = self._hits(q, k)
        by_row = self._passages(np.unique(row_ids))
        passages = [[by_row[row] for row in rows] for rows in row_ids.tolist()]
        return SearchResult(passages=passages, vectors=vectors, scores=scores, version=self.version)

    def warm_up(self) -> None:
        """Have the index ready now rather than at the first search."""
        if len(self):
            _ = self.index

    def _check_query(self, q: npt.NDArray[np.float32], k: int) -> None:
        if q.ndim != 2 or not len(q) or q.shape[1] != self.manifest.dimension:
            raise ShapeError(
                f"q has shape {q.shape}, needed (B, {self.manifest.dimension}) with B of 1 or more; "
                f"encode the questions with the query encoder that belongs to {self.manifest.encoder}"
            )
        if not np.isfinite(q).all():
            raise InputError("q holds values that are not finite; check the query encoder's weights and its input")
        if k < 1:
            raise InputError(f"k={k} passages cannot be retrieved; choose 1 or more")
        if not len(self):
            raise MemoryStoreError(
                f"{self.path} has no passages at version {self.version}; "
                f"add some with `latentrag index add {self.path} FILES…`"
            )
        if k > len(self):
            raise InputError(f"k={k} exceeds the memory's {len(self)} passages; lower k or add passages")

    def _hits(self, q: npt.NDArray[np.float32], k: int) -> Hits:
        """A damaged index is done without; nothing is lost but time."""
        index = self.index
        try:
            return index.search(q, k)
        except IndexDamagedError as error:
            self._do_without(index, error)
        return self.index.search(q, k)

    def _passages(self, row_ids: npt.NDArray[np.int64]) -> dict[int, Passage]:
        """(n,) rows of this version, all different, by row id: from beside the index what is there."""
        index = self.index
        found: dict[int, Passage] = {}
        try:
            found = index.passages(row_ids)
        except IndexDamagedError as error:
            self._do_without(index, error)
        others = [row_id for row_id in row_ids.tolist() if row_id not in found]
        return found | self._table.take(others) if others else found

    def _do_without(self, index: Index, error: IndexDamagedError) -> None:
        with self._index_lock:
            if self._index is index:  # the first thread that noticed
                self._indexes.throw_away(error)
                self._index = None

    @property
    def index(self) -> Index:
        """What searches it, loaded or built if need be; the memory is not empty.

        Raises: InputError if there is not enough memory for it; MemoryStoreError if it cannot be built.
        """
        with self._index_lock:
            if self._index is None:
                self._index = self._indexes.index_for(self._table)
            return self._index

    def build_index(self, kind: str = "auto", *, max_memory: int | None = None, progress: bool = False) -> BuiltIndex:
        """Build an index of this version and publish it for all who open the memory.

        Everything is streamed; one that is there already is not built again. "flat" needs no files, and removes those
        of the others, which "auto" would prefer.

        Args:
            max_memory: bytes that this process may hold meanwhile; None: those of the machine.
        Raises: InputError if the bound cannot be kept; MemoryStoreError if there are no passages, or no room on the
            disk, or no right to write. After any exception the indexes are as before.
        """
        folder = self._indexes.folder(self._table)
        return build_index(self._table, kind, folder=folder, max_memory=max_memory, progress=progress)

    # Changing

    def add(self, passages: Iterable[Passage], encoder: PassageEncoder, *, progress: bool = False) -> Memory:
        """Encode new passages and commit them as one version. They are streamed: a generator is fine.

        The ids of all passages are held in RAM meanwhile, about 100 bytes each.

        Raises: DataError if there are none or an id is there already or comes twice; EncoderMismatchError;
            MemoryStoreError if this is not the newest version. After any exception the memory is as before.
        """
        self.manifest.check_passage_encoder(encoder)
        with self._table.writing():
            taken = set(self._table.ids())
            new: set[str] = set()
            staged = self._stage(passages, encoder, taken=taken, new=new, progress=progress)
            return self._with(self._table.commit(staged, removed_ids=(), change=f"added {len(new)}"))

    def upsert(self, passages: Iterable[Passage], encoder: PassageEncoder, *, progress: bool = False) -> Memory:
        """As ``add``, but a passage whose id is there already replaces the old one, in the same commit.

        Raises: as ``add``; an id that comes twice in the input is refused here too.
        """
        self.manifest.check_passage_encoder(encoder)
        with self._table.writing():
            new: set[str] = set()
            staged = self._stage(passages, encoder, taken=frozenset(), new=new, progress=progress)
            replaced = [key for key in self._table.ids() if key in new]
            change = f"added {len(new) - len(replaced)}, replaced {len(replaced)}"
            return self._with(self._table.commit(staged, removed_ids=replaced, change=change))

    def delete(self, ids: Iterable[str]) -> Memory:
        """A version without these passages. Raises: DataError if an id is not there or none is given."""
        unwanted = dict.fromkeys(ids)
        if not unwanted:
            raise DataError("no ids to delete; give at least one")
        with self._table.writing():
            _require_known(unwanted, {key for key in self._table.ids() if key in unwanted}, self.path)
            return self._with(self._table.commit([], removed_ids=unwanted, change=f"deleted {len(unwanted)}"))

    def revise(
        self,
        passages: Sequence[Passage],
        vectors: npt.NDArray[np.float16],
        *,
        removed_ids: Collection[str],
        change: str,
    ) -> Memory:
        """A version without ``removed_ids``, then with these passages and the vectors that they have already.

        For who keeps a memory equal to something else: ids to be replaced have to be among ``removed_ids``, and the
        vectors, (n, D), to come from the memory's encoder. Neither is checked.

        Raises: MemoryStoreError if this is not the newest version. After any exception the memory is as before.
        """
        with self._table.writing():
            batches = [self._table.record_batch(passages, vectors)] if passages else []
            staged = self._table.stage(batches)
            return self._with(self._table.commit(staged, removed_ids=removed_ids, change=change))

    def reencode(self, encoder: PassageEncoder, *, progress: bool = False) -> Memory:
        """A version in which every passage has the vector d(z) of ``encoder``: the refresh of REALM (Guu et al. 2020).

        The one change that may bring in another encoder: the new version's manifest names it, older versions keep
        their vectors and theirs. Texts, ids and order stay. Passages are streamed, and everything is written anew
        beside the old version, which stays readable whatever happens.

        Raises: EncoderMismatchError if the dimension differs; MemoryStoreError if there are no passages, this is not
            the newest version or a file is not as it was written; ModelError or ShapeError for vectors that cannot be
            kept. After any exception the memory is as before.
        """
        self.manifest.check_dimension(encoder)
        if not len(self):
            raise MemoryStoreError(f"{self.path} has no passages to re-encode; add some or build a new memory")
        table = replace(self._table, manifest=Manifest.of(encoder))
        with table.writing():
            with _progress_bar(self._table.passages_to_copy(), progress, total=len(self)) as shown:
                staged = table.stage(
                    table.record_batch(batch, fp16_vectors(batch, encoder))
                    for batch in _batches(shown, PASSAGES_PER_ENCODING)
                )
            return self._with(table.replace_all(staged, change=f"re-encoded {len(self)} passages with {encoder.name}"))

    def _with(self, table: Table) -> Memory:
        return Memory(table, self._indexes)

    def _stage(
        self,
        passages: Iterable[Passage],
        encoder: PassageEncoder,
        *,
        taken: Collection[str],
        new: set[str],
        progress: bool,
    ) -> list[FragmentMetadata]:
        """Write passages and vectors, not yet part of a version; their ids go into ``new``."""

        def encoded(shown: Iterable[Passage]) -> Iterator[pa.RecordBatch]:
            for batch in _batches(shown, PASSAGES_PER_ENCODING):
                _claim_ids(batch, taken=taken, new=new)
                yield self._table.record_batch(batch, fp16_vectors(batch, encoder))

        with _progress_bar(passages, progress) as shown:
            staged = self._table.stage(encoded(shown))
        if not staged:
            raise DataError("no passages in the input; give at least one document that has text")
        return staged


def _require_known(wanted: Iterable[str], known: Collection[str], path: Path) -> None:
    unknown = [key for key in wanted if key not in known]
    if unknown:
        shown = ", ".join(map(repr, unknown[:3])) + (", …" if len(unknown) > 3 else "")
        raise DataError(f"{len(unknown)} ids are not in {path}: {shown}; leave them out")


def _claim_ids(batch: Sequence[Passage], *, taken: Collection[str], new: set[str]) -> None:
    for passage in batch:
        if not passage.id:
            raise DataError(f"a passage of {passage.source or 'the input'} has no id; give each passage one")
        if passage.id in taken:
            raise DataError(f"passage {passage.id!r} is in the memory already; use upsert to replace it")
        if passage.id in new:
            raise DataError(f"passage {passage.id!r} comes twice in the input; give each passage its own id")
        new.add(passage.id)


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


def _batches(passages: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
    stream = iter(passages)
    while batch := list(islice(stream, size)):
        yield batch


@contextmanager
def _progress_bar(
    passages: Iterable[Passage], progress: bool, *, total: int | None = None
) -> Iterator[Iterable[Passage]]:
    """The same passages, counted by a bar on stderr if asked."""
    if not progress:
        yield passages
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        if total is None and isinstance(passages, Sized):
            total = len(passages)
        yield bar.track(passages, total=total, description="encoding passages")
