"""The Lance table of a memory: columns, atomic commits, reads. Nothing here knows of encoders or queries."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from latentrag import io
from latentrag.errors import MemoryStoreError, UnknownVersionError
from latentrag.memory import damage, durable, files, recovery
from latentrag.memory.log import Version, log
from latentrag.memory.manifest import Manifest
from latentrag.memory.rows import MANIFEST_KEY, PASSAGE_COLUMNS, gathered, schema, to_passages, to_record_batch
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
ROWS_PER_READ = 8_192
SHOWN_VERSIONS = 10


@dataclass(frozen=True, slots=True)
class Table:
    """One version of the table at ``path``: later commits do not change it. Safe for concurrent reads."""

    path: Path
    dataset: lance.LanceDataset
    manifest: Manifest

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> Table:
        """An empty table in a new folder. Raises: MemoryStoreError if something is at ``path`` already."""
        import lance

        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise MemoryStoreError(f"{path} exists already; open it, or choose a path that is free")
        empty = schema(manifest).empty_table()
        with recovery.changing(path):
            # Row ids that survive compaction: reading by position slows 400-fold after scattered deletes.
            dataset = lance.write_dataset(empty, str(path), enable_stable_row_ids=True, commit_message="created")
            io.sync_all(path, files.present(path))
            durable.record(path, [files.manifest_name(1)])
            io.sync_folder(path.parent)
        return cls(path, dataset, manifest)

    @classmethod
    def open(cls, path: Path, version: int | None = None) -> Table:
        """The table at that version or at the newest that is whole. Raises: MemoryStoreError."""
        files.require_table(path)
        if version is None:
            dataset = files.open_newest_whole(path)
        elif files.has_version(path, version):
            dataset = files.open_whole(path, version)
        else:
            raise UnknownVersionError(f"{path} has no version {version}; choose one of {_shown_versions(path)}")
        return cls._of(path, dataset)

    @classmethod
    def open_readable(cls, path: Path, version: int) -> Table:
        """The table at that version although its files may be damaged: what can be told without them, and what of
        them is intact. Raises: MemoryStoreError if its manifest is damaged."""
        return cls._of(path, files.open_readable(path, version))

    @classmethod
    def _of(cls, path: Path, dataset: lance.LanceDataset) -> Table:
        if MANIFEST_KEY not in (dataset.schema.metadata or {}):
            raise MemoryStoreError(
                f"{path} is a Lance table but not a memory of latentrag; "
                "make a memory with `latentrag index add PATH FILES…`"
            )
        # Each version has its own: a memory that was re-encoded had another encoder before.
        return cls(path, dataset, Manifest.from_json(dataset.schema.metadata[MANIFEST_KEY].decode()))

    @property
    def version(self) -> int:
        return int(self.dataset.version)

    def __len__(self) -> int:
        return int(self.dataset.count_rows())

    def log(self) -> list[Version]:
        """Every version up to this one, oldest first. Those that cannot be read are left out, with a warning."""
        return log(self.path, self.dataset)

    @property
    def passage_columns(self) -> list[str]:
        """Those of PASSAGE_COLUMNS that the table has."""
        present = set(self.dataset.schema.names)
        return [name for name in PASSAGE_COLUMNS if name in present]

    # Reading

    def ids(self) -> Iterator[str]:
        """Every passage's id, in the order of the rows."""
        for batch in self._scan(["id"]):
            yield from batch["id"].to_pylist()

    def passages(self, *, besides: Collection[tuple[str, ...]] = ()) -> Iterator[Passage]:
        """Every passage, in the order of the rows; one batch in RAM at a time.

        Args:
            besides: fragments to leave out, as ``fragments`` names them.
        """
        fragments = self.fragments()
        if kept := [fragments[key] for key in fragments if key not in besides]:
            for batch in self._scan(self.passage_columns, fragments=kept):
                yield from to_passages(batch)

    def passages_to_copy(self) -> Iterator[Passage]:
        """As ``passages``, for what is written anew. Raises: MemoryStoreError at a file that is not as it was written,
        before any of its passages."""
        for batch in self._scan_to_copy(self.passage_columns):
            yield from to_passages(batch)

    def fragments(self) -> dict[tuple[str, ...], LanceFragment]:
        """The parts that the rows are in, by their files' names; other versions with the same have the same rows."""
        with files.reading(self.path):
            return {tuple(files.of_fragment(each)): each for each in self.dataset.get_fragments()}

    def vectors(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
        """Batches of row ids (n,) and vectors (n, D), in the order of the rows."""
        for batch in self._scan(["vector"], with_row_id=True):
            flat = batch["vector"].flatten().to_numpy(zero_copy_only=False)
            yield batch["_rowid"].to_numpy().astype(np.int64), flat.reshape(len(batch), self.manifest.dimension)

    def take(self, row_ids: Sequence[int]) -> dict[int, Passage]:
        """The passages with these row ids, by row id; one read."""
        with files.reading(self.path):
            # The public ways are a filter, which takes 0.4 ms longer to plan, and positions, which deletes shift.
            rows = self.dataset._take_rows(row_ids, columns=[*self.passage_columns, "_rowid"])  # noqa: SLF001
        return dict(zip(rows["_rowid"].to_pylist(), to_passages(rows), strict=True))

    def find(self, ids: Collection[str]) -> dict[str, Passage]:
        """The passages with these ids, by id; ids that are not there are left out."""
        import pyarrow.compute as pc

        with files.reading(self.path):
            rows = self.dataset.to_table(columns=self.passage_columns, filter=pc.field("id").isin(list(ids)))
        return {passage.id: passage for passage in to_passages(rows)}

    def record_batches(self) -> Iterator[pa.RecordBatch]:
        """Every row with its vector, in the order of the rows. Raises: as ``passages_to_copy``."""
        yield from self._scan_to_copy([*self.passage_columns, "vector"])

    def row_ids(self, fragments: list[LanceFragment]) -> npt.NDArray[np.int64]:
        """Of these fragments' rows, (n,), in their order. Manifests have them: no data file is read, or missed."""
        scanned = self._scan([], with_row_id=True, fragments=fragments) if fragments else ()
        parts = [batch["_rowid"].to_numpy() for batch in scanned]
        return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)

    def ids_with_row_ids(self, fragments: list[LanceFragment]) -> Iterator[tuple[str, int]]:
        """As ``ids``, of these fragments, each with its row id."""
        for batch in self._scan(["id"], with_row_id=True, fragments=fragments):
            yield from zip(batch["id"].to_pylist(), batch["_rowid"].to_pylist(), strict=True)

    def rows(
        self, fragments: list[LanceFragment], row_ids: npt.NDArray[np.int64]
    ) -> Iterator[tuple[list[Passage], npt.NDArray[np.float16]]]:
        """Batches of those rows of these fragments that have one of these row ids: n passages and vectors (n, D)."""
        import pyarrow as pa

        columns = [*self.passage_columns, "vector"]
        for batch in self._scan(columns, with_row_id=True, fragments=fragments):
            kept = batch.filter(pa.array(np.isin(batch["_rowid"].to_numpy(), row_ids)))
            if len(kept):
                flat = kept["vector"].flatten().to_numpy(zero_copy_only=False)
                yield to_passages(kept), flat.reshape(len(kept), self.manifest.dimension)

    def origins(self) -> Iterator[tuple[str, str]]:
        """Every passage's id and origin, in the order of the rows."""
        columns = [name for name in self.passage_columns if name in {"id", "origin"}]
        for batch in self._scan(columns):
            origins = batch["origin"].to_pylist() if "origin" in columns else [None] * len(batch)
            yield from ((key, origin or "") for key, origin in zip(batch["id"].to_pylist(), origins, strict=True))

    def passages_where(self, condition: pc.Expression) -> Iterator[tuple[Passage, int]]:
        """The passages that meet a condition on the columns, with their row ids, in the order of the rows."""
        for batch in self._scan(self.passage_columns, with_row_id=True, condition=condition):
            yield from zip(to_passages(batch), batch["_rowid"].to_pylist(), strict=True)

    def vectors_of(self, row_ids: Sequence[int]) -> npt.NDArray[np.float16]:
        """The vectors with these row ids, all different, in this order: (n, D). One read."""
        chosen = f"_rowid IN ({', '.join(map(str, row_ids))})"
        with files.reading(self.path):
            rows = self.dataset.scanner(columns=["vector"], filter=chosen, with_row_id=True).to_table()
        flat = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        found = flat.reshape(rows.num_rows, self.manifest.dimension)
        place = {row_id: i for i, row_id in enumerate(rows["_rowid"].to_pylist())}
        return cast("npt.NDArray[np.float16]", found[[place[row_id] for row_id in row_ids]])

    def _scan(
        self,
        columns: list[str],
        *,
        with_row_id: bool = False,
        condition: pc.Expression | None = None,
        fragments: list[LanceFragment] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        with files.reading(self.path):
            yield from self.dataset.scanner(
                columns=columns,
                with_row_id=with_row_id,
                fragments=fragments,
                batch_size=ROWS_PER_READ,
                scan_in_order=True,
                filter=condition,
            ).to_batches()

    def _scan_to_copy(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """A copy gets a checksum of its own, with which damage would pass for what was written."""
        known = durable.recorded(self.path)
        for names, fragment in self.fragments().items():
            damage.require_as_written(self.path, names, known)  # which leaves them in the system's cache
            yield from self._scan(columns, fragments=[fragment])

    # Writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer, at the newest version. What the body stages and does not commit is removed.

        Raises: MemoryStoreError if somebody else writes or has committed since, or if nobody can.
        """
        with recovery.writing(self.path):
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
        return to_record_batch(self._columns(), passages, vectors)

    def _columns(self) -> pa.Schema:
        """The columns in the table's own order, by which Lance numbers them, with this manifest."""
        return self.dataset.schema.with_metadata(schema(self.manifest).metadata)

    def stage(self, batches: Iterable[pa.RecordBatch]) -> list[FragmentMetadata]:
        """Write rows to files that no version contains yet; ``commit`` makes them part of one.

        Within ``writing``, which removes the files if anything fails.
        """
        staged: list[FragmentMetadata] = []
        for rows in gathered(batches, ROWS_PER_FRAGMENT):
            staged += self._write(rows)
        return staged

    def _write(self, rows: list[pa.RecordBatch]) -> list[FragmentMetadata]:
        import pyarrow as pa
        from lance.fragment import write_fragments

        with recovery.changing(self.path):
            return write_fragments(pa.Table.from_batches(rows), self.dataset, mode="append")

    def commit(self, staged: list[FragmentMetadata], *, removed_ids: Collection[str], change: str) -> Table:
        """One new version: without the rows of ``removed_ids``, then with the staged rows at the end.

        Raises: MemoryStoreError if the disk fails or someone has committed after this version.
        """
        import lance
        import pyarrow as pa

        operation: Any = lance.LanceOperation.Append(staged)
        before = files.present(self.path)
        if removed_ids:
            rows = pa.table({"id": pa.array(list(removed_ids), pa.string())})
            with recovery.changing(self.path):
                transaction, _ = self.dataset.merge_insert("id").when_matched_delete().execute_uncommitted(rows)
            operation = transaction.operation
            operation.new_fragments = [*operation.new_fragments, *staged]
        return self._commit(operation, change, new_files=files.present(self.path) - before | _data_files(staged))

    def with_origins(self) -> Table:
        """The table with the column ``origin``: a version of its own, which adds the column where it is missing."""
        import lance
        import pyarrow as pa
        from lance.schema import LanceSchema

        if "origin" in self.passage_columns:
            return self
        fragments = [fragment.metadata for fragment in self.dataset.get_fragments()]
        # Fields are numbered in their order, as when the table was made.
        columns = LanceSchema.from_pyarrow(self.dataset.schema.append(pa.field("origin", pa.string(), nullable=True)))
        operation = lance.LanceOperation.Merge(fragments, columns)
        with self.writing():
            return self._commit(operation, "made ready to be synced", new_files=())

    def replace_all(self, staged: list[FragmentMetadata], *, change: str) -> Table:
        """One new version that holds the staged rows only, and this table's manifest. Raises: as ``commit``."""
        import lance

        operation = lance.LanceOperation.Overwrite(self._columns(), staged)
        return self._commit(operation, change, new_files=_data_files(staged))

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
        with recovery.changing(self.path):
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
        change = change or f"compacted {num_old} files to {len(new)}"
        self._commit(operation, change, new_files=_data_files(new))
        # Opened anew, since what this session has cached of a fragment may be that of an older one with its number.
        return Table.open(self.path)

    def _execute(self, task: CompactionTask) -> Any:
        """Check what a task reads, some hundred megabytes, and read it again while the system has it in its cache."""
        by_id = {fragment.fragment_id: names for names, fragment in self.fragments().items()}
        read = {name for fragment in task.fragments for name in by_id[fragment.id]}
        damage.require_as_written(self.path, read, durable.recorded(self.path))
        with recovery.changing(self.path):
            return task.execute(self.dataset)

    def exchange(self, fragments: list[LanceFragment], staged: list[FragmentMetadata], *, change: str) -> Table:
        """One new version without these fragments, then with the staged rows at the end. Raises: as ``commit``."""
        import lance

        removed = [fragment.fragment_id for fragment in fragments]
        operation = lance.LanceOperation.Update(removed_fragment_ids=removed, new_fragments=staged)
        return self._commit(operation, change, new_files=_data_files(staged))

    def _commit(self, operation: Any, change: str, *, new_files: Collection[str]) -> Table:
        """Publish a version, on the disk when this returns.

        Files go to the disk before the manifest that names them, the manifest before the record that acknowledges it.
        """
        import lance
        from lance.commit import CommitConflictError

        self.require_newest()
        with recovery.changing(self.path):
            io.sync_all(self.path, new_files)
            try:
                # A retry would overwrite a version that somebody else has made meanwhile.
                dataset = lance.LanceDataset.commit(
                    self.dataset, operation, read_version=self.version, commit_message=change, max_retries=0
                )
            except CommitConflictError as error:
                raise MemoryStoreError(
                    f"someone else committed to {self.path} after version {self.version}; "
                    "open it without a version and try again"
                ) from error
        published = [*self._transaction_files(), files.manifest_name(dataset.version)]
        try:
            io.sync_all(self.path, published)
            durable.record(self.path, [*sorted(new_files), *published])
        except OSError as error:
            raise MemoryStoreError(
                f"version {dataset.version} of {self.path} is committed, but a power failure may take it "
                f"({error.strerror or error}); mend the disk, then run `latentrag index verify {self.path}`"
            ) from error
        return Table(self.path, dataset, self.manifest)

    def _transaction_files(self) -> list[str]:
        """Of commits on top of this version."""
        folder = self.path / "_transactions"
        return sorted(f"_transactions/{file.name}" for file in folder.glob(f"{self.version}-*.txn"))


def _data_files(fragments: Iterable[FragmentMetadata]) -> set[str]:
    return {f"data/{file.path}" for fragment in fragments for file in fragment.files}


def _shown_versions(path: Path) -> str:
    existing = files.version_numbers(path)
    older = "…, " if len(existing) > SHOWN_VERSIONS else ""
    return older + ", ".join(map(str, existing[-SHOWN_VERSIONS:]))
