"""From a table to a published index, in passes over the vectors and within a bound on memory.

The first pass copies the vectors to the file they are rescored from, and learns what training needs; the second adds
them from there; for ivf-rabitq a third measures how far it must be searched. Nothing but the index itself, the sample
for training and a few megabytes is held in RAM.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentrag.errors import IndexDamagedError, InputError, MemoryStoreError
from latentrag.memory.indexes import files, ivf_rabitq
from latentrag.memory.indexes.changes import fragments, stream_with_passages
from latentrag.memory.indexes.effort import EFFORT, choose_effort, read_effort, write_effort
from latentrag.memory.indexes.files import Description, Published
from latentrag.memory.indexes.ivf_rabitq import IvfRabitq
from latentrag.memory.indexes.passage_file import PassageFile, PassageFileWriter, record
from latentrag.memory.indexes.proposers import LINKS, Hnsw, Proposer, Sq8, Statistics
from latentrag.memory.indexes.stored import StoredIndex
from latentrag.memory.indexes.vector_file import VectorFile, VectorFileWriter, record_bytes
from latentrag.types import IndexChoice, IndexKind

if TYPE_CHECKING:
    import numpy.typing as npt

    from latentrag.memory.table import Table

LARGEST_FLAT = 200_000
"""Up to here exact search in RAM is fast enough, and needs nothing built."""
PROCESS_BYTES = 400 << 20
"""Python, the libraries and what they read ahead."""
GROWTH = 1.6
"""Lists grow by doubling: on average half as much again is reserved while they are built."""
SAMPLE_SEED = 1
NUM_WEIGHED = 1_000

Progress = Callable[[str, int, int], None]
"""Gets what is being done, how much of it is done, and how much there is; may raise to stop the build."""


def kind_by_size(choice: IndexChoice, num_rows: int) -> IndexKind:
    """What auto stands for where nothing was built."""
    if choice != "auto":
        return choice
    return "flat" if num_rows <= LARGEST_FLAT else "ivf-rabitq"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build will do and need.

    Attributes:
        parameters: of the kind, kept with the index.
        num_sampled: rows for training.
        ram_bytes, disk_bytes: at the most, while it is built.
    """

    kind: IndexKind
    parameters: dict[str, int]
    num_sampled: int
    ram_bytes: int
    disk_bytes: int


def plan(kind: IndexKind, num_rows: int, dimension: int, *, max_memory: int | None = None) -> Plan:
    """Estimate a build, sampling less where memory is short.

    Args:
        max_memory: bytes that the process may hold; None: those of this machine.
    Raises: InputError if the bound cannot be kept.
    """
    bound = physical_bytes() if max_memory is None else max_memory
    codes, parameters = _bytes_of_codes(kind, num_rows, dimension)
    sampled = least = 0
    if kind == "ivf-rabitq":
        fixed = PROCESS_BYTES + 8 * parameters["num_lists"] * dimension
        room = max(0, bound - fixed) // (4 * dimension)
        least = min(num_rows, ivf_rabitq.LEAST_SAMPLE_PER_LIST * parameters["num_lists"])
        sampled = min(num_rows, max(least, min(ivf_rabitq.SAMPLE_PER_LIST * parameters["num_lists"], room)))
        ram = fixed + max(4 * dimension * sampled, codes)
    else:
        ram = PROCESS_BYTES + codes
    if ram > bound:
        given = "this machine has" if max_memory is None else "it may take"
        other = "" if kind == "ivf-rabitq" else ", or build ivf-rabitq"
        raise InputError(
            f"the index {kind} of {num_rows} vectors of {dimension} needs {gigabytes(ram)} of memory, {given} "
            f"{gigabytes(bound)}; give it more{other}"
        )
    disk = 0 if kind == "flat" else num_rows * (record_bytes(dimension) + 8) + codes
    return Plan(kind, parameters, sampled, ram, disk)


def _bytes_of_codes(kind: IndexKind, num_rows: int, dimension: int) -> tuple[int, dict[str, int]]:
    """RAM of the index itself while it is built, and its parameters."""
    if kind == "flat":
        return 4 * num_rows * dimension, {}
    if kind == "sq8":
        return 2 * num_rows * dimension, {}  # one array, doubled while it grows
    if kind == "hnsw":
        return 2 * num_rows * (2 * (dimension + 1) + 8 * LINKS + 16), {"links": LINKS}
    num_lists = ivf_rabitq.default_lists(num_rows)
    parameters = {"num_lists": num_lists, "num_probes": ivf_rabitq.default_probes(num_rows, num_lists)}
    return int(GROWTH * num_rows * (dimension / 8 + 16)) + 8 * num_lists * dimension, parameters


def physical_bytes() -> int:
    """RAM of this machine, or of the container where one is bounded."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    given = limit.read_text().strip() if limit.is_file() else ""
    return min(whole, int(given)) if given.isdigit() else whole


def gigabytes(num_bytes: int) -> str:
    """For people."""
    return f"{num_bytes / 1e9:.2f} GB"


def build(table: Table, planned: Plan, *, progress: Progress) -> Published:
    """Make the index and publish it; the same index is not made twice.

    Raises: MemoryStoreError if there is no room on the disk or the place cannot be written, or if the table is empty.
        After any exception what was there before is still there, and nothing else.
    """
    description = _description(table, planned)
    with files.building(table.path):
        for found in files.find(table.path)[0]:
            is_new = _added_later(planned.kind) <= found.files.keys()
            if found.folder.name == description.name and is_new and _is_whole(found):
                files.ask_for(found)
                return found
        _require_room(table, planned)
        with files.publishing(table.path, description) as scratch:
            # The sample is not named here, so that it is gone when rows are added.
            proposer = _trained(planned, _copied(table, scratch, planned, progress), progress)
            _added(proposer, scratch, description, progress)
            proposer.write(scratch)
            del proposer  # what is searched is read anew, without the room that was left for growing
            if planned.kind == "ivf-rabitq":
                _tried(planned, scratch, description, progress)
        made = [each for each in files.find(table.path)[0] if each.folder.name == description.name]
    if not made:
        raise MemoryStoreError(f"the index of {table.path} vanished while it was published; build it again")
    return made[0]


def _description(table: Table, planned: Plan) -> Description:
    if not len(table):
        raise MemoryStoreError(f"{table.path} has no passages at version {table.version}; add some first")
    return Description(
        kind=planned.kind,
        version=table.version,
        fingerprint=table.manifest.fingerprint,
        dimension=table.manifest.dimension,
        num_rows=len(table),
        parameters=planned.parameters,
        fragments=fragments(table),
    )


def _added_later(kind: IndexKind) -> set[str]:
    """Files that older indexes lack."""
    return {files.PASSAGES, EFFORT} if kind == "ivf-rabitq" else {files.PASSAGES}


def _is_whole(found: Published) -> bool:
    try:
        files.verify(found)
    except (MemoryStoreError, OSError):
        return False
    return True


def _require_room(table: Table, planned: Plan) -> None:
    free, needed = shutil.disk_usage(table.path).free, planned.disk_bytes + _bytes_of_passages(table)
    if needed > free:
        raise MemoryStoreError(
            f"the index {planned.kind} needs {gigabytes(needed)} on the disk of {table.path}, "
            f"{gigabytes(free)} are free; make room"
        )


def _bytes_of_passages(table: Table) -> int:
    """As the first ones have it."""
    sizes = [len(record(passage, 0, 0)) + 8 for passage in islice(table.passages(), NUM_WEIGHED)]
    return round(len(table) * sum(sizes) / max(1, len(sizes)))


def _copied(table: Table, scratch: Path, planned: Plan, progress: Progress) -> Statistics:
    """First pass: vectors, passages and row ids to their files."""
    dimension, num_rows = table.manifest.dimension, len(table)
    chosen = _sampled(num_rows, planned.num_sampled)
    sample = np.empty((len(chosen), dimension), np.float32)
    lowest, highest = np.full(dimension, np.inf, np.float32), np.full(dimension, -np.inf, np.float32)
    largest = 0.0
    writer = VectorFileWriter(scratch / files.VECTORS, dimension)
    texts = PassageFileWriter(scratch / files.PASSAGES, scratch / files.PASSAGE_ENDS)
    with writer, texts, (scratch / files.ROW_IDS).open("xb") as row_ids:
        for rows, passages in stream_with_passages(table):
            start = writer.num_rows
            writer.append(rows.row_ids, rows.vectors)
            texts.append(rows.row_ids, passages)
            row_ids.write(rows.row_ids.astype("<i8").tobytes())
            block = rows.vectors.astype(np.float32)
            first, last = np.searchsorted(chosen, (start, writer.num_rows))
            sample[first:last] = block[chosen[first:last] - start]
            lowest, highest = np.minimum(lowest, block.min(axis=0)), np.maximum(highest, block.max(axis=0))
            largest = max(largest, float(np.linalg.norm(block, axis=1).max()))
            progress("copying passages", writer.num_rows, num_rows)
    if writer.num_rows != num_rows:
        raise MemoryStoreError(f"{table.path} gave {writer.num_rows} vectors, needed {num_rows}; verify the memory")
    return Statistics(num_rows, dimension, lowest, highest, largest, sample)


def _sampled(num_rows: int, num: int) -> npt.NDArray[np.int64]:
    """Positions, rising, one at random from each of ``num`` equal parts."""
    within = np.random.default_rng(SAMPLE_SEED).random(num)
    return ((np.arange(num) + within) * (num_rows / max(1, num))).astype(np.int64).clip(max=num_rows - 1)


def _trained(planned: Plan, statistics: Statistics, progress: Progress) -> Proposer:
    if planned.kind == "sq8":
        return Sq8.train(statistics)
    if planned.kind == "hnsw":
        return Hnsw.train(statistics)
    done = 0

    def each_iteration() -> None:
        nonlocal done
        done += 1
        progress("training", done, ivf_rabitq.ITERATIONS)

    progress("training", 0, ivf_rabitq.ITERATIONS)
    return IvfRabitq.train(statistics, **planned.parameters, each_iteration=each_iteration)


def _added(proposer: Proposer, scratch: Path, description: Description, progress: Progress) -> None:
    """Second pass."""
    done = 0
    for block in _vectors(scratch, description).blocks():
        proposer.add(block.vectors)
        done += len(block.vectors)
        progress("adding vectors", done, description.num_rows)


def _tried(planned: Plan, scratch: Path, description: Description, progress: Progress) -> None:
    """Third pass."""
    size = {"num_rows": description.num_rows, "dimension": description.dimension}
    proposer = IvfRabitq.read(scratch, **size, **planned.parameters)
    recall = choose_effort(proposer, _vectors(scratch, description), progress)
    write_effort(scratch, proposer.effort, recall)


def _vectors(scratch: Path, description: Description) -> VectorFile:
    row_ids = np.memmap(scratch / files.ROW_IDS, dtype="<i8", mode="r", shape=(description.num_rows,))
    return VectorFile.open(scratch / files.VECTORS, dimension=description.dimension, row_ids=row_ids)


def opened(published: Published) -> StoredIndex:
    """An index from its files. Raises: IndexDamagedError; FileNotFoundError if it was thrown away meanwhile."""
    files.verify(published)
    of, row_ids = published.description, files.row_ids(published)
    folder = published.folder
    size: dict[str, Any] = {"num_rows": of.num_rows, "dimension": of.dimension}
    proposer: Proposer
    if of.kind == "sq8":
        proposer = Sq8.read(folder, **size)
    elif of.kind == "hnsw":
        proposer = Hnsw.read(folder, **size)
    elif set(of.parameters) == {"num_lists", "num_probes"}:
        proposer = IvfRabitq.read(folder, **size, **of.parameters)
        if EFFORT in published.files:
            proposer.effort = read_effort(folder)[0]
    else:
        raise IndexDamagedError(folder / files.DESCRIPTION, f"has parameters {of.parameters}")
    vectors = VectorFile.open(folder / files.VECTORS, dimension=of.dimension, row_ids=row_ids)
    passages = None
    if files.PASSAGES in published.files:
        passages = PassageFile.open(folder / files.PASSAGES, folder / files.PASSAGE_ENDS, num_rows=of.num_rows)
    return StoredIndex(proposer, vectors, faiss_bytes=published.ram_bytes, texts=passages)


@contextmanager
def shown(progress: bool) -> Iterator[Progress]:
    """A bar on stderr if asked."""
    if not progress:
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show
