"""One process against two (gloo, on the CPU) with the same batches, and kill −9 at a random step."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentrag.memory import Memory
from latentrag.training.log import read_log
from tests.memory.indexing import rows_of
from tests.training import test_loop
from tests.training.processes_run import refreshing_trainer
from tests.training.test_loop import OPTIONS, losses_of, newest, trainer

parts = test_loop.parts


LAUNCH = "-m torch.distributed.run --nproc-per-node=2 --master-port=0 --rdzv-backend=c10d --rdzv-endpoint=localhost:0"


def started(*command: str, variables: dict[str, str] | None = None, **more) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    environment |= variables or {}
    return subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def test_two_processes_do_what_one_does(parts, tmp_path) -> None:
    """Sums of float32 gradients in another order: losses differ by rounding."""
    options = replace(OPTIONS, batch_size=5, hindsight=1)  # five rows: the shares differ
    trainer(parts, tmp_path / "one", options=options, dev=test_loop.EXAMPLES).run()
    run = [str(parts), str(tmp_path / "two"), json.dumps(asdict(options))]
    process = started(*LAUNCH.split(), "-m", "tests.training.processes_run", *run)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr[-2000:]
    assert stdout.startswith("2 [")
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    assert len(two) == options.num_steps
    assert_same_dev(tmp_path / "two", tmp_path / "one")


def assert_same_dev(run: Path, other: Path) -> None:
    """Both were evaluated at the same steps, with the same values up to rounding."""
    found, expected = ([r for r in read_log(each / "log.jsonl") if r["event"] == "dev"] for each in (run, other))
    assert len(found) == len(expected) > 1
    for one, two in zip(found, expected, strict=True):
        assert {**one, "time_s": 0} == pytest.approx({**two, "time_s": 0}, abs=1e-4)


def test_two_processes_refresh_the_memory_as_one_does(parts, tmp_path) -> None:
    """Stopped and resumed, and with a first process that re-encodes for longer than a collective may take."""
    options = replace(OPTIONS, batch_size=5, num_steps=8, refresh_every=3)
    one, two = tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        shutil.copytree(parts / "memory.lance", run.with_suffix(".lance"))
    refreshing_trainer(parts, one, options=options, dev=test_loop.EXAMPLES).run()
    how = [str(parts), str(two), json.dumps(asdict(options)), "twice", "limit=10", "slow=14"]
    process = started(*LAUNCH.split(), "-m", "tests.training.processes_run", *how)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr[-2000:]
    expected = losses_of(one)
    assert min(expected) > 0.1
    torch.testing.assert_close(losses_of(two), expected, rtol=0, atol=1e-5)
    assert_same_dev(two, one)
    for run in (one, two):
        assert [r["memory_version"] for r in read_log(run / "log.jsonl") if r["event"] == "refresh"] == [3, 4]
    first = vectors_of(one, version=2)
    assert np.abs(vectors_of(one) - first).max() > 1e-2
    np.testing.assert_allclose(vectors_of(two), vectors_of(one), rtol=0, atol=2e-3)  # fp16


def vectors_of(run: Path, *, version: int | None = None) -> np.ndarray:
    """Of the memory beside a run."""
    return rows_of(Memory.open(run.with_suffix(".lance"), version=version).table).vectors.astype(np.float32)


def ranks(*words: str, of_second: tuple[str, ...] = ()) -> list[tuple[int, str]]:
    """Two processes that no launcher looks after: how each ends, and what it says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    pair = [
        started(*words, *more, variables={**where, "RANK": rank, "LOCAL_RANK": rank})
        for rank, more in (("0", ()), ("1", of_second))
    ]
    try:
        said = [each.communicate(timeout=120)[1] for each in pair]
    finally:
        for each in pair:
            each.kill()
    return [(each.returncode, text) for each, text in zip(pair, said, strict=True)]


@pytest.mark.parametrize(
    ("ending", "code", "of_first", "of_second"),
    [
        ("fails", 1, "OtherProcessError: another process of this run has failed", "InputError: the third step is too"),
        ("dies", -9, r"TrainingError: another process of this run is gone or does not answer \(.*\); continue", ""),
    ],
    ids=["fails", "dies"],
)
def test_a_process_that_ends_ends_the_other(parts, tmp_path, ending, code, of_first, of_second) -> None:
    """While the other one adds up its gradients."""
    run = [str(parts), str(tmp_path / "run"), json.dumps(asdict(OPTIONS)), ending]
    (one, said_by_one), (two, said_by_two) = ranks("-m", "tests.training.processes_run", *run)
    assert (one, two) == (1, code)
    assert re.search(of_first, said_by_one)
    assert re.search(of_second, said_by_two)


def test_a_command_that_fails_in_one_process_says_so_once(parts, tmp_path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"question": x, "answer": y} for x, y in test_loop.PAIRS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["-m", "latentrag", "train", data, "--encoder", parts / "encoder", "--generator", parts / "llama"]
    line += ["-i", parts / "memory.lance", "-k", 2, "--steps", 2, "--out", tmp_path / "run", "--device", "cpu"]
    found = ranks(*map(str, line), of_second=(str(tmp_path / "none.jsonl"),))
    assert [code for code, _ in found] == [2, 2]
    errors = [[each for each in said.splitlines() if each.startswith("error: ")] for _, said in found]
    assert errors[0] == []
    (error,) = errors[1]
    assert "none.jsonl" in error


def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(parts, tmp_path) -> None:
    """At another moment each time. All runs are processes of their own: this one's threads depend on the tests before,
    and rounding on them."""
    options = replace(OPTIONS, num_steps=16)

    def training(run: Path, *more: str) -> subprocess.Popen:
        return started("-m", "tests.training.processes_run", str(parts), str(run), json.dumps(asdict(options)), *more)

    whole, run = tmp_path / "whole", tmp_path / "killed"
    done_whole = training(whole)
    _, stderr = done_whole.communicate(timeout=240)
    assert done_whole.returncode == 0, stderr[-2000:]
    process = training(run)
    wanted = random.randrange(3, 14)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        done = [r for r in read_log(run / "log.jsonl") if r["event"] == "train"] if (run / "log.jsonl").exists() else []
        if len(done) >= wanted:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    found = newest(run)
    reached = max(r["step"] for r in read_log(run / "log.jsonl"))
    assert reached - found.step <= options.save_every
    assert found.step < options.num_steps
    resumed = training(run, "resume")
    _, stderr = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, stderr[-2000:]
    assert len(losses_of(run)) == options.num_steps
    torch.testing.assert_close(losses_of(run), losses_of(whole), rtol=0, atol=1e-6)
    assert json.loads((run / "step-00000016" / "state.json").read_text())["best"]
