"""Files of indexes: published whole, trusted after a check, thrown away; choices, bounds, builders side by side."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import lance
import numpy as np
import pytest

from latentrag.errors import InputError, MemoryStoreError
from latentrag.io import sha256_of_file
from latentrag.memory import Memory
from latentrag.memory.indexes import IndexFolder, building, folder, ivf_rabitq, stored, supply
from latentrag.memory.indexes.building import plan
from latentrag.memory.indexes.stored import vector_records
from latentrag.memory.table import Table
from latentrag.types import Passage
from tests.memory.indexing import STORED_KINDS, assert_found, build, drawn, forge, make_table, rows_of, thorough
from tests.noting import noting

FILES = ["index.json", "index.faiss", "row_ids.i64", "vectors.f16", "bonuses.f32", "passages.json", "passage_ends.i64"]
Q = np.random.default_rng(9).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture
def memory(path, encoder):
    """Sixty passages at version 2, without an index."""
    return Memory.create(path, encoder).add([Passage(f"p{i}", f"text {i}") for i in range(60)], encoder)


def folder_of(memory: Memory) -> Path:
    """Of the one index that there is."""
    (found,) = (memory.local / folder.FOLDER).glob("*-*-*/")
    return found


def left(memory: Memory) -> list[str]:
    """Everything in the folder of indexes but the lock."""
    found = memory.path / folder.FOLDER
    return sorted(each.name for each in found.iterdir() if each.name != folder.LOCK) if found.exists() else []


@pytest.mark.parametrize("kind", STORED_KINDS)
def test_an_index_is_built_once_and_used_by_all_who_open_the_memory(memory, kind):
    made = memory.build_index(kind)
    assert (made.kind, made.version, made.num_passages) == (kind, 2, 60)
    assert 0.9 <= made.recall <= 1
    place = folder_of(memory)
    assert place.name.startswith(f"{kind}-2-")
    assert made.disk_bytes == sum(file.stat().st_size for file in place.iterdir() if file.name != folder.DESCRIPTION)
    before = (place / folder.VECTORS).stat()
    assert memory.build_index(kind).version == 2
    assert (place / folder.VECTORS).stat() == before  # not built again
    opened = Memory.open(memory.path)
    assert opened.index.kind == kind
    assert_found(thorough(opened).index, rows_of(opened._table), Q, 5)
    assert opened.search(Q, 5).version == 2


def test_flat_is_the_choice_for_few_and_takes_the_files_away(memory):
    assert memory.index.kind == "flat"
    assert left(memory) == []
    memory.build_index("ivf-rabitq")
    assert memory.build_index("auto").kind == "flat"
    assert left(memory) == []
    assert Memory.open(memory.path).index.kind == "flat"


def test_an_index_asked_for_is_built_on_the_first_search(memory, hnsw):
    opened = Memory.open(memory.path, index="ivf-rabitq")
    assert left(memory) == []
    opened.search(Q, 1)
    assert folder_of(memory).name.startswith("ivf-rabitq-2-")
    # Each kind has its own files, and flat uses none.
    assert Memory.open(memory.path, index=hnsw).index.kind == hnsw
    assert Memory.open(memory.path, index="flat").index.kind == "flat"
    assert Memory.open(memory.path, index="ivf-rabitq").index.kind == "ivf-rabitq"
    assert len(left(memory)) == 2


def test_of_several_the_one_asked_for_last_is_used(memory, hnsw):
    for kind in (hnsw, "ivf-rabitq", hnsw):
        before = left(memory)
        memory.build_index(kind)
        assert Memory.open(memory.path).index.kind == kind
    assert left(memory) == before


def test_many_passages_get_an_index_without_being_asked(memory, monkeypatch):
    monkeypatch.setattr(building, "LARGEST_FLAT", 59)
    with pytest.warns(UserWarning, match="has 60 passages and no index of use: ivf-rabitq is built now, once; `latent"):
        assert Memory.open(memory.path).index.kind == "ivf-rabitq"
    assert Memory.open(memory.path).index.kind == "ivf-rabitq"  # without a word
    assert Memory.open(memory.path, index="flat").index.kind == "flat"


def test_an_unknown_index_is_refused(memory):
    with pytest.raises(InputError, match="index 'ivf' is unknown; needed one of auto, flat, ivf-rabitq$"):
        Memory.open(memory.path, index="ivf")
    with pytest.raises(InputError, match="index 'ivf' is unknown; needed one of auto, flat, ivf-rabitq$"):
        memory.build_index("ivf")


def test_an_empty_memory_has_no_index(path, encoder):
    with pytest.raises(MemoryStoreError, match="no passages at version 1; add some first"):
        Memory.create(path, encoder).build_index("ivf-rabitq")


# Damage


def damage(file: Path, how: str) -> None:
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        os.truncate(file, file.stat().st_size - 1)
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_noticed_said_and_done_without(memory, name, how):
    expected = memory.search(Q, 60)
    memory.build_index("ivf-rabitq")
    place = folder_of(memory)
    damage(place / name, how)
    opened = Memory.open(memory.path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = opened.search(Q, 60)
        found = opened.search(Q, 60)
    assert np.array_equal(found.scores, expected.scores)
    assert found.passages == expected.passages
    assert opened.index.kind == "flat"
    if how != "missing":  # then it is as if it had been thrown away by somebody else
        (warning,) = [str(each.message) for each in caught]
        assert warning.startswith(str(place / name))
        assert warning.endswith("; this index is thrown away")
        assert "\n" not in warning
        assert left(memory) == []
    memory.build_index("ivf-rabitq")
    assert Memory.open(memory.path).index.kind == "ivf-rabitq"


def test_a_damaged_index_that_was_asked_for_is_built_anew(memory):
    memory.build_index("ivf-rabitq")
    damage(folder_of(memory) / "vectors.f16", "flipped")
    opened = Memory.open(memory.path, index="ivf-rabitq")
    with pytest.warns(UserWarning, match="vectors.f16 is damaged in row 30; this index is thrown away"):
        opened.search(Q, 60)
    assert opened.index.kind == "ivf-rabitq"
    opened.search(Q, 60)
    assert len(left(memory)) == 1


def test_damage_that_is_noticed_when_another_version_is_served(memory):
    memory.build_index("ivf-rabitq")
    opened = Memory.open(memory.path)
    assert opened.index.kind == "ivf-rabitq"
    file = folder_of(memory) / "vectors.f16"
    file.write_bytes(bytes(file.stat().st_size))
    rewritten = Memory(_compacted(opened.delete(["p0"])), opened._indexes)
    with pytest.warns(UserWarning, match="vectors.f16 is damaged in row .*; this index is thrown away"):
        assert rewritten.index.kind == "flat"
    assert_found(rewritten.index, rows_of(rewritten._table), Q, 5)


def _compacted(memory: Memory) -> Table:
    lance.dataset(str(memory.path)).optimize.compact_files(materialize_deletions_threshold=0.0)
    return Table.open(memory.path)


@pytest.mark.parametrize("name", ["index.json", "index.faiss", "vectors.f16"])
def test_a_damaged_index_that_may_not_be_removed_is_done_without(memory, monkeypatch, name):
    memory.build_index("ivf-rabitq")
    damage(folder_of(memory) / name, "flipped")
    monkeypatch.setattr(supply, "discard", lambda folder: None)
    opened = Memory.open(memory.path)
    with pytest.warns(UserWarning, match="this index is thrown away") as caught:
        opened.search(Q, 60)
    assert len(caught) == 1
    assert opened.index.kind == "flat"
    newer = opened.delete([f"p{i}" for i in range(30)])  # so much that another index is looked for
    assert newer.index.kind == "flat"


def test_a_build_mends_what_is_damaged(memory):
    memory.build_index("ivf-rabitq")
    damage(folder_of(memory) / "index.faiss", "flipped")
    memory.build_index("ivf-rabitq")
    assert Memory.open(memory.path).index.kind == "ivf-rabitq"


@pytest.mark.parametrize("change", [{"format": 2}, {"files": {"../../x": [1, ""]}}, {"fragments": [[]]}, {"more": 1}])
def test_a_description_that_makes_no_sense_is_not_followed(memory, change):
    memory.build_index("ivf-rabitq")
    forge(folder_of(memory), **change)
    with pytest.warns(UserWarning, match=r"index.json is damaged, or of another format; this index is thrown away"):
        assert Memory.open(memory.path).index.kind == "flat"


@pytest.mark.parametrize("kind", STORED_KINDS)
def test_a_file_of_faiss_that_is_of_something_else_is_not_searched(memory, kind):
    memory.build_index(kind)
    place = folder_of(memory)
    faiss.write_index(faiss.IndexFlatIP(8), str(place / "index.faiss"))
    sizes = json.loads((place / "index.json").read_bytes())["files"]
    sizes["index.faiss"] = [(place / "index.faiss").stat().st_size, sha256_of_file(place / "index.faiss")]
    forge(place, files=sizes)
    with pytest.warns(UserWarning, match=r"index.faiss holds .* rows.*needed .*; this index is thrown away"):
        assert Memory.open(memory.path).index.kind == "flat"


def test_folders_of_others_are_left_alone(memory):
    memory.build_index("ivf-rabitq")
    (memory.path / folder.FOLDER / "my-own-notes").mkdir()
    (memory.path / folder.FOLDER / "my-own-notes" / "a.txt").write_text("years of work")
    memory.delete(["p0"]).build_index("ivf-rabitq")
    IndexFolder.of(memory.local).indexes()
    memory.build_index("flat")  # takes all indexes away
    assert (memory.path / folder.FOLDER / "my-own-notes" / "a.txt").exists()


# Bounds


def test_a_bound_that_cannot_be_kept_is_refused_before_anything_is_written(memory, monkeypatch):
    monkeypatch.setattr(building, "physical_bytes", lambda: 24 * 10**9)
    with pytest.raises(InputError, match=r"^the index ivf-rabitq of 60 .* 8 needs 0\.29 GB of memory, it may take "):
        memory.build_index("ivf-rabitq", max_memory=100 << 20)
    assert left(memory) == []
    with pytest.raises(InputError, match=r"flat of 21000000 vectors of 768 needs 65.* GB.*give it more, or build ivf-"):
        plan("flat", 21_000_000, 768, max_memory=16 * 10**9)
    with pytest.raises(InputError, match="flat of .* needs 65.*this machine has"):
        plan("flat", 21_000_000, 768)


def test_the_sample_shrinks_to_keep_the_bound():
    roomy, tight = (plan("ivf-rabitq", 3_000_000, 768, max_memory=int(bound * 1e9)) for bound in (4, 1.35))
    assert roomy.num_sampled == 50 * roomy.parameters["num_lists"]
    assert tight.num_sampled < roomy.num_sampled
    assert tight.ram_bytes <= 1.35e9
    assert tight.parameters == roomy.parameters


MEASURED = """
import json, sys
from pathlib import Path
import numpy as np
from latentrag.memory import Memory
kind, path = sys.argv[1:]
if kind == "flat":
    memory = Memory.open(path, index="flat")
    memory.search(np.ones((1, memory.card.dimension), np.float32), 5)
else:
    Memory.open(path).build_index(kind)
lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(1024 * int(lines["VmHWM"].split()[0]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much a process took at most")
@pytest.mark.parametrize("kind", ["flat", "ivf-rabitq"])
def test_the_estimate_follows_what_a_build_takes(tmp_path, kind):
    num_rows, dimension = 20_000, 384
    vectors = np.random.default_rng(0).standard_normal((num_rows, dimension)).astype(np.float16)
    make_table(tmp_path / "m.lance", vectors)
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, kind, tmp_path / "m.lance"]
    peak_bytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak_bytes <= plan(kind, num_rows, dimension).ram_bytes <= 1.3 * peak_bytes


def test_a_full_disk_is_refused_in_one_line(memory, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(MemoryStoreError, match=r"the index ivf-rabitq needs 0.01 MB on the disk of .*; make room$"):
        memory.build_index("ivf-rabitq")
    assert left(memory) == []


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(memory, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building, "vector_records", full)
    with pytest.raises(MemoryStoreError, match="cannot be written .No space left on device.; make room") as caught:
        memory.build_index("ivf-rabitq")
    assert "\n" not in str(caught.value)
    assert left(memory) == []


@pytest.mark.parametrize("stage", ["copying passages", "training", "adding vectors", "measuring"])
def test_a_build_that_is_interrupted_leaves_what_was_there(memory, stage):
    before = memory.build_index("ivf-rabitq")
    newer = memory.delete(["p0"])

    def progress(what: str, *_):
        if what == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(newer._table, "ivf-rabitq", progress=progress)
    assert [name.startswith("ivf-rabitq-2-") for name in left(memory)] == [True]
    assert Memory.open(memory.path).index.kind == before.kind


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(memory):
    memory.path.chmod(0o555)
    try:
        with pytest.raises(MemoryStoreError, match="cannot be written .*; make room or get the right to write there"):
            memory.build_index("ivf-rabitq")
        assert Memory.open(memory.path).index.kind == "flat"
    finally:
        memory.path.chmod(0o755)


def test_a_place_that_cannot_be_written_is_refused_and_still_searched(memory):
    (memory.local / folder.FOLDER).write_text("in the way")
    with pytest.raises(MemoryStoreError, match="_indexes cannot be written .*; make room or get the right to write"):
        memory.build_index("ivf-rabitq")
    assert Memory.open(memory.path).search(Q, 1).version == 2


def test_vectors_are_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr("latentrag.memory.indexes.changes.BATCH_BYTES", 1)  # 256 rows
    monkeypatch.setattr("latentrag.memory.indexes.stored.BLOCK_BYTES", 24 * 256)
    table = make_table(tmp_path / "m.lance", drawn(3_000, 8))
    sizes: list[int] = []
    records = noting(vector_records, lambda rows, *_, **__: sizes.append(len(rows)))
    monkeypatch.setattr(building, "vector_records", records)
    read = noting(stored.VectorFile.read, lambda _, rows: sizes.append(len(rows)))
    monkeypatch.setattr(stored.VectorFile, "read", read)
    monkeypatch.setattr(ivf_rabitq, "ROWS_PER_ADD", 256)
    monkeypatch.setattr(building, "_choose_effort", lambda *_: None)
    build(table, "ivf-rabitq")
    assert sum(sizes) == 9_000  # copied, trained on, added
    assert max(sizes) <= 256


def test_progress_goes_to_stderr_and_only_if_asked(capsys, memory, monkeypatch):
    memory.build_index("ivf-rabitq")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    memory.delete(["p0"]).build_index("ivf-rabitq", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "measuring" in err
    assert "59/59" in err


# Side by side


BUILDER = """
import sys
from pathlib import Path
from latentrag.memory import Memory
from tests.memory.indexing import build

memory = Memory.open(Path(sys.argv[1]))
paused = False

def progress(what, *_):
    global paused
    if what == "adding vectors" and not paused:
        paused = True
        print("building", flush=True)
        sys.stdin.read()

build(memory._table, "ivf-rabitq", progress=progress)
print("built" if paused else "found", flush=True)
"""


def builder(memory: Memory) -> subprocess.Popen:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(memory.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_one_builds_at_a_time(memory):
    def take() -> None:
        with (memory.path / folder.FOLDER / folder.LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with IndexFolder.of(memory.local).building(), pytest.raises(BlockingIOError):
        take()
    take()


def test_two_processes_build_one_after_the_other_and_only_one_does_the_work(memory):
    with builder(memory) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "building\n"
        with builder(memory) as second:
            assert first.communicate()[0] == "built\n"
            assert second.communicate()[0] == "found\n"
    assert len(left(memory)) == 1
    assert Memory.open(memory.path).index.kind == "ivf-rabitq"


def test_a_killed_builder_leaves_nothing_that_stays(memory):
    with builder(memory) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        (scratch,) = left(memory)
        assert scratch.startswith(folder.SCRATCH)
        assert Memory.open(memory.path).index.kind == "flat"  # what is being built is not seen
        process.send_signal(signal.SIGKILL)
    memory.build_index("ivf-rabitq")
    assert [name.startswith("ivf-rabitq-2-") for name in left(memory)] == [True]


@pytest.mark.parametrize("kind", STORED_KINDS)
def test_concurrent_searches_while_the_memory_changes_and_its_index_is_built_anew(memory, encoder, kind):
    memory.build_index(kind)
    expected = Memory.open(memory.path).search(np.repeat(Q, 8, axis=0), 5)
    shared = Memory.open(memory.path)  # loaded by whichever thread is first
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(shared.search, Q[b % 3][None], 5) for b in range(60)]
        newest = shared.add([Passage("new", "newer")], encoder).delete(["p0"])
        newest.build_index(kind)
        futures += [pool.submit(shared.search, Q[b % 3][None], 5) for b in range(60)]
        found = [future.result() for future in futures]
    for b, each in enumerate(found):
        assert np.array_equal(each.scores[0], expected.scores[8 * (b % 60 % 3)])
        assert each.version == 2
    assert Memory.open(memory.path).search(Q, 5).version == 4


def test_threads_that_notice_the_same_damage_mend_it_once(memory):
    expected = memory.search(Q, 60)
    memory.build_index("ivf-rabitq")
    damage(folder_of(memory) / "vectors.f16", "flipped")
    opened = Memory.open(memory.path)
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(6) as pool:
        warnings.simplefilter("always")
        found = list(pool.map(lambda _: opened.search(Q, 60), range(12)))
    assert len(caught) == 1
    assert all(np.array_equal(each.scores, expected.scores) for each in found)
