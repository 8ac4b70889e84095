"""The memory as its users hold it: one version, searched by an index; changes are commits, all or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import compress, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentrag import io
from latentrag.conditions import Condition
from latentrag.errors import IndexDamagedError, InputError, MemoryStoreError, OptionError, ShapeError, exceeds_memory
from latentrag.ids import document_of, is_of, names_over
from latentrag.memory import history, version_files
from latentrag.memory.columns import Columns
from latentrag.memory.documents import DocumentParts, around
from latentrag.memory.filtered import KEPT_SELECTIONS, Filterable, FilteredTable, Selection, Within
from latentrag.memory.history import Diff, Version
from latentrag.memory.indexes import BuiltIndex, BuiltWords, Hits, Index, IndexSupply, build_index
from latentrag.memory.indexes.words import sizes
from latentrag.memory.object_path import Folder
from latentrag.memory.reencoding import ROWS_PER_NOTE, Notes
from latentrag.memory.schema import EncoderCard, require_known
from latentrag.memory.storage import Place, storage_of
from latentrag.memory.table import RowsByName, Staged, Table
from latentrag.memory.writer import Added, Writer, add_passages, batches
from latentrag.place import require_unforked
from latentrag.types import Candidates, Passage, SearchResult, WordResult

if TYPE_CHECKING:
    import numpy.typing as npt

    from latentrag.postings import WordIndex
    from latentrag.protocols import PassageEncoder, QueryEncoder


TAKEN_SHARE = 0.05
"""Where fewer of a memory's passages are wanted than this, looking them up is faster than reading all."""
PASSAGES_PER_READ = 1_024


class Memory(Filterable[FilteredTable]):
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
        self._words: WordIndex | None = None
        self._words_lock = threading.Lock()
        self._rows_by_id: RowsByName | None = None
        self._rows_under: RowsByName | None = None
        self._rows_lock = threading.Lock()
        self.columns = Columns(table)
        self._selections: OrderedDict[str, Selection] = OrderedDict()
        self._selections_lock = threading.Lock()

    @classmethod
    def create(cls, path: Place, encoder: PassageEncoder) -> Memory:
        """An empty memory in a new folder, for the vectors of ``encoder``; there whole or not at all.

        Raises: MemoryStoreError if something is at ``path`` already or it cannot be written.
        """
        return cls(Table.create(path, EncoderCard.of(encoder)))

    @classmethod
    def open(
        cls,
        path: Place,
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
        storage = storage_of(path)
        return cls(Table.open(storage, history.number_of(storage, version)), indexes)

    def at(self, version: int | str | None) -> Memory:
        """Another version of this memory, searched in the same way; the two share an index where that serves both.

        Args: version: as for ``open``.
        Raises: as ``open``.
        """
        table = Table.open(self._table.storage, self.number_of(version))
        return Memory(table, self._indexes if self._is_there() else self._indexes.anew())

    def _is_there(self) -> bool:
        """Whether the path still holds this version, and not that of another memory in its place."""
        try:
            now = Table.open(self._table.storage, self.version)
        except MemoryStoreError:
            return False
        return len(self) > 0 and now.fragments().keys() == self._table.fragments().keys()

    def snapshot(self) -> Memory:
        """This memory, which never changes. See ``LiveMemory``."""
        return self

    @property
    def stored(self) -> Memory:
        """This memory: its table, its other versions and their names are where it is."""
        return self

    @property
    def table(self) -> Table:
        """The table of this version: for what belongs to ``latentrag.memory``, nobody else."""
        return self._table

    @property
    def path(self) -> Folder:
        return self._table.path

    @property
    def local(self) -> Path:
        """A folder of this machine for what can be made again: the memory's own, if it is on a disk."""
        return self._table.storage.local

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path)

    @property
    def version(self) -> int:
        """Counts commits from 1, the empty memory."""
        return self._table.version

    @property
    def identity(self) -> str:
        """Names what this version holds: that of another memory differs, though path and number be the same."""
        names = sorted(name for of_fragment in self._table.fragments() for name in of_fragment)
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    @property
    def lineage(self) -> str:
        """Names this memory through all its versions; one that does not know it, as older ones, names this version."""
        return self._table.lineage or self.identity

    @property
    def card(self) -> EncoderCard:
        """What encoded the passages."""
        return self._table.card

    def __len__(self) -> int:
        return self._num_passages

    def __repr__(self) -> str:
        return f"Memory({self.name!r}, version={self.version}, passages={len(self)})"

    def passages(self, *, where: Condition | None = None) -> Iterator[Passage]:
        """Every passage, or those that satisfy a condition, in the order of the table, streamed."""
        return self._table.passages() if where is None else self._selected(self.selection(where))

    def _selected(self, selection: Selection) -> Iterator[Passage]:
        if len(selection) > TAKEN_SHARE * len(self):
            yield from compress(self._table.passages(), selection.mask.tolist())
            return
        rows = iter(selection.row_ids.tolist())
        while chunk := list(islice(rows, PASSAGES_PER_READ)):
            passages = self._table.take(chunk)
            yield from (passages[row] for row in chunk)

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """The passages with these ids, in this order. Raises: InputError for ids that are not there."""
        by_id = self.find(ids)
        require_known(ids, by_id, f"not in {self.path}")
        return [by_id[key] for key in ids]

    def find(self, ids: Sequence[str], *, where: Condition | None = None) -> dict[str, Passage]:
        """The passages with these ids that satisfy a condition, by id; those that are not there are left out.

        The first call reads all ids, after that 16 bytes of RAM a passage lead to the rows.
        """
        has = self._has(where)
        return {key: passage for key, (row, passage) in self.rows(ids).items() if has(row)}

    def rows(self, ids: Sequence[str]) -> dict[str, tuple[int, Passage]]:
        """As ``find``, with the row ids."""
        rows = self._table.take(self._by_id().candidates(ids))
        wanted = set(ids)
        return {passage.id: (row, passage) for row, passage in rows.items() if passage.id in wanted}

    def ids_under(self, name: str, itself: bool, *, synced: bool = False) -> list[str]:
        """As ``latentrag.ids.IdsUnder``; what a sync keeps equal to a file only if ``synced``.

        The first call reads all ids, after that up to 32 bytes of RAM a passage lead to the rows.
        """
        with self._rows_lock:
            if self._rows_under is None:
                self._rows_under = RowsByName.of(self._table, names_over)
        rows = self._rows_under.candidates([name]) + (self._by_id().candidates([name]) if itself else [])
        found = self._table.take_ids(rows)
        return sorted(
            {
                key
                for key, origin in found
                if (synced or not origin) and (key == name or key.startswith((f"{name}#", f"{name}:")))
            }
        )

    def around(
        self, ids: Sequence[str], num: int, *, within: Within | None = None
    ) -> list[tuple[list[Passage], list[Passage]]]:
        """As ``protocols.KnowsNeighbours``. Reads all passages of these documents.

        Args:
            within: what may not be known of is passed over; what is behind another that is not left is no neighbour.
        """
        return around(ids, num, self.of_documents(list(dict.fromkeys(map(document_of, ids))), within=within))

    def of_documents(self, names: Sequence[str], *, within: Within | None = None) -> DocumentParts:
        """The passages of each of these documents that may be known of, and whether each is left; none of one that is
        not there."""
        with self._rows_lock:
            if self._rows_under is None:
                self._rows_under = RowsByName.of(self._table, names_over)
        left, among = within or (None, None)
        is_left, is_known = self._has(left), self._has(among)
        found = {}
        for name in names:
            rows = self._table.take(self._rows_under.candidates([name]) + self._by_id().candidates([name]))
            found[name] = [
                (passage, is_left(row)) for row, passage in rows.items() if is_of(passage.id, name) and is_known(row)
            ]
        return found

    def _by_id(self) -> RowsByName:
        with self._rows_lock:
            if self._rows_by_id is None:
                self._rows_by_id = RowsByName.of(self._table)
            return self._rows_by_id

    # Conditions on fields

    def filtered(self) -> FilteredTable:
        """As ``Filterable.filtered``."""
        return FilteredTable(self)

    def count(self, where: Condition) -> int:
        """How many passages satisfy a condition."""
        return len(self.selection(where))

    def check_fields(self, condition: Condition, *, scope: Condition | None = None) -> None:
        """Refuse a field that no passage has, and a value of a kind that it never has.

        Args:
            scope: which passages may be known of; None: all.
        Raises: InputError.
        """
        self.columns.check(condition, None if scope is None else self.selection(scope).mask)

    def _has(self, where: Condition | None) -> Callable[[int], bool]:
        """Whether a row satisfies it."""
        return (lambda _: True) if where is None else self.selection(where).has

    def selection(self, condition: Condition) -> Selection:
        """Which passages satisfy a condition. The first call reads the fields of all, which stay in RAM."""
        name = str(condition)  # in Python 1 and true are equal
        with self._selections_lock:
            if name not in self._selections:
                mask = self.columns.mask(condition)
                self._selections[name] = Selection(mask, self.columns.row_ids[mask])
                if len(self._selections) > KEPT_SELECTIONS:
                    self._selections.popitem(last=False)
            self._selections.move_to_end(name)
            return self._selections[name]

    # Versions

    def number_of(self, which: int | str | None) -> int | None:
        """The number of a version of this memory; None: the newest.

        Args: which: as for ``open``.
        Raises: as ``open``.
        """
        return history.number_of(self._table.storage, which)

    def log(self) -> list[Version]:
        """Every version up to this one, oldest first."""
        return history.log(self._table)

    def diff(self, after: Memory) -> Diff:
        """What leads from this version to another, which may be the older one.

        Only files that one of them has and the other has not are read. About 200 bytes of RAM for each of their
        passages.
        """
        return history.diff(self._table, after.table)

    def num_compared(self, after: Memory) -> int:
        """How many passages ``diff`` reads."""
        return history.num_compared(self._table, after.table)

    def titles(self, ids: Collection[str], *, against: Memory) -> dict[str, str]:
        """Titles of passages that this version has and ``against`` has not, or otherwise, by id."""
        return history.titles(self._table, against.table, ids)

    def tags(self) -> dict[str, int]:
        """Every name of a version, ``served`` among them. Raises: MemoryStoreError for one that cannot be read."""
        return history.tags(self.path)

    def tag(self, name: str, version: int) -> None:
        """Give a version a name, which keeps it from being pruned.

        Raises: InputError for a name that cannot be one; MemoryStoreError if it is another version's.
        """
        history.tag(self._table.storage, name, version)

    def untag(self, name: str) -> int:
        """Take a name away. Returns: the version that had it. Raises: MemoryStoreError if there is no such tag."""
        return history.untag(self._table.storage, name)

    @property
    def chosen(self) -> int | None:
        """The version that somebody chose to be served; None: the newest is, whichever that is."""
        return self.tags().get(history.SERVED)

    def serve(self, version: int | None) -> None:
        """Let a version be the one that is asked where nobody says which; None: the newest, whichever that is then."""
        history.serve(self._table.storage, version)

    # Searching

    def check(self, query_encoder: QueryEncoder) -> None:
        """Refuse a query encoder whose vectors do not live in the space of this memory's; warn if unknown.

        Raises: EncoderMismatchError.
        """
        self.card.check_query_encoder(query_encoder)

    def search(self, q: npt.NDArray[np.float32], k: int, *, within: Within | None = None) -> SearchResult:
        """The K passages with the largest inner products d(z)·q; equal scores as they were added.

        With the index flat these are the K largest of all; the others may miss some. The scores are exact with each:
        float64 sums over the stored vectors, rounded once. What a query finds does not depend on the queries searched
        with it. Safe to call from several threads.

        Args:
            q: (B, D) float32, B ≥ 1.
            within: which passages are searched, k or more; None: all. See ``where``.
        Raises: InputError if k < 1, k > len(self) or q is not finite; ShapeError; MemoryStoreError if empty.
        """
        hits, by_row = self.hits(q, k, within=within)
        passages = [[by_row[row] for row in rows] for rows in hits.row_ids.tolist()]
        return SearchResult(passages=passages, vectors=hits.vectors, scores=hits.scores, version=self.version)

    def hits(
        self, q: npt.NDArray[np.float32], k: int, *, within: Within | None = None
    ) -> tuple[Hits, dict[int, Passage]]:
        """What ``search`` finds, by row ids, and the passages of these rows. Args, Raises: as for ``search``."""
        require_unforked(MemoryStoreError)  # faiss's threads do not come along
        q = checked_query(q, k, card=self.card, num_passages=len(self), version=self.version, path=self.path)
        found = self._hits(q, k, within)
        return found, self._passages(np.unique(found.row_ids))

    def search_words(self, x: Sequence[str], k: int, *, scale: float = 1.0, within: Within | None = None) -> WordResult:
        """As ``protocols.SearchesWords``. Safe to call from several threads. Args: within: as for ``search``."""
        index, kept = self._words_of(within)
        rows, scores = np.empty((len(x), k), np.int64), np.empty((len(x), k), np.float32)
        for b, question in enumerate(x):
            found = index.filled(question, k, scale=scale, kept=kept)
            rows[b], scores[b] = index.row_ids[found.places], found.scores
        by_row = self._passages(np.unique(rows))
        return WordResult([[by_row[row] for row in of_one] for of_one in rows.tolist()], rows, scores, self.version)

    def word_scores(
        self, x: Sequence[str], rows: Sequence[npt.NDArray[np.int64]], *, within: Within | None = None
    ) -> list[npt.NDArray[np.float64]]:
        """As ``protocols.SearchesWords``. Safe to call from several threads. Args: within: as for ``search``."""
        index, _ = self._words_of(within)
        return [index.scores(question, index.places_of(each)) for question, each in zip(x, rows, strict=True)]

    def candidates(
        self, q: npt.NDArray[np.float32], x: Sequence[str], num: int, *, within: Within | None = None
    ) -> Candidates:
        """As ``protocols.SearchesWords``, with those of ``search``. Safe to call from several threads.

        Args: within: as for ``search``.
        Raises: as ``search``.
        """
        q = checked_query(q, num, card=self.card, num_passages=len(self), version=self.version, path=self.path)
        (index, kept), hits = self._words_of(within), self._hits(q, num, within)
        rows = [
            np.union1d(hits.row_ids[b], index.row_ids[index.best(question, num, kept=kept).places])
            for b, question in enumerate(x)
        ]
        distinct = np.unique(np.concatenate(rows))
        by_row, vectors = self._passages(distinct), self._vectors(distinct)
        return Candidates(
            [[by_row[row] for row in of_one.tolist()] for of_one in rows],
            rows,
            [vectors[np.searchsorted(distinct, of_one)] for of_one in rows],
            self.word_scores(x, rows, within=within),
            self.version,
        )

    def warm_up(self, *, words: bool = False) -> None:
        """Have the index ready now rather than at the first search. Opening reads no passage and no index, so servers
        open a version at once, call this in a thread, and search when it has returned.

        Args:
            words: have that of words ready, too.
        """
        if len(self):
            _ = self.index
        if words:
            self.words()

    def words(self, *, progress: bool = False) -> WordIndex:
        """The index of words of this version, loaded or built if need be: only passages that no earlier version had
        are read. It is stored for all who open the memory."""
        require_unforked(MemoryStoreError)
        with self._words_lock:
            if self._words is None:
                folder = self._indexes.folder(self._table)
                self._words = self._indexes.words.index_for(self._table, folder, progress=progress)
            return self._words

    def _words_of(self, within: Within | None) -> tuple[WordIndex, npt.NDArray[np.bool_] | None]:
        """The index of the words of what may be known of, and which of its places may be found."""
        index = self.words()
        if within is None:
            return index, None
        index = index if within.among is None else self.selection(within.among).words(index)
        return index, self.selection(within.left).places(index)

    @property
    def has_words(self) -> bool:
        """Whether its index of words is loaded."""
        return self._words is not None

    def _hits(self, q: npt.NDArray[np.float32], k: int, within: Within | None) -> Hits:
        """A damaged index is done without; nothing is lost but time."""
        index = self.index
        try:
            return (index if within is None else self.selection(within.left).index(index)).search(q, k)
        except IndexDamagedError as error:
            self._do_without(index, error)
        return self._hits(q, k, within)

    def _passages(self, row_ids: npt.NDArray[np.int64]) -> dict[int, Passage]:
        """(n,) rows of this version, all different, by row id: from beside the index what is there."""
        index = self.index
        beside: dict[int, Passage] = {}
        try:
            beside = index.passages(row_ids)
        except IndexDamagedError as error:
            self._do_without(index, error)
        others = [row_id for row_id in row_ids.tolist() if row_id not in beside]
        return beside | self._table.take(others) if others else beside

    def _vectors(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(n, D) of rows of this version, ascending."""
        index = self.index
        try:
            return index.vectors_of(row_ids)
        except IndexDamagedError as error:
            self._do_without(index, error)
        return self.index.vectors_of(row_ids)

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

    def build_words(self, *, progress: bool = False) -> BuiltWords:
        """Build and store what the index of words of this version lacks, rather than at the first search by words."""
        started = time.perf_counter()
        self.words(progress=progress)
        disk_bytes = sum(sizes(self._indexes.folder(self._table)).values())
        return BuiltWords(self.version, len(self), disk_bytes, time.perf_counter() - started)

    # Changing

    def add(
        self,
        passages: Iterable[Passage],
        encoder: PassageEncoder,
        *,
        passages_per_commit: int | None = None,
        progress: bool = False,
    ) -> Memory:
        """Encode new passages and commit them. They are streamed: a generator is fine.

        Args:
            passages_per_commit: as for ``add_passages``; None: one version, and after any exception the memory is as
                before.
        Raises: DataError if there are none or an id is there already or comes twice; EncoderMismatchError;
            MemoryStoreError if this is not the newest version.
        """
        return add_passages(
            self, passages, lambda: encoder, passages_per_commit=passages_per_commit, progress=progress
        ).memory

    def upsert(self, passages: Iterable[Passage], encoder: PassageEncoder, *, progress: bool = False) -> Memory:
        """As ``add``, in one version, but a passage whose id is there already replaces the old one.

        Raises: as ``add``; an id that comes twice in the input is refused here too.
        """
        return add_passages(self, passages, lambda: encoder, upsert=True, progress=progress).memory

    def delete(self, ids: Iterable[str]) -> Memory:
        """A version without these passages. Raises: InputError if an id is not there or none is given."""
        unwanted = list(dict.fromkeys(ids))
        if not unwanted:
            raise InputError("no ids to delete; give at least one")
        with self._table.writing():
            require_known(unwanted, self.find(unwanted), f"not in {self.path}")
            return self.with_table(self._table.commit(removed_ids=unwanted, change=f"deleted {len(unwanted)}"))

    @contextmanager
    def writing(
        self, encoder: Callable[[], PassageEncoder], *, on_passages: Callable[[int], None] | None = None
    ) -> Iterator[Writer]:
        """Be the only writer, on top of this version; what was committed when the block ends stays. See ``Writer``.

        Raises: MemoryStoreError if somebody else writes or this is not the newest version.
        """
        with self._table.writing():
            yield Writer(self._table, encoder, on_passages=on_passages)

    def with_table(self, table: Table) -> Memory:
        """The memory at another version of its table, with the same indexes."""
        return Memory(table, self._indexes)

    def reencode(self, encoder: PassageEncoder, *, resumes: bool = False, progress: bool = False) -> Memory:
        """A version in which every passage has the vector d(z) of ``encoder``: the refresh of REALM (Guu et al. 2020).

        The one change that may bring in another encoder, also one of another dimension: the new version's card names
        it, older versions keep their vectors and theirs. Texts, ids and order stay. Passages are streamed, and
        everything is written anew beside the old version, which stays readable whatever happens.

        Args:
            resumes: what was encoded before an exception or a kill is kept, and the next call with this encoder goes on
                after it, unless there is a newer version by then. False: after any exception the memory is as before.
        Raises: MemoryStoreError if there are no passages, this is not the newest version or a file is not as it was
            written; ModelError or ShapeError for vectors that cannot be kept.
        """
        if not len(self):
            raise MemoryStoreError(f"{self.path} has no passages to re-encode; add some or build a new memory")
        table = replace(self._table, card=EncoderCard.of(encoder))
        with table.writing(), io.progress("encoding passages", len(self), wanted=progress) as bar:
            notes = Notes(table) if resumes else None
            staged, num_done = (Staged(), 0) if notes is None else notes.begin()
            if num_done:
                bar.advance(num_done)
            writer = Writer(
                table,
                lambda: encoder,
                on_passages=bar.advance,
                staged=staged,
                on_staged=None if notes is None else notes.add,
                rows_per_file=None if notes is None else ROWS_PER_NOTE,
            )
            for batch in batches(islice(self._table.passages_to_copy(), num_done, None)):
                writer.put(batch)
            writer.replace_all(change=f"re-encoded {len(self)} passages with {encoder.name}")
            if notes is not None:
                notes.end()
        return self.with_table(writer.table)


def checked_query(
    q: npt.NDArray[np.float32], k: int, *, card: EncoderCard, num_passages: int, version: int, path: Folder
) -> npt.NDArray[np.float32]:
    """q (B, D) as float32, for a search of so many passages. Raises: as ``Memory.search``."""
    q = np.asarray(q, dtype=np.float32)
    if q.ndim != 2 or not len(q) or q.shape[1] != card.dimension:
        raise ShapeError(
            f"q has shape {q.shape}, needed (B, {card.dimension}) with B of 1 or more; "
            f"encode the questions with the query encoder that belongs to {card.encoder}"
        )
    if not np.isfinite(q).all():
        raise InputError("q holds values that are not finite; check the query encoder's weights and its input")
    if k < 1:
        raise OptionError("{k}={given} passages cannot be retrieved; choose 1 or more", given=k)
    if not num_passages:
        raise MemoryStoreError(
            f"{path} has no passages at version {version}; add some with `latentrag index add {path} FILES…`"
        )
    if k > num_passages:
        raise exceeds_memory(k, num_passages)
    return q


def add(
    path: Place,
    passages: Iterable[Passage],
    encoder: Callable[[], PassageEncoder],
    *,
    upsert: bool = False,
    passages_per_commit: int | None = None,
    progress: bool = False,
) -> Added:
    """``add_passages`` to the memory at a path, which is made if it is not there; if nothing is committed, it is gone
    again.

    Raises: as ``add_passages`` and ``Memory.open``.
    """
    storage = storage_of(path)
    is_new = version_files.is_free(storage.folder)
    memory = Memory.create(storage, encoder()) if is_new else Memory.open(storage)
    try:
        return add_passages(
            memory, passages, encoder, upsert=upsert, passages_per_commit=passages_per_commit, progress=progress
        )
    except BaseException:
        if is_new and isinstance(storage.folder, Path):  # elsewhere somebody may be adding to it already
            with contextlib.suppress(MemoryStoreError), storage.lock():
                if version_files.newest_version(storage.folder) == memory.version:
                    shutil.rmtree(storage.folder)
        raise
