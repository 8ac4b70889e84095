"""The kinds of indexes, and how one is built: from a table to a published index, within a bound on memory.

The rows are first copied to the files that searches read; the proposer is built from these vectors, and at last it is
measured how thoroughly it has to be searched. RAM holds only the proposer, its sample for training and a few megabytes.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from latentrag import io
from latentrag.errors import IndexDamagedError, InputError, MemoryStoreError
from latentrag.memory.indexes.changes import fragments, stream_with_passages
from latentrag.memory.indexes.folder import (
    EFFORT,
    PASSAGE_ENDS,
    PASSAGES,
    ROW_IDS,
    VECTORS,
    Description,
    IndexFolder,
    Published,
    discard,
)
from latentrag.memory.indexes.index import Kind, Places, Plan, Progress, Proposer, Rows, exact_best, recalls
from latentrag.memory.indexes.stored import (
    PassageFile,
    StoredIndex,
    VectorFile,
    mapped_numbers,
    passage_records,
    vector_bytes,
    vector_records,
)
from latentrag.memory.version_files import has_version
from latentrag.registry import Table as Registry

if TYPE_CHECKING:
    from latentrag.memory.table import Table

INDEX_KINDS: Registry[Kind] = Registry(
    "index",
    {
        "flat": "latentrag.memory.indexes.flat:FLAT",
        "ivf-rabitq": "latentrag.memory.indexes.ivf_rabitq:IVF_RABITQ",
    },
)
AUTO = "auto"
LARGEST_FLAT = 200_000
"""Up to here exact search in RAM is fast enough, and needs nothing built."""
PROCESS_BYTES = 200 << 20
"""Python and the libraries."""
MAPPED_BYTES = 16
"""Of a row: its id, and where its passage ends, in files that are mapped."""
MOST_READ_BYTES, MOST_COPIED_BYTES = 192 << 20, 224 << 20
"""What it leaves in RAM to read the table's vectors, or all of it: twice the vectors, and no more than this (ADR 6)."""
NUM_WEIGHED = 1_000

EFFORTS = (1.0, 1.5, 2.0, 3.0, 4.0)
NEEDED = {5: 0.995, 100: 0.985}
"""Recall at K of passages' own vectors. Questions are harder: theirs was 0.98 and 0.95 where it was this (ADR 6)."""
NUM_QUESTIONS = 200
REPORTED_K = 5


def require_choice(choice: str) -> None:
    """Raises: InputError unless it is "auto" or a kind of index."""
    choices = (AUTO, *INDEX_KINDS)
    if choice not in choices:
        raise InputError(f"index {choice!r} is unknown; needed one of {', '.join(choices)}")


def kind_by_size(choice: str, num_rows: int) -> str:
    """The kind that "auto" stands for where no index was built."""
    if choice != AUTO:
        return choice
    return "flat" if num_rows <= LARGEST_FLAT else "ivf-rabitq"


# Planning


def plan(kind: str, num_rows: int, dimension: int, *, max_memory: int | None = None) -> Plan:
    """Estimate a build, sampling less where memory is short.

    Args:
        max_memory: bytes that the process may hold; None: those of this machine.
    Raises: InputError if the bound cannot be kept.
    """
    bound = physical_bytes() if max_memory is None else max_memory
    row = INDEX_KINDS[kind]
    most_read = MOST_READ_BYTES if row.proposer is None else MOST_COPIED_BYTES
    besides = PROCESS_BYTES + min(2 * 2 * num_rows * dimension, most_read)
    if row.proposer is not None:
        besides += MAPPED_BYTES * num_rows
    needed = row.plan(num_rows, dimension, bound - besides)
    ram_bytes = needed.ram_bytes + besides
    if ram_bytes > bound:
        given = "this machine has" if max_memory is None else "it may take"
        other = "" if kind == "ivf-rabitq" else ", or build ivf-rabitq"
        raise InputError(
            f"the index {kind} of {num_rows} vectors of {dimension} needs {_size(ram_bytes)} of memory, {given} "
            f"{_size(bound)}; give it more{other}"
        )
    of_rows = 0 if row.proposer is None else num_rows * (vector_bytes(dimension) + 8)
    return replace(needed, ram_bytes=ram_bytes, disk_bytes=needed.disk_bytes + of_rows)


def physical_bytes() -> int:
    """RAM of this machine, or what this process may take of it; unlimited where the system does not say."""
    return min(io.num_bytes_of_ram() or sys.maxsize, *cgroup_limits(), sys.maxsize)


def cgroup_limits(root: Path = Path("/")) -> Iterator[int]:
    """Bytes that the control groups around this process let it take, of versions 1 and 2.

    A container may see its own group at the root of the tree, under whatever name the kernel knows it by, or the whole
    tree: a group counts where it is found, and so does every one around it.

    Args:
        root: of the file system.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        folder, name = "sys/fs/cgroup", "memory.max"
        if "memory" in controllers.split(","):
            folder, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        elif controllers:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for each in (group, *group.parents):
            with suppress(OSError, ValueError):  # a group that is not there, or "max"
                yield int((root / folder / each / name).read_text("utf-8"))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"


# Building


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """What a build gave.

    Attributes:
        ram_bytes: while it is searched, without the libraries; for flat 4·N·D.
        disk_bytes: of its files.
        recall: share of the five best passages that it finds, with passages' own vectors as questions.
        effort: how thoroughly it is searched, as a multiple of what is usual, because its vectors need it.
    """

    kind: str
    version: int
    num_passages: int
    ram_bytes: int
    disk_bytes: int
    recall: float
    effort: float
    wall_s: float


def build_index(
    table: Table, choice: str, *, folder: IndexFolder, max_memory: int | None, progress: bool
) -> BuiltIndex:
    """See ``Memory.build_index``."""
    require_choice(choice)
    num_rows, started = len(table), time.perf_counter()
    if not num_rows:
        raise MemoryStoreError(f"{table.path} has no passages at version {table.version}; add some first")
    kind = kind_by_size(choice, num_rows)
    planned = plan(kind, num_rows, table.card.dimension, max_memory=max_memory)
    if INDEX_KINDS[kind].proposer is None:
        folder.discard_all()
        ram_bytes, wall_s = 4 * num_rows * table.card.dimension, time.perf_counter() - started
        return BuiltIndex(kind, table.version, num_rows, ram_bytes, 0, 1.0, 1.0, wall_s)
    with io.progress(kind, None, wanted=progress) as bar:
        published = build(
            table,
            kind,
            planned,
            folder=folder,
            progress=lambda step, done, total: bar.update(description=step, completed=done, total=total),
        )
    wall_s = time.perf_counter() - started
    effort, recall = read_effort(published.folder)
    of_five = recall[min(REPORTED_K, num_rows)]
    ram_bytes, disk_bytes = published.ram_bytes, published.num_bytes
    return BuiltIndex(kind, table.version, num_rows, ram_bytes, disk_bytes, of_five, effort, wall_s)


def build(table: Table, kind: str, planned: Plan, *, folder: IndexFolder, progress: Progress) -> Published:
    """Make an index of a kind that is stored, and publish it; the same index is not made twice.

    Indexes of the same kind, and of kinds that are not in the table of kinds, are thrown away then.

    Raises: MemoryStoreError if there is no room on the disk or the folder cannot be written, or if the table is empty.
        After any exception what was there before is still there, and nothing else.
    """
    description = Description(
        kind=kind,
        version=table.version,
        fingerprint=table.card.fingerprint,
        dimension=table.card.dimension,
        num_rows=len(table),
        parameters=dict(planned.parameters),
        fragments=fragments(table),
    )
    with folder.building():
        for published in _named(folder, description):
            if _is_whole(published):
                published.prefer()
                return published
        _require_room(table, kind, planned, folder)
        with folder.publishing(description) as scratch:
            # Looked for once the scratch is there: a process that removes versions for good removes it afterwards.
            if not has_version(table.path, table.version):
                raise MemoryStoreError(f"version {table.version} of {table.path} is gone; build the index of another")
            _copy_rows(table, scratch, progress)
            vectors = _vectors(scratch, description)
            _proposer(kind).build(vectors, planned, scratch, progress)
            # What is searched is read anew, without the room that was left for growing.
            _choose_effort(_open(scratch, description), scratch, progress)
        made = _named(folder, description)
        for other in folder.indexes()[0]:
            is_old = other.description.kind == kind or other.description.kind not in INDEX_KINDS
            if is_old and other.description != description:
                discard(other.folder)
    if not made:
        raise MemoryStoreError(f"the index of {table.path} vanished while it was published; build it again")
    return made[0]


def _named(folder: IndexFolder, description: Description) -> list[Published]:
    return [published for published in folder.indexes()[0] if published.folder.name == description.name]


def _is_whole(published: Published) -> bool:
    try:
        published.verify()
        read_effort(published.folder)
    except (MemoryStoreError, OSError):
        return False
    return True


def _require_room(table: Table, kind: str, planned: Plan, folder: IndexFolder) -> None:
    free, needed = shutil.disk_usage(folder.path).free, planned.disk_bytes + bytes_of_passages(table)
    if needed > free:
        raise MemoryStoreError(
            f"the index {kind} needs {_size(needed)} on the disk of {folder.path}, {_size(free)} are free; make room"
        )


def bytes_of_passages(table: Table) -> int:
    """Size of their file, estimated from the first ones."""
    first = list(islice(table.passages(), NUM_WEIGHED))
    records = passage_records(first, np.zeros(len(first), np.int64), first_position=0)
    return round(len(table) * sum(len(record) + 8 for record in records) / max(1, len(records)))


def _copy_rows(table: Table, scratch: Path, progress: Progress) -> None:
    """Vectors, passages and row ids to their files."""
    names = (VECTORS, PASSAGES, PASSAGE_ENDS, ROW_IDS)
    vectors, texts, text_ends, row_ids = (scratch / name for name in names)
    num_rows, num_bytes = 0, 0
    with (
        vectors.open("xb") as to_vectors,
        texts.open("xb") as to_texts,
        text_ends.open("xb") as to_ends,
        row_ids.open("xb") as to_row_ids,
    ):
        for rows, passages in stream_with_passages(table):
            to_vectors.write(vector_records(rows.vectors, rows.row_ids, first_position=num_rows))
            records = passage_records(passages, rows.row_ids, first_position=num_rows)
            ends = num_bytes + np.cumsum([len(record) for record in records], dtype=np.int64)
            to_texts.write(b"".join(records))
            to_ends.write(ends.astype("<i8").tobytes())
            to_row_ids.write(rows.row_ids.astype("<i8").tobytes())
            num_rows, num_bytes = num_rows + len(records), int(ends[-1])
            progress("copying passages", num_rows, len(table))
    if num_rows != len(table):
        raise MemoryStoreError(f"{table.path} gave {num_rows} vectors, needed {len(table)}; verify the memory")


# Effort: how thoroughly an index is searched, which is measured when it is built


def _choose_effort(index: StoredIndex, folder: Path, progress: Progress) -> None:
    """Write the least effort with which an index finds what is needed. If none does: the greatest, with a warning."""
    num_rows = len(index)
    needed = {min(k, num_rows): share for k, share in NEEDED.items()}
    chosen = np.unique(np.linspace(0, num_rows - 1, NUM_QUESTIONS).astype(np.int64))
    q = index.vectors.read(chosen)

    def blocks() -> Iterator[Rows]:
        done = 0
        for rows in index.vectors.blocks():
            yield rows
            done += len(rows.row_ids)
            progress("measuring", done, num_rows)

    best_scores = exact_best(blocks(), q, max(needed))
    for effort in EFFORTS:
        index.proposer.effort = effort
        recall = {k: float(shares.mean()) for k, shares in recalls(index, best_scores, q, needed).items()}
        if all(recall[k] >= share for k, share in needed.items()):
            break
    else:
        finds = " and ".join(f"{share:.1%} of the {k} best" for k, share in recall.items())
        warnings.warn(
            f"the index {index.kind} finds {finds} passages, meant to find "
            f"{' and '.join(f'{share:.1%}' for share in needed.values())}; the index flat finds all of them",
            stacklevel=2,
        )
    (folder / EFFORT).write_text(json.dumps({"effort": effort, "recall": recall}), "utf-8")


def read_effort(folder: Path) -> tuple[float, dict[int, float]]:
    """The effort of an index, and the recall at K that was measured with it. Raises: IndexDamagedError."""
    try:
        content = json.loads((folder / EFFORT).read_bytes())
        effort, recall = float(content["effort"]), {int(k): float(share) for k, share in content["recall"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IndexDamagedError(folder / EFFORT, "is damaged, or of another format") from error
    if not EFFORTS[0] <= effort <= EFFORTS[-1]:
        raise IndexDamagedError(folder / EFFORT, f"says {effort}, needed {EFFORTS[0]} to {EFFORTS[-1]}")
    return effort, recall


# Opening


def opened(published: Published) -> StoredIndex:
    """An index from its files. Raises: IndexDamagedError; FileNotFoundError if it was thrown away meanwhile."""
    published.verify()
    if EFFORT not in published.files:
        raise IndexDamagedError(published.folder / EFFORT, "is missing")
    index = _open(published.folder, published.description)
    index.proposer.effort = read_effort(published.folder)[0]
    return index


def _open(folder: Path, of: Description) -> StoredIndex:
    vectors = _vectors(folder, of)
    return StoredIndex(
        kind=of.kind,
        proposer=_proposer(of.kind).read(
            folder, num_rows=of.num_rows, dimension=of.dimension, parameters=of.parameters
        ),
        vectors=vectors,
        places=Places.of(vectors.row_ids),
        texts=PassageFile(folder / PASSAGES, folder / PASSAGE_ENDS, num_rows=of.num_rows),
    )


def _vectors(folder: Path, of: Description) -> VectorFile:
    row_ids = mapped_numbers(folder / ROW_IDS, of.num_rows)
    return VectorFile(folder / VECTORS, dimension=of.dimension, row_ids=row_ids)


def is_stored(kind: str) -> bool:
    """Whether indexes of this kind are built and stored, as far as the table of kinds knows it."""
    return kind in INDEX_KINDS and INDEX_KINDS[kind].proposer is not None


def _proposer(kind: str) -> type[Proposer]:
    """Raises: InputError if indexes of this kind are not stored."""
    proposer = INDEX_KINDS[kind].proposer
    if proposer is None:
        raise InputError(f"the index {kind} has no files")
    return proposer
