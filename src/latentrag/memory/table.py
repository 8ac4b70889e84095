"""The Lance table of a memory: columns, atomic commits, reads. Nothing here knows of encoders or queries."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from latentrag.errors import DataError, MemoryStoreError
from latentrag.memory.manifest import Manifest
from latentrag.types import Passage

if TYPE_CHECKING:
    import lance
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.compute as pc
    from lance.fragment import FragmentMetadata

MANIFEST_KEY = b"latentrag.manifest"
PASSAGE_COLUMNS = ["id", "text", "title", "source", "start", "end", "page", "origin"]
ROWS_PER_FRAGMENT = 65_536
"""Rows gathered in RAM before they are written: about 150 MB at 768 dimensions and 100 words."""
ROWS_PER_READ = 8_192
SHOWN_VERSIONS = 10


@dataclass(frozen=True, slots=True)
class Version:
    """One commit of a memory. ``change`` says what it did, in words; ``time`` is UTC."""

    number: int
    time: datetime
    num_passages: int
    change: str


def schema(manifest: Manifest) -> pa.Schema:
    """The columns; vectors are fp16, offsets and page as in ``Passage``. The manifest is their metadata.

    A memory that is older than `index sync` has no ``origin`` until its first sync; null there means added by hand.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("title", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("start", pa.int64(), nullable=False),
            pa.field("end", pa.int64(), nullable=False),
            pa.field("page", pa.int32(), nullable=True),
            pa.field("vector", pa.list_(pa.float16(), manifest.dimension), nullable=False),
            pa.field("origin", pa.string(), nullable=True),
        ],
        metadata={MANIFEST_KEY: manifest.to_json().encode()},
    )


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
        # Row ids that survive compaction: reading by position slows 400-fold after scattered deletes.
        dataset = lance.write_dataset(empty, str(path), enable_stable_row_ids=True, commit_message="created")
        return cls(path, dataset, manifest)

    @classmethod
    def open(cls, path: Path, version: int | None = None) -> Table:
        """The table at that or the newest version. Raises: MemoryStoreError."""
        import lance

        _require_folder_of_a_table(path)
        with _reading(path):
            dataset = lance.dataset(str(path))
        if MANIFEST_KEY not in (dataset.schema.metadata or {}):
            raise MemoryStoreError(
                f"{path} is a Lance table but not a memory of latentrag; "
                "make a memory with `latentrag index add PATH FILES…`"
            )
        if version is not None and version != dataset.version:
            existing = sorted(ref["version"] for ref in dataset.version_refs())
            if version not in existing:
                shown = ", ".join(map(str, existing[-SHOWN_VERSIONS:]))
                older = "…, " if len(existing) > SHOWN_VERSIONS else ""
                raise MemoryStoreError(f"{path} has no version {version}; choose one of {older}{shown}")
            with _reading(path):
                dataset = dataset.checkout_version(version)
        # Each version has its own: a memory that was re-encoded had another encoder before.
        return cls(path, dataset, Manifest.from_json(dataset.schema.metadata[MANIFEST_KEY].decode()))

    @property
    def version(self) -> int:
        return int(self.dataset.version)

    def __len__(self) -> int:
        return int(self.dataset.count_rows())

    def log(self) -> list[Version]:
        """Every version up to this one, oldest first."""
        with _reading(self.path):
            return [
                Version(
                    number=found["version"],
                    # Lance gives local time without a zone.
                    time=cast("datetime", found["timestamp"]).astimezone(UTC),
                    num_passages=int(found["metadata"]["total_rows"]),
                    change=self._change(found["version"]),
                )
                for found in self.dataset.versions()
                if found["version"] <= self.version
            ]

    def _change(self, version: int) -> str:
        from lance.dataset import LANCE_COMMIT_MESSAGE_KEY

        transaction = self.dataset.read_transaction(version)
        properties = (transaction.transaction_properties if transaction else None) or {}
        return properties.get(LANCE_COMMIT_MESSAGE_KEY, "unknown")

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

    def passages(self) -> Iterator[Passage]:
        """Every passage, in the order of the rows; one batch in RAM at a time."""
        for batch in self._scan(self.passage_columns):
            yield from _to_passages(batch)

    def vectors(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
        """Batches of row ids (n,) and vectors (n, D), in the order of the rows."""
        for batch in self._scan(["vector"], with_row_id=True):
            flat = batch["vector"].flatten().to_numpy(zero_copy_only=False)
            yield batch["_rowid"].to_numpy().astype(np.int64), flat.reshape(len(batch), self.manifest.dimension)

    def take(self, row_ids: Sequence[int]) -> dict[int, Passage]:
        """The passages with these row ids, by row id; one read."""
        chosen = f"_rowid IN ({', '.join(map(str, row_ids))})"
        with _reading(self.path):
            rows = self.dataset.scanner(columns=self.passage_columns, filter=chosen, with_row_id=True).to_table()
        return dict(zip(rows["_rowid"].to_pylist(), _to_passages(rows), strict=True))

    def find(self, ids: Collection[str]) -> dict[str, Passage]:
        """The passages with these ids, by id; ids that are not there are left out."""
        import pyarrow.compute as pc

        with _reading(self.path):
            rows = self.dataset.to_table(columns=self.passage_columns, filter=pc.field("id").isin(list(ids)))
        return {passage.id: passage for passage in _to_passages(rows)}

    def record_batches(self) -> Iterator[pa.RecordBatch]:
        """Every row with its vector, in the order of the rows."""
        yield from self._scan([*self.passage_columns, "vector"])

    def origins(self) -> Iterator[tuple[str, str]]:
        """Every passage's id and origin, in the order of the rows."""
        columns = [name for name in self.passage_columns if name in {"id", "origin"}]
        for batch in self._scan(columns):
            origins = batch["origin"].to_pylist() if "origin" in columns else [None] * len(batch)
            yield from ((key, origin or "") for key, origin in zip(batch["id"].to_pylist(), origins, strict=True))

    def passages_where(self, condition: pc.Expression) -> Iterator[tuple[Passage, int]]:
        """The passages that meet a condition on the columns, with their row ids, in the order of the rows."""
        for batch in self._scan(self.passage_columns, with_row_id=True, condition=condition):
            yield from zip(_to_passages(batch), batch["_rowid"].to_pylist(), strict=True)

    def vectors_of(self, row_ids: Sequence[int]) -> npt.NDArray[np.float16]:
        """The vectors with these row ids, all different, in this order: (n, D). One read."""
        chosen = f"_rowid IN ({', '.join(map(str, row_ids))})"
        with _reading(self.path):
            rows = self.dataset.scanner(columns=["vector"], filter=chosen, with_row_id=True).to_table()
        flat = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        found = flat.reshape(rows.num_rows, self.manifest.dimension)
        place = {row_id: i for i, row_id in enumerate(rows["_rowid"].to_pylist())}
        return cast("npt.NDArray[np.float16]", found[[place[row_id] for row_id in row_ids]])

    def _scan(
        self, columns: list[str], *, with_row_id: bool = False, condition: pc.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        with _reading(self.path):
            yield from self.dataset.scanner(
                columns=columns,
                with_row_id=with_row_id,
                batch_size=ROWS_PER_READ,
                scan_in_order=True,
                filter=condition,
            ).to_batches()

    # Writing

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
        import pyarrow as pa

        columns = self._columns()
        try:
            arrays = {
                name: pa.array([getattr(passage, name) for passage in passages], columns.field(name).type)
                for name in self.passage_columns
            }
        except (pa.ArrowException, UnicodeError, OverflowError) as error:
            raise DataError(
                f"one of {passages[0].id!r} to {passages[-1].id!r} cannot be stored ({error}); correct it"
            ) from error
        values = pa.array(vectors.ravel())
        arrays["vector"] = pa.FixedSizeListArray.from_arrays(values, self.manifest.dimension)
        return pa.RecordBatch.from_arrays([arrays[name] for name in columns.names], schema=columns)

    def _columns(self) -> pa.Schema:
        """The columns in the table's own order, by which Lance numbers them, with this manifest."""
        return self.dataset.schema.with_metadata(schema(self.manifest).metadata)

    def stage(self, batches: Iterable[pa.RecordBatch]) -> list[FragmentMetadata]:
        """Write rows to files that no version contains yet; ``commit`` makes them part of one.

        If anything fails on the way, the exception passes and the files are removed.
        """
        staged: list[FragmentMetadata] = []
        try:
            for rows in _gathered(batches, ROWS_PER_FRAGMENT):
                staged += self._write(rows)
            self.require_newest()
        except BaseException:
            self._discard(staged)
            raise
        return staged

    def _discard(self, staged: list[FragmentMetadata]) -> None:
        for fragment in staged:
            for file in fragment.files:
                (self.path / "data" / file.path).unlink(missing_ok=True)

    def _write(self, rows: list[pa.RecordBatch]) -> list[FragmentMetadata]:
        import pyarrow as pa
        from lance.fragment import write_fragments

        return write_fragments(pa.Table.from_batches(rows), self.dataset, mode="append")

    def commit(self, staged: list[FragmentMetadata], *, removed_ids: Collection[str], change: str) -> Table:
        """One new version: without the rows of ``removed_ids``, then with the staged rows at the end.

        Raises: MemoryStoreError if someone has committed what this change cannot follow, a re-encoding for instance;
            the staged rows are removed then.
        """
        import lance
        import pyarrow as pa

        operation: Any = lance.LanceOperation.Append(staged)
        if removed_ids:
            rows = pa.table({"id": pa.array(list(removed_ids), pa.string())})
            transaction, _ = self.dataset.merge_insert("id").when_matched_delete().execute_uncommitted(rows)
            operation = transaction.operation
            operation.new_fragments = [*operation.new_fragments, *staged]
        return self._commit(operation, staged, change)

    def with_origins(self) -> Table:
        """The table with the column ``origin``: a version of its own, which adds the column where it is missing."""
        import lance
        import pyarrow as pa
        from lance.schema import LanceSchema

        if "origin" in self.passage_columns:
            return self
        self.require_newest()
        fragments = [fragment.metadata for fragment in self.dataset.get_fragments()]
        # Fields are numbered in their order, as when the table was made.
        columns = LanceSchema.from_pyarrow(self.dataset.schema.append(pa.field("origin", pa.string(), nullable=True)))
        return self._commit(lance.LanceOperation.Merge(fragments, columns), [], "made ready to be synced")

    def replace_all(self, staged: list[FragmentMetadata], *, change: str) -> Table:
        """One new version that holds the staged rows only, and this table's manifest.

        Raises: MemoryStoreError if someone has committed after this version; the staged rows are removed then.
        """
        import lance

        return self._commit(lance.LanceOperation.Overwrite(self._columns(), staged), staged, change)

    def _commit(self, operation: Any, staged: list[FragmentMetadata], change: str) -> Table:
        import lance
        from lance.commit import CommitConflictError

        try:
            # A retry would overwrite a version that somebody else has made meanwhile.
            dataset = lance.LanceDataset.commit(
                self.dataset, operation, read_version=self.version, commit_message=change, max_retries=0
            )
        except CommitConflictError as error:
            self._discard(staged)
            raise MemoryStoreError(
                f"someone else committed to {self.path} after version {self.version}; "
                "open it without a version and try again"
            ) from error
        return Table(self.path, dataset, self.manifest)


def _require_folder_of_a_table(path: Path) -> None:
    remedy = "make a memory with `latentrag index add PATH FILES…`"
    if not path.exists():
        raise MemoryStoreError(f"there is no memory at {path}; {remedy}")
    if not path.is_dir():
        raise MemoryStoreError(
            f"{path} is a {path.suffix or 'plain'} file, a memory is a folder with a Lance table, "
            f"and pickles and foreign indexes are never loaded; {remedy}"
        )
    if not (path / "_versions").is_dir():
        raise MemoryStoreError(
            f"{path} is a folder without a Lance table, "
            f"and pickles and foreign indexes in it are never loaded; {remedy}"
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Lance's failures as one line that names the memory."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = re.split(r", /|\n", str(error))[0]  # without the places in Lance's own source
        raise MemoryStoreError(
            f"the memory at {path} cannot be read ({reason}); restore it from a copy or build it again"
        ) from error


def _to_passages(rows: pa.RecordBatch | pa.Table) -> list[Passage]:
    *names, origin = PASSAGE_COLUMNS
    columns = [rows[name].to_pylist() for name in names]
    origins = rows[origin].to_pylist() if origin in rows.schema.names else [None] * rows.num_rows
    columns.append([each or "" for each in origins])
    return [Passage(*values) for values in zip(*columns, strict=True)]


def _gathered(batches: Iterable[pa.RecordBatch], num_rows: int) -> Iterator[list[pa.RecordBatch]]:
    """Groups of batches with at least ``num_rows`` rows each; the last may have fewer."""
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(map(len, group)) >= num_rows:
            yield group
            group = []
    if group:
        yield group
