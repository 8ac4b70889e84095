"""A run over a memory in a cluster learns what one over a folder does, with one process or two."""

import json

import pytest
import torch

from tests.cli.conftest import cli, encoder, files, generator, memory, model  # noqa: F401  fixtures
from tests.cli.test_train import ROWS
from tests.cluster.test_sharded import kill
from tests.training.test_loop import losses_of
from tests.training.test_processes import started

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.cluster]


def test_training_is_the_same(start, memory, model, tmp_path):  # noqa: F811
    start(memory, name="notes", shards=2, index="flat")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    line = ["train", data, "-m", model, "--k", 2, "--batch-size", 4, "--steps", 4]
    for name, place in (("folder", memory), ("cluster", "cluster:notes")):
        assert cli(*line, "-i", place, "--out", tmp_path / name).code == 0
    error = cli(*line, "-i", "cluster:notes", "--out", tmp_path / "other", "--refresh-every", 2).error()
    assert "refresh_every re-encodes a memory in a folder, cluster:notes is not one" in error
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2, "--module"]
    words = [*launch, "latentrag", *line, "-i", "cluster:notes"]
    process = started(*map(str, words), "--out", str(tmp_path / "two"))
    _, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr[-2000:]
    alone = losses_of(tmp_path / "folder")
    assert len(alone) == 4
    assert min(alone) > 0.1
    assert losses_of(tmp_path / "cluster") == alone
    torch.testing.assert_close(losses_of(tmp_path / "two"), alone, rtol=0, atol=1e-5)


def test_training_needs_all_passages(start, memory, model, tmp_path):  # noqa: F811
    sharded = start(memory, name="notes", shards=2, index="flat", partial=True)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    kill(sharded, 1)
    line = ["train", data, "-m", model, "--k", 1, "--batch-size", 4, "--steps", 4, "-i", "cluster:notes"]
    assert "did not answer, and what is measured or learned needs all" in cli(*line, "--out", tmp_path / "run").error()
