"""A run over a memory in a cluster learns what one over a folder does, with one process or two."""

import json
import shutil

import numpy as np
import pytest
import torch

from latentrag.cluster import ShardedVersion
from latentrag.errors import MemoryStoreError
from latentrag.memory import Memory
from latentrag.training.log import read_log
from tests.cli.conftest import cli, encoder, files, generator, memory, model  # noqa: F401  fixtures
from tests.cli.test_train import ROWS
from tests.cluster.test_sharded import kill
from tests.memory.indexing import rows_of
from tests.training.test_loop import losses_of
from tests.training.test_processes import assert_same_dev, started

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.cluster]


@pytest.fixture
def line(model, tmp_path):  # noqa: F811
    """The words of a run of four steps, without memory and folder."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return ["train", data, "--dev", data, "-m", model, "--k", 2, "--batch-size", 4, "--steps", 4, "--eval-every", 2]


def train_in_two(*words: object) -> None:
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2, "--module", "latentrag"]
    process = started(*map(str, [*launch, *words]))
    _, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr[-2000:]


def test_training_is_the_same(start, memory, line, tmp_path):  # noqa: F811
    start(memory, name="notes", shards=2, index="flat")
    for name, place in (("folder", memory), ("cluster", "cluster:notes")):
        assert cli(*line, "-i", place, "--out", tmp_path / name).code == 0
    train_in_two(*line, "-i", "cluster:notes", "--out", tmp_path / "two")
    alone = losses_of(tmp_path / "folder")
    assert len(alone) == 4
    assert min(alone) > 0.1
    assert losses_of(tmp_path / "cluster") == alone
    torch.testing.assert_close(losses_of(tmp_path / "two"), alone, rtol=0, atol=1e-5)
    assert_same_dev(tmp_path / "two", tmp_path / "folder")


def test_training_needs_all_passages(start, memory, model, tmp_path):  # noqa: F811
    sharded = start(memory, name="notes", shards=2, index="flat", partial=True)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    kill(sharded, 1)
    line = ["train", data, "-m", model, "--k", 1, "--batch-size", 4, "--steps", 4, "-i", "cluster:notes"]
    assert "did not answer, and what is measured or learned needs all" in cli(*line, "--out", tmp_path / "run").error()


def test_the_memory_is_refreshed_as_in_a_folder(start, memory, line, tmp_path):  # noqa: F811
    """More versions than a shard keeps, and the one that is served stays served and loaded."""
    alone, shared = (shutil.copytree(memory, tmp_path / f"{name}.lance") for name in ("alone", "shared"))
    served = start(shared, name="notes", shards=2, index="flat")
    before = served.snapshot()
    line += ["--refresh-every", 1, "--warmup-generator", 0]
    assert cli(*line, "-i", alone, "--out", tmp_path / "one").code == 0
    train_in_two(*line, "-i", "cluster:notes", "--out", tmp_path / "two")
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert len(one) == 4
    assert min(one) > 0.1
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    assert_same_dev(tmp_path / "two", tmp_path / "one")
    versions = [r["memory_version"] for r in read_log(tmp_path / "two" / "log.jsonl") if r["event"] == "refresh"]
    assert versions == [before.version + number for number in (1, 2, 3, 4)]
    assert served.snapshot().version == before.version
    assert [each.rows for each in served.status()] == list(before.division.rows)
    of_alone, of_shared = (rows_of(Memory.open(path).table).vectors for path in (alone, shared))
    np.testing.assert_allclose(of_shared, of_alone, rtol=0, atol=2e-3)  # fp16
    where = ["--where", "id is not null", "--out", tmp_path / "three"]
    assert cli(*line, "-i", "cluster:notes", *where).code == 0
    torch.testing.assert_close(losses_of(tmp_path / "three"), one, rtol=0, atol=1e-5)
    served.use("newest")
    assert cli("ask", ROWS[0]["question"], "-m", tmp_path / "three" / "model", "-i", "cluster:notes").code == 0


def test_who_re_encodes_has_to_see_the_folder(start, memory, line, tmp_path, monkeypatch):  # noqa: F811
    """The main process says so before its first step."""

    def unseen(_: ShardedVersion) -> None:
        raise MemoryStoreError("this machine does not see it")

    start(memory, name="notes", shards=1, index="flat")
    monkeypatch.setattr(ShardedVersion, "stored", property(unseen))
    line += ["--refresh-every", 2, "--warmup-generator", 0, "-i", "cluster:notes", "--out", tmp_path / "run"]
    assert "this machine does not see it" in cli(*line).error()
    assert not (tmp_path / "run").exists()
