"""Passages kept on disk: the folder stays below its bound, and several processes may share it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from latentrag.generator.passages import Layers, PassageCache

ENTRY_BYTES = 2 * 1 * 250 * 4 * 4 + 100
"""A file: its tensor, and a header of less than 100 bytes."""


def layers(number: int) -> Layers:
    return [torch.full((2, 1, 250, 4), float(number))]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def cache_of(folder: Path, max_bytes: int, *, ram: int = 0) -> PassageCache:
    return PassageCache(ram, folder=folder, max_folder_bytes=max_bytes, model="m")


def is_kept(folder: Path, number: int) -> bool:
    read = cache_of(folder, 1 << 30).get([number])
    assert read is None or torch.equal(read[0], layers(number)[0])
    return read is not None


def test_the_folder_never_gets_larger_than_its_bound(tmp_path: Path) -> None:
    bound = 10 * ENTRY_BYTES
    cache = cache_of(tmp_path, bound)
    for number in range(40):
        cache.put([number], layers(number))
        assert size(tmp_path) <= bound
    kept = [is_kept(tmp_path, number) for number in range(40)]
    assert sum(kept) >= 8
    assert kept == sorted(kept)  # the last ones
    assert kept[39]


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 1 << 30)
    written: set[Path] = set()
    for number in range(8):
        cache.put([number], layers(number))
        (new,) = set(tmp_path.rglob("*.safetensors")) - written
        os.utime(new, (number, number))
        written.add(new)
    assert cache.get([0]) is not None
    cache_of(tmp_path, 7 * ENTRY_BYTES).put([8], layers(8))
    assert [is_kept(tmp_path, number) for number in (0, 7, 8)] == [True, True, True]
    assert [is_kept(tmp_path, number) for number in (1, 2)] == [False, False]


def test_what_is_larger_than_the_folder_may_be_is_not_written(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, ENTRY_BYTES // 2, ram=1 << 20)
    cache.put([1], layers(1))
    assert size(tmp_path) == 0
    assert cache.get([1]) is not None


def test_a_folder_from_before_is_brought_below_the_bound(tmp_path: Path) -> None:
    before = cache_of(tmp_path, 1 << 30)
    for number in range(20):
        before.put([number], layers(number))
    cache_of(tmp_path, 5 * ENTRY_BYTES).put([20], layers(20))
    assert size(tmp_path) <= 5 * ENTRY_BYTES
    assert is_kept(tmp_path, 20)


def test_files_of_others_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    album = tmp_path / "2019"
    album.mkdir()
    for name in ("wedding.jpg", f"{'ab' * 20}.safetensors", "ab.safetensors"):
        (album / name).write_bytes(bytes(ENTRY_BYTES))
    cache = cache_of(tmp_path, 5 * ENTRY_BYTES)
    for number in range(20):
        cache.put([number], layers(number))
    assert len(list(album.iterdir())) == 3
    assert sum(is_kept(tmp_path, number) for number in range(20)) >= 3


WRITER = """
import sys, torch
from latentrag.generator.passages import PassageCache
folder, first, bound = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
cache = PassageCache(0, folder=folder, max_folder_bytes=bound, model="m")
for step in range(60):
    number = (first + step) % 50
    read = cache.get([number])
    assert read is None or (read[0] == number).all(), number
    if read is None:
        cache.put([number], [torch.full((2, 1, 250, 4), float(number))])
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    """Each deletes what others have written, and no longer finds what it has seen; a warning would be an error."""
    bound = 20 * ENTRY_BYTES
    command = [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path)]

    def write(first: int) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*command, str(first), str(bound)], capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(3) as pool:
        for process in pool.map(write, (0, 17, 31)):
            assert process.returncode == 0, process.stderr[-2000:]
    assert size(tmp_path) <= bound + 3 * ENTRY_BYTES  # what the others write while one looks
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".new"]
