"""Processes that write to an object store at the same time, and ones that are killed."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentrag.memory import Memory
from latentrag.memory.verify import verify

pytestmark = pytest.mark.s3
SCRIPT = Path(__file__).with_name("killed_add.py")
NUM = 12


def start(address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"tests.objects.{SCRIPT.stem}", address, str(NUM)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_addition_goes_on(address, encoder):
    Memory.create(address, encoder)
    rng = random.Random(3)
    for _ in range(3):
        with start(address) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(rng.uniform(0.3, 2.0))
            process.kill()
    with start(address) as process:
        out, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    added, unchanged = map(int, out.split("\n")[1].split())
    assert added + unchanged == NUM
    memory = Memory.open(address)
    assert [passage.id for passage in memory.passages()] == [f"p{i}" for i in range(NUM)]
    assert memory.version == NUM + 1
    report = verify(address)
    assert (report.problems, report.num_unrecorded) == ([], 0)


def test_processes_that_add_the_same_end_with_one_of_each(address):
    """Whoever loses a commit says so; nothing is there twice, and what was acknowledged is there."""
    processes = [start(address) for _ in range(4)]
    outcomes = [process.communicate() for process in processes]
    codes = [process.returncode for process in processes]
    refused = [error for code, (_, error) in zip(codes, outcomes, strict=True) if code]
    assert all("MemoryStoreError" in error for error in refused), refused
    memory = Memory.open(address)
    ids = [passage.id for passage in memory.passages()]
    assert ids == [f"p{i}" for i in range(len(ids))]
    assert memory.version == len(ids) + 1 > 1
    assert (len(ids) == NUM) == (0 in codes)
    assert verify(address).problems == []
