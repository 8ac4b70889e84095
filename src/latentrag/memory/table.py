"""The Lance table of a memory: columns, atomic commits, reads. Nothing here knows of encoders or queries."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from latentrag.errors import MemoryStoreError, UnknownVersionError
from latentrag.memory import version_files
from latentrag.memory.object_path import Folder
from latentrag.memory.parts import Cut, Part, Unit, condition_on_rows, file_of, part_of
from latentrag.memory.schema import (
    CARD_KEY,
    LATER_COLUMNS,
    LINEAGE_KEY,
    PASSAGE_COLUMNS,
    EncoderCard,
    schema,
    to_passages,
    to_record_batch,
    to_vectors,
)
from latentrag.memory.storage import Checksum, Place, Storage, storage_of
from latentrag.memory.version_files import ROWS_PER_READ
from latentrag.place import require_unforked
from latentrag.types import Passage

if TYPE_CHECKING:
    import lance
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.compute as pc
    from lance.fragment import FragmentMetadata, LanceFragment
    from lance.optimize import CompactionTask

ROWS_PER_FRAGMENT = 65_536
"""Rows gathered in RAM before they are written: about 150 MB at 768 dimensions and 100 words."""
ROWS_PER_LOOKUP = 1_024
SHOWN_VERSIONS = 10


@dataclass(frozen=True, slots=True)
class Staged:
    """Rows that are written and on the disk for sure, and no version's yet. Any process may have written them."""

    fragments: list[FragmentMetadata] = field(default_factory=list)
    checksums: dict[str, Checksum] = field(default_factory=dict)

    def __add__(self, other: Staged) -> Staged:
        return Staged([*self.fragments, *other.fragments], self.checksums | other.checksums)


@dataclass(frozen=True, slots=True)
class Table:
    """One version of the table in ``storage``: later commits do not change it. Safe for concurrent reads."""

    storage: Storage
    opened: lance.LanceDataset
    card: EncoderCard
    part: Part | None = None
    """Which rows are read; None: all. A table of some rows is never written."""

    @property
    def dataset(self) -> lance.LanceDataset:
        """Lance's. Raises: MemoryStoreError in a process that was forked off, where it waits for ever or crashes."""
        require_unforked(MemoryStoreError)
        return self.opened

    @classmethod
    def create(cls, place: Place, card: EncoderCard) -> Table:
        """An empty table in a new folder, which is there whole or not at all.

        Raises: MemoryStoreError if something is there already or the place cannot be written.
        """
        import lance

        require_unforked(MemoryStoreError)
        storage = storage_of(place)
        path = storage.folder
        if not version_files.is_free(path):
            raise MemoryStoreError(f"{path} exists already; open it, or choose a path that is free")
        with version_files.changing(path), storage.making() as scratch:
            # Row ids that survive compaction: reading by position slows 400-fold after scattered deletes.
            columns = schema(card)
            columns = columns.with_metadata(columns.metadata | {LINEAGE_KEY: secrets.token_hex(8).encode()})
            lance.write_dataset(
                columns.empty_table(),
                scratch,
                enable_stable_row_ids=True,
                commit_message="created",
                storage_options=storage.options,
            )
        manifest = version_files.manifest_name(1)
        with version_files.changing(path):
            storage.record({manifest: Checksum.of(path / manifest)})
        return cls.open(storage)

    @classmethod
    def open(cls, place: Place, version: int | None = None) -> Table:
        """The table at that version or at the newest that is whole. Raises: MemoryStoreError."""
        storage = storage_of(place)
        path = storage.folder
        version_files.require_table(path)
        if version is None:
            dataset = version_files.open_newest_whole(storage)
        elif version_files.has_version(path, version):
            dataset = version_files.open_whole(storage, version)
        else:
            raise UnknownVersionError(f"{path} has no version {version}; choose one of {_shown_versions(path)}")
        return cls._of(storage, dataset)

    @classmethod
    def open_readable(cls, storage: Storage, version: int) -> Table:
        """The table at that version although its files may be damaged: what can be told without them, and what of
        them is intact. Raises: MemoryStoreError if its manifest is damaged."""
        return cls._of(storage, version_files.open_readable(storage, version))

    @classmethod
    def _of(cls, storage: Storage, dataset: lance.LanceDataset) -> Table:
        metadata = dataset.schema.metadata or {}
        if CARD_KEY not in metadata:
            raise MemoryStoreError(
                f"{storage.folder} is a Lance table but not a memory of latentrag; "
                "make a memory with `latentrag index add PATH FILES…`"
            )
        # Each version has its own: a memory that was re-encoded had another encoder before.
        return cls(storage, dataset, EncoderCard.from_json(metadata[CARD_KEY].decode()))

    @property
    def path(self) -> Folder:
        return self.storage.folder

    @property
    def version(self) -> int:
        return int(self.opened.version)

    @property
    def lineage(self) -> str | None:
        """The same in all versions of this table, and in no other; None: an older table, which does not say."""
        found = (self.dataset.schema.metadata or {}).get(LINEAGE_KEY)
        return None if found is None else found.decode()

    def __len__(self) -> int:
        if self.part is None:
            return int(self.dataset.count_rows())
        return sum(self.num_rows_of(fragment) for fragment in self.lance_fragments())

    def some(self, units: Iterable[Unit]) -> Table:
        """These rows of the version alone."""
        return replace(self, part=part_of(units))

    def lance_fragments(self) -> list[LanceFragment]:
        """Those that hold its rows, in the order of the rows."""
        with version_files.reading(self.path):
            found = list(self.dataset.get_fragments())
        return found if self.part is None else [each for each in found if file_of(each) in self.part]

    def cuts(self, fragment: LanceFragment) -> tuple[Cut, ...]:
        """Ranges of the row ids of this fragment that its rows are in; none: they are all rows of the fragment."""
        return () if self.part is None else self.part[file_of(fragment)]

    def num_rows_of(self, fragment: LanceFragment) -> int:
        """How many of its rows a fragment has."""
        return len(self.row_ids([fragment])) if self.cuts(fragment) else int(fragment.metadata.num_rows)

    @property
    def passage_columns(self) -> list[str]:
        """Those of PASSAGE_COLUMNS that the table has: an older one may lack the last."""
        present = set(self.dataset.schema.names)
        return [name for name in PASSAGE_COLUMNS if name in present]

    # Reading

    def ids(self) -> Iterator[str]:
        """Every passage's id, in the order of the rows."""
        for keys, _ in self.id_batches():
            yield from keys

    def passages(self, *, besides: Collection[tuple[str, ...]] = ()) -> Iterator[Passage]:
        """Every passage, in the order of the rows; one batch in RAM at a time.

        Args:
            besides: fragments to leave out, as ``fragments`` names them.
        """
        fragments = self.fragments()
        if kept := [fragments[key] for key in fragments if key not in besides]:
            for batch in self.scan(self.passage_columns, fragments=kept):
                yield from to_passages(batch)

    def passages_from(self, start: int, num: int) -> Iterator[Passage]:
        """So many passages at most, in the order of the rows of a whole version, after the first ``start``."""
        for batch in self.scan(self.passage_columns, offset=start, limit=num):
            yield from to_passages(batch)

    def passages_to_copy(self) -> Iterator[Passage]:
        """As ``passages``, for what is written anew. Raises: MemoryStoreError at a file that is not as it was written,
        before any of its passages."""
        for batch in self._scan_to_copy(self.passage_columns):
            yield from to_passages(batch)

    def fragments(self) -> dict[tuple[str, ...], LanceFragment]:
        """The parts that the rows are in, by their files' names; other versions with the same have the same rows."""
        with version_files.reading(self.path):
            return {tuple(version_files.of_fragment(each)): each for each in self.lance_fragments()}

    def vectors(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
        """Batches of row ids (n,) and vectors (n, D), in the order of the rows."""
        for batch in self.scan(["vector"], with_row_id=True):
            yield batch["_rowid"].to_numpy().astype(np.int64), to_vectors(batch, self.card.dimension)

    def take(self, row_ids: Sequence[int]) -> dict[int, Passage]:
        """The passages with these row ids, by row id; one read."""
        if not row_ids:
            return {}
        with version_files.reading(self.path):
            # The public ways are a filter, which takes 0.4 ms longer to plan, and positions, which deletes shift.
            rows = self.dataset._take_rows(row_ids, columns=[*self.passage_columns, "_rowid"])  # noqa: SLF001
        return dict(zip(rows["_rowid"].to_pylist(), to_passages(rows), strict=True))

    def take_ids(self, row_ids: Sequence[int]) -> list[tuple[str, str]]:
        """Ids and origins of the passages with these row ids; one read."""
        if not row_ids:
            return []
        columns = [name for name in self.passage_columns if name in {"id", "origin"}]
        with version_files.reading(self.path):
            rows = self.dataset._take_rows(row_ids, columns=columns)  # noqa: SLF001  as in ``take``
        origins = rows["origin"].to_pylist() if "origin" in columns else [None] * len(rows)
        return [(key, origin or "") for key, origin in zip(rows["id"].to_pylist(), origins, strict=True)]

    def record_batches(self) -> Iterator[pa.RecordBatch]:
        """Every row with its vector, in the order of the rows. Raises: as ``passages_to_copy``."""
        yield from self._scan_to_copy([*self.passage_columns, "vector"])

    def row_ids(self, fragments: list[LanceFragment]) -> npt.NDArray[np.int64]:
        """Of these fragments' rows, (n,), in their order. Manifests have them: no data file is read, or missed."""
        scanned = self.scan([], with_row_id=True, fragments=fragments) if fragments else ()
        parts = [batch["_rowid"].to_numpy() for batch in scanned]
        return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)

    def id_batches(
        self, fragments: list[LanceFragment] | None = None
    ) -> Iterator[tuple[list[str], npt.NDArray[np.int64]]]:
        """Batches of ids and row ids, (n,), of these fragments or of all, in the order of the rows."""
        for batch in self.scan(["id"], with_row_id=True, fragments=fragments):
            yield batch["id"].to_pylist(), batch["_rowid"].to_numpy().astype(np.int64)

    def rows(self, fragments: list[LanceFragment], row_ids: npt.NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
        """Batches of those rows of these fragments that have one of these row ids, each with its vector."""
        import pyarrow as pa

        for batch in self.scan([*self.passage_columns, "vector"], with_row_id=True, fragments=fragments):
            yield batch.filter(pa.array(np.isin(batch["_rowid"].to_numpy(), row_ids)))

    def origins(self) -> Iterator[tuple[str, str]]:
        """Every passage's id and origin, in the order of the rows."""
        columns = [name for name in self.passage_columns if name in {"id", "origin"}]
        for batch in self.scan(columns):
            origins = batch["origin"].to_pylist() if "origin" in columns else [None] * len(batch)
            yield from ((key, origin or "") for key, origin in zip(batch["id"].to_pylist(), origins, strict=True))

    def summary_rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Every passage's id, title, source and origin, in the order of the rows."""
        columns = [name for name in self.passage_columns if name in {"id", "title", "source", "origin"}]
        for batch in self.scan(columns):
            none = [None] * len(batch)
            each = [batch[name].to_pylist() if name in columns else none for name in ("title", "source", "origin")]
            rest = zip(*each, strict=True)
            for key, (title, source, origin) in zip(batch["id"].to_pylist(), rest, strict=True):
                yield key, title or "", source or "", origin or ""

    def passages_where(self, condition: pc.Expression) -> Iterator[tuple[Passage, int]]:
        """The passages that meet a condition on the columns, with their row ids, in the order of the rows."""
        for batch in self.scan(self.passage_columns, with_row_id=True, filter=condition):
            yield from zip(to_passages(batch), batch["_rowid"].to_pylist(), strict=True)

    def vectors_of(self, row_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        """The vectors with these row ids, in this order, repeats allowed: (n, D). Raises: MemoryStoreError."""
        distinct, place = np.unique(row_ids, return_inverse=True)
        whole = replace(self, part=None)  # the rows are named
        vectors, num_rows = np.empty((len(distinct), self.card.dimension), np.float16), 0
        for start in range(0, len(distinct), ROWS_PER_LOOKUP):
            wanted = ", ".join(map(str, distinct[start : start + ROWS_PER_LOOKUP].tolist()))
            for batch in whole.scan(["vector"], with_row_id=True, filter=f"_rowid IN ({wanted})"):
                vectors[np.searchsorted(distinct, batch["_rowid"])] = to_vectors(batch, self.card.dimension)
                num_rows += len(batch)
        if num_rows != len(distinct):
            raise MemoryStoreError(f"{self.path} gave {num_rows} of {len(distinct)} vectors; verify the memory")
        return vectors[place]

    def scan(self, columns: list[str], **options: Any) -> Iterator[pa.RecordBatch]:
        """Batches of these columns, in the order of the rows.

        Args: options: as of ``LanceDataset.scanner``; of a table of some rows a filter is text.
        """
        with version_files.reading(self.path):
            for each in [options] if self.part is None else self._restricted(options):
                scanner = self.dataset.scanner(
                    columns=columns, scan_in_order=True, **{"batch_size": ROWS_PER_READ} | each
                )
                yield from scanner.to_batches()

    def _restricted(self, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The options of a scan for each fragment, so that they give its rows alone."""
        given = options.get("fragments")
        for fragment in self.lance_fragments() if given is None else given:
            wanted = [text for text in (options.get("filter"), condition_on_rows(self.cuts(fragment))) if text]
            of_filter = {"filter": " AND ".join(f"({text})" for text in wanted)} if wanted else {}
            yield options | {"fragments": [fragment]} | of_filter

    def _scan_to_copy(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """A copy gets a checksum of its own, with which damage would pass for what was written."""
        checksums = self.storage.checksums() or {}
        for names, fragment in self.fragments().items():
            version_files.require_as_written(self.path, names, checksums)  # which leaves them in the system's cache
            yield from self.scan(columns, fragments=[fragment])

    def require_as_written(
        self, row_ids: Collection[int], *, besides: Collection[tuple[str, ...]] = ()
    ) -> list[tuple[str, ...]]:
        """Check the files that hold these rows, before they are copied: a copy gets checksums of its own.

        Args:
            besides: fragments that are known to be as they were written.
        Returns: the fragments that were checked.
        Raises: MemoryStoreError at a file that is not as it was written.
        """
        checksums = self.storage.checksums() or {}
        holders = [
            names
            for names, fragment in self.fragments().items()
            if names not in besides and np.isin(list(row_ids), self.row_ids([fragment])).any()
        ]
        for names in holders:
            version_files.require_as_written(self.path, names, checksums)
        return holders

    # Writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer, at the newest version. What the body stages and does not commit is removed.

        Raises: MemoryStoreError if somebody else writes or has committed since, or if nobody can.
        """
        with version_files.writing(self.storage):
            self.require_newest()
            yield

    def require_newest(self) -> None:
        """Raises: MemoryStoreError if someone committed after this version."""
        newest = int(self.dataset.latest_version)
        if newest != self.version:
            raise MemoryStoreError(
                f"{self.path} was opened at version {self.version} but its newest is {newest}; "
                "open it without a version and try again"
            )

    def record_batch(self, passages: Sequence[Passage], vectors: npt.NDArray[np.float16]) -> pa.RecordBatch:
        """Rows of the table. vectors: (n, D). Raises: DataError for a value that its column cannot hold."""
        return to_record_batch(self.columns, passages, vectors)

    @property
    def columns(self) -> pa.Schema:
        """The columns in the table's own order, by which Lance numbers them, with this card and its dimension."""
        ours, present = schema(self.card), self.dataset.schema
        place = present.get_field_index("vector")
        return present.set(place, ours.field("vector")).with_metadata((present.metadata or {}) | ours.metadata)

    def stage(self, batches: Iterable[pa.RecordBatch]) -> Staged:
        """Write rows to files that no version contains yet; ``commit`` makes them part of one.

        Within ``writing``, which removes the files if anything fails.
        """
        staged = Staged()
        pending: list[pa.RecordBatch] = []
        for batch in batches:
            pending.append(batch)
            if sum(map(len, pending)) >= ROWS_PER_FRAGMENT:
                staged += self._written(pending)
                pending = []
        return staged + self._written(pending) if pending else staged

    def _written(self, batches: list[pa.RecordBatch]) -> Staged:
        import pyarrow as pa
        from lance.fragment import write_fragments

        rows = pa.Table.from_batches(batches)
        same = rows.schema.field("vector").type == self.dataset.schema.field("vector").type
        with version_files.changing(self.path):
            return self._safe(write_fragments(rows, self.dataset, mode="append" if same else "overwrite"))

    def _safe(self, fragments: list[FragmentMetadata]) -> Staged:
        """New fragments, forced to the disk and hashed while the system has them in RAM. Raises: OSError."""
        names = [f"data/{file.path}" for fragment in fragments for file in fragment.files]
        self.storage.force(names)
        return Staged(fragments, {name: Checksum.of(self.path / name) for name in names})

    def commit(self, staged: Staged | None = None, *, removed_ids: Collection[str] = (), change: str) -> Table:
        """One new version: without the rows of ``removed_ids``, then with the staged rows, if any, at the end.

        Raises: MemoryStoreError if the disk fails or someone has committed after this version.
        """
        import lance
        import pyarrow as pa

        staged = staged or Staged()
        operation: Any = lance.LanceOperation.Append(staged.fragments)
        checksums = staged.checksums
        if removed_ids:
            rows = pa.table({"id": pa.array(list(removed_ids), pa.string())})
            with version_files.changing(self.path):
                transaction, _ = self.dataset.merge_insert("id").when_matched_delete().execute_uncommitted(rows)
                operation = transaction.operation
                deletions = [fragment.deletion_file.path(fragment.id) for fragment in operation.updated_fragments]
                self.storage.force(deletions)
                checksums = checksums | {name: Checksum.of(self.path / name) for name in deletions}
            operation.new_fragments = [*operation.new_fragments, *staged.fragments]
        return self._commit(operation, change, checksums)

    def with_columns(self, names: Collection[str]) -> Table:
        """The table with these of ``LATER_COLUMNS``: where one is missing, a version of its own that adds it.

        Within ``writing``. No file is read or written, since null means that there is nothing.
        """
        import lance
        import pyarrow as pa
        from lance.schema import LanceSchema

        missing = [name for name in LATER_COLUMNS if name in names and name not in self.passage_columns]
        if not missing:
            return self
        columns = self.dataset.schema
        for name in missing:  # fields are numbered in their order, as when the table was made
            columns = columns.append(pa.field(name, pa.string(), nullable=True))
        fragments = [fragment.metadata for fragment in self.dataset.get_fragments()]
        operation = lance.LanceOperation.Merge(fragments, LanceSchema.from_pyarrow(columns))
        return self._commit(operation, f"made ready for {' and '.join(missing)}", {})

    def replace_all(self, staged: Staged, *, change: str) -> Table:
        """One new version that holds the staged rows only, and this table's card. Raises: as ``commit``."""
        import lance

        operation = lance.LanceOperation.Overwrite(self.columns, staged.fragments)
        return self._commit(operation, change, staged.checksums)

    def compact(self, *, deleted_share: float = 0.1, keep: Collection[int] = (), change: str | None = None) -> Table:
        """One new version with the same rows under the same row ids, in fewer files.

        Fragments are written anew that are small, or of whose rows more than this share has been deleted. Their rows
        come after those of the fragments that are left alone, for Lance sorts fragments by number.

        Args:
            keep: ids of fragments that are left alone.
            change: what the log says; None: how many files there were and are.
        Returns: this table if there is nothing to do.
        Raises: MemoryStoreError if a file to be written anew is not as it was written; also as ``commit``.
        """
        import lance
        from lance.optimize import Compaction

        options: Any = {
            "target_rows_per_fragment": ROWS_PER_FRAGMENT,
            "materialize_deletions_threshold": deleted_share,
            "excluded_fragment_ids": list(keep),
        }
        with version_files.changing(self.path):
            tasks = Compaction.plan(self.dataset, options).tasks
        results: list[Any] = [self._execute(task) for task in tasks]
        if not results:
            return self
        # Lance's own commit makes two versions, the first of which only reserves these numbers.
        numbers = count(1 + max(fragment.fragment_id for fragment in self.dataset.get_fragments()))
        groups, new, num_old = [], [], 0
        for result in results:
            rewritten = result.new_fragments
            for fragment in rewritten:
                fragment.id = next(numbers)
            groups.append(lance.LanceOperation.RewriteGroup(result.original_fragments, rewritten))
            new += rewritten
            num_old += len(result.original_fragments)
        operation = lance.LanceOperation.Rewrite(groups, rewritten_indices=[])
        with version_files.changing(self.path):
            staged = self._safe(new)
        self._commit(operation, change or f"compacted {num_old} files to {len(new)}", staged.checksums)
        # Opened anew, since what this session has cached of a fragment may be that of an older one with its number.
        return Table.open(self.storage)

    def _execute(self, task: CompactionTask) -> Any:
        """Check what a task reads, some hundred megabytes, and read it again while the system has it in its cache."""
        by_id = {fragment.fragment_id: names for names, fragment in self.fragments().items()}
        names = {name for fragment in task.fragments for name in by_id[fragment.id]}
        version_files.require_as_written(self.path, names, self.storage.checksums() or {})
        with version_files.changing(self.path):
            return task.execute(self.dataset)

    def exchange(self, fragments: list[LanceFragment], staged: Staged, *, change: str) -> Table:
        """One new version without these fragments, then with the staged rows at the end. Raises: as ``commit``."""
        import lance

        removed = [fragment.fragment_id for fragment in fragments]
        operation = lance.LanceOperation.Update(removed_fragment_ids=removed, new_fragments=staged.fragments)
        return self._commit(operation, change, staged.checksums)

    def _commit(self, operation: Any, change: str, checksums: Mapping[str, Checksum]) -> Table:
        """Publish a version, on the disk when this returns.

        Its files were forced there before. The manifest comes next, last the record that acknowledges it.

        Args:
            checksums: of the new files with rows and deletions.
        """
        from lance.commit import CommitConflictError

        self.require_newest()
        with version_files.changing(self.path):
            try:
                dataset = self.storage.publish(self.dataset, operation, change=change)
            except CommitConflictError as error:
                raise MemoryStoreError(
                    f"someone else committed to {self.path} after version {self.version}; "
                    "open it without a version and try again"
                ) from error
        try:
            transaction = dataset.read_transaction(dataset.version)
            assert transaction is not None
            # Not all transactions on top of this version: without a lock, those of others who lose come and go.
            name = f"_transactions/{transaction.read_version}-{transaction.uuid}.txn"
            published = [name, version_files.manifest_name(dataset.version)]
            self.storage.force(published)
            self.storage.record({**checksums, **{name: Checksum.of(self.path / name) for name in published}})
        except OSError as error:
            raise MemoryStoreError(
                f"version {dataset.version} of {self.path} is committed, but a power failure may take it "
                f"({error.strerror or error}); mend the disk, then run `latentrag index verify {self.path}`"
            ) from error
        return Table(self.storage, dataset, self.card)


@dataclass(frozen=True, slots=True)
class RowsByName:
    """Where passages of a version are: row ids, (N,), in the order of the hashes, (N,), of names that they have."""

    hashes: npt.NDArray[np.int64]
    row_ids: npt.NDArray[np.int64]

    @classmethod
    def of(cls, table: Table, names: Callable[[str], Iterable[str]] = lambda key: (key,)) -> RowsByName:
        """Reads all ids of the table. Args: names: id → the names under which the passage is found."""
        hashes, row_ids = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for keys, rows in table.id_batches():
            named = [(name, place) for place, key in enumerate(keys) for name in names(key)]
            hashes.append(_hashes([name for name, _ in named]))
            row_ids.append(rows[[place for _, place in named]])
        of_all = np.concatenate(hashes)
        order = np.argsort(of_all, kind="stable")
        return cls(of_all[order], np.concatenate(row_ids)[order])

    def candidates(self, names: Sequence[str]) -> list[int]:
        """Row ids of all passages with these names, and perhaps of others, whose names have the same hash."""
        wanted = _hashes(names)
        first = np.searchsorted(self.hashes, wanted, "left")
        end = np.searchsorted(self.hashes, wanted, "right")
        return sorted({int(row) for i, j in zip(first, end, strict=True) if i < j for row in self.row_ids[i:j]})


def _hashes(ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Python's own, which differ from process to process: for RAM only."""
    return np.fromiter(map(hash, ids), np.int64, len(ids))


def _shown_versions(path: Folder) -> str:
    existing = version_files.version_numbers(path)
    older = "…, " if len(existing) > SHOWN_VERSIONS else ""
    return older + ", ".join(map(str, existing[-SHOWN_VERSIONS:]))
