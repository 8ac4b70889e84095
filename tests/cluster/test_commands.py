"""`latentrag cluster`, and a question to a memory in the cluster."""

import pytest

from tests.cli.conftest import cli

pytestmark = pytest.mark.xdist_group("cluster")
QUESTION = "What is the capital of France?"


def test_a_memory_goes_up_is_asked_and_goes_down(cluster, pair, filled, tmp_path):
    encoder, generator = pair
    made = cli("cluster", "up", filled, "--name", "facts", "--shards", 2, "--timeout", 30, "--index", "flat", "--json")
    assert made.json == {
        "name": "facts",
        "memory": str(filled),
        "version": 2,
        "passages": 4,
        "shards": [2, 2],
        "replicas": 1,
    }
    ask = ["ask", QUESTION, "--encoder", encoder, "--generator", generator, "-k", 3, "--max-tokens", 3, "--json"]
    answer, alone = (cli(*ask, "-i", memory).json for memory in ("cluster:facts", filled))
    assert answer == alone
    assert len(cli("cluster", "status", "facts", "--json").json["replicas"]) == 2
    assert cli("cluster", "status").stdout == "facts\n"
    cli("index", "delete", filled, answer["sources"][0]["id"])
    used = cli("cluster", "use", "facts", "newest")
    assert used.stdout.startswith("cluster:facts version 3 is served: 3 passages in 2 shards (")
    assert cli(*ask, "-i", "cluster:facts").json == cli(*ask, "-i", filled).json
    shown = cli("cluster", "status", "facts")
    assert shown.code == 0
    assert shown.stdout.count(" passages\n") == 2
    assert "only a memory in a folder can be used so" in cli("index", "log", "cluster:facts").error()
    assert cli("cluster", "down", "facts").stdout == "cluster:facts is down\n"
    assert "no memory named 'facts'" in cli("cluster", "down", "facts").error()
    assert "no memory named 'facts'" in cli(*ask, "-i", "cluster:facts").error()


def test_no_cluster_can_be_reached(monkeypatch, filled):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for line in (["cluster", "up", filled], ["cluster", "status"], ["ask", QUESTION, "-i", "cluster:facts"]):
        error = cli(*line).error()
        assert error.startswith("error: no Ray cluster can be reached at 127.0.0.1:1 (Connection refused); start one")


def test_a_memory_in_an_object_store_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("the moon is red")
    for line in (["cluster", "up", "s3://bucket/name"], ["cluster", "build", "s3://bucket/name", tmp_path]):
        assert "needed a memory in a folder here" in cli(*line).error()


def test_without_the_extra(monkeypatch, filled):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'latentrag[cluster]'" in cli("cluster", "up", filled).error()
