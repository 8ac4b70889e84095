"""Writers that are killed at random moments: `python -m tests.memory.torture --runs 100`.

Each run starts a process that changes a memory without end, kills it with SIGKILL while it does, and looks at what is
left. The memory must open, hold what the last acknowledged change left or what the one in flight would have, be found
whole by searches through whichever index is there, and the next writer must find nothing that hinders it and leave
nothing behind.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from latentrag.memory import Memory, add, upkeep, version_files
from latentrag.memory import table as table_module
from latentrag.memory import writer as writer_module
from latentrag.memory.indexes import folder as index_folder
from latentrag.memory.verify import verify
from latentrag.sync import SyncOptions, sync
from latentrag.types import Passage
from tests.memory.conftest import FakePassageEncoder

State = dict[str, str]
NUM_IDS = 40
CHANGES = ("add", "parts", "upsert", "upsert", "delete", "compact", "prune", "forget", "sync", "sync", "index", "index")
FOLDER = "notes"
"""Synced, beside the memory; each file is one passage."""
NUM_NOTES = 12
KIND = "ivf-rabitq"
PART = 4
"""Passages of a commit, where additions are committed in parts."""
PARTED = [f"q{i}" for i in range(NUM_IDS)]
OPTIONS = SyncOptions(delete_missing=True)
LONGEST_S = 60.0
"""A writer that has said nothing for so long is stuck."""


def write(path: str, log: str, seed: int) -> None:
    """Change the memory for ever; say in the log what comes next, and what is acknowledged."""
    writer_module.PASSAGES_PER_ENCODING = table_module.ROWS_PER_FRAGMENT = 8  # several files for a change
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    with Path(log).open("a", encoding="utf-8") as out:

        def say(**fields: Any) -> None:
            out.write(json.dumps(fields) + "\n")
            out.flush()

        while True:
            memory = Memory.open(path)
            state = {z.id: z.text for z in memory.passages()}
            name = rng.choice(CHANGES)
            if name == "sync":
                _edit(rng, memory.local.parent / FOLDER)
                between, after = _synced(state, memory.local.parent / FOLDER)
                say(begin=name, state=after, between=[between])
                sync(memory.path, memory.local.parent / FOLDER, FakePassageEncoder, options=OPTIONS)
            elif name == "parts":
                passages = [Passage(key, f"{key}, {rng.random()}") for key in rng.sample(PARTED, rng.randint(1, 20))]
                states = [state | {z.id: z.text for z in passages[:end]} for end in range(PART, len(passages), PART)]
                say(begin=name, state=state | {z.id: z.text for z in passages}, between=states)
                add(path, passages, FakePassageEncoder, upsert=True, passages_per_commit=PART)
            elif name == "index" and state:
                say(begin=name, state=state)
                memory.build_index(KIND)
            else:
                name, ids, after = _next(rng, name, state)
                say(begin=name, state=after)
                _change(memory, name, ids, after)
            say(done=name)


def _edit(rng: random.Random, folder: Path) -> None:
    """Make, change and remove some files."""
    folder.mkdir(exist_ok=True)
    for number in rng.sample(range(NUM_NOTES), 4):
        file = folder / f"{number}.txt"
        if file.exists() and rng.random() < 0.3 and number:  # one stays: an empty folder is not synced
            file.unlink()
        else:
            file.write_text(f"the text of {number}, {rng.random()}")
    (folder / "0.txt").touch()


def _synced(state: State, folder: Path) -> tuple[State, State]:
    """What the memory holds when the folder's files are in it, and when those that are gone have left it, too."""
    notes = {f"{FOLDER}/{file.name}": text for file in folder.iterdir() if (text := file.read_text())}
    present = {f"{FOLDER}/{file.name}" for file in folder.iterdir()}
    # A file that is there and empty has no passages from the first commit on.
    kept = {key: text for key, text in state.items() if key not in present}
    others = {key: text for key, text in state.items() if not key.startswith(f"{FOLDER}/")}
    return kept | notes, others | notes


def _next(rng: random.Random, name: str, state: State) -> tuple[str, list[str], State]:
    """A change, the ids that it is about, and what the memory holds after it."""
    everything = [f"p{i}" for i in range(NUM_IDS)]
    if name in ("delete", "forget") and state:
        ids = rng.sample(sorted(state), min(len(state), rng.randint(1, 6)))
        return name, ids, {key: text for key, text in state.items() if key not in ids}
    if name in ("compact", "prune"):
        return name, [], state
    free = [key for key in everything if key not in state]
    if name == "add" and free:
        ids = rng.sample(free, min(len(free), rng.randint(1, 20)))
    else:
        name, ids = "upsert", rng.sample(everything, rng.randint(1, 20))
    return name, ids, state | {key: f"the text of {key}, {rng.random()}" for key in ids}


def _change(memory: Memory, name: str, ids: list[str], after: State) -> None:
    passages = [Passage(key, after[key]) for key in ids if key in after]
    if name == "add":
        memory.add(passages, FakePassageEncoder())
    elif name == "upsert":
        memory.upsert(passages, FakePassageEncoder())
    elif name == "delete":
        memory.delete(ids)
    elif name == "forget":
        upkeep.forget(memory.path, ids)
    elif name == "compact":
        upkeep.compact(memory.path)
    else:
        upkeep.prune(memory.path, keep=3)


def runs(folder: Path, *, num_runs: int, seed: int) -> Iterator[str]:
    """Kill so many writers; yields the change that each was in. Raises: AssertionError."""
    path, rng = folder / "m.lance", random.Random(seed)
    Memory.create(path, FakePassageEncoder())
    state: State = {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "pyarrow"])  # not lance, which is not to be forked
    for number in range(num_runs):
        log = folder / f"{number}.log"
        log.touch()
        writer = context.Process(target=write, args=(str(path), str(log), rng.randrange(2**32)), daemon=True)
        writer.start()
        try:
            _wait(log, lines=rng.choice([1, 3, 5]))
            time.sleep(rng.uniform(0.0, 0.25))
        finally:
            writer.kill()
            writer.join()
        assert writer.exitcode == -signal.SIGKILL, "the writer failed by itself"
        state, killed_in = _left_whole(path, log, state)
        yield killed_in


def _wait(log: Path, *, lines: int) -> None:
    end = time.monotonic() + LONGEST_S
    while log.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < end, "the writer says nothing"
        time.sleep(0.002)


def _left_whole(path: Path, log: Path, before: State) -> tuple[State, str]:
    """What the memory holds now, once it is known to be right, and what the writer was doing."""
    acknowledged, in_flight, between, killed_in = before, before, [before], "nothing"
    for line in log.read_text("utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # killed while it was saying what comes next
        said = json.loads(line)
        if "begin" in said:
            in_flight, killed_in = said["state"], said["begin"]
            between = said.get("between", [])
        else:
            acknowledged, killed_in = in_flight, "nothing"
    memory = Memory.open(path)
    passages = list(memory.passages())
    found = {z.id: z.text for z in passages}
    assert len(passages) == len(found) == len(memory), "a passage comes twice"
    assert found in (acknowledged, *between, in_flight), (killed_in, acknowledged, between, in_flight, found)
    _search(memory)
    for version in version_files.version_numbers(path):
        assert len(list(Memory.open(path, version=version).passages())) >= 0

    found["last"] = f"after {killed_in}"
    Memory.open(path).upsert([Passage("last", found["last"])], FakePassageEncoder())
    if killed_in == "index":
        Memory.open(path).build_index(KIND)
        left = [each.name for each in (path / index_folder.FOLDER).iterdir()]
        assert not any(name.startswith(index_folder.SCRATCH) for name in left), left
    report = verify(path, num_questions=5)
    assert report.problems == [], report.problems
    assert report.num_unrecorded == 0
    return found, killed_in


def _search(memory: Memory) -> None:
    """Through the index that is there every passage is found, with the scores of exact search."""
    if not len(memory):
        return
    q = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* has changed since its index was built")
        found = memory.search(q, len(memory))
    exact = Memory.open(memory.path, index="flat", version=memory.version).search(q, len(memory))
    assert [z.id for z in found.passages[0]] == [z.id for z in exact.passages[0]]
    assert np.array_equal(found.scores, exact.scores)


def main() -> None:
    """Run, and say what was killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    killed: Counter[str] = Counter()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number, killed_in in enumerate(runs(Path(folder), num_runs=given.runs, seed=given.seed), 1):
            killed[killed_in] += 1
            sys.stderr.write(f"\r{number} of {given.runs}")
    during = ", ".join(f"{name} {count}" for name, count in killed.most_common())
    sys.stdout.write(
        f"\n{given.runs} writers killed in {time.monotonic() - start:.0f} s: {during}; all memories whole\n"
    )


if __name__ == "__main__":
    main()
