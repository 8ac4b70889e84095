"""One process against two (gloo, on the CPU) with the same batches, and kill −9 at a random step."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from latentrag.training.log import read_log
from tests.training import test_loop
from tests.training.test_loop import OPTIONS, losses_of, newest, trainer

parts = test_loop.parts


def started(*command: str, **more) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    return subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def test_two_processes_do_what_one_does(parts, tmp_path) -> None:
    """Sums of float32 gradients in another order: losses differ by rounding."""
    options = replace(OPTIONS, batch_size=5, hindsight=1)  # five rows: the shares differ
    trainer(parts, tmp_path / "one", options=options, dev=test_loop.EXAMPLES).run()
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d")
    process = started(
        *launch, "--rdzv-endpoint=localhost:0", "-m", "tests.training.processes_run", str(parts), str(tmp_path / "two"),
        json.dumps(asdict(options)),
    )  # fmt: skip
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr[-2000:]
    assert stdout.startswith("2 [")
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    assert len(two) == options.num_steps


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
