"""Several nodes: of which one is lost, and which have nothing in common but a folder."""

import shutil
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from latentrag.assemble import load_passage_encoder
from latentrag.cluster import ShardedMemory, add
from latentrag.cluster.building import _Pool
from latentrag.cluster.calls import Replica
from latentrag.cluster.shard import About
from latentrag.memory import Memory
from tests.cluster.conftest import BEHIND_TMPFS, Node, wait_for
from tests.cluster.test_build import UNIT, one_process, rows_of, texts
from tests.cluster.test_sharded import assert_same, queries
from tests.memory.indexing import drawn, make_table

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.cluster]
BACK_S = 60
"""How long the replicas of a lost node may be away."""


def test_a_node_is_lost(head, start, path):
    """0 errors, 0 wrong, none slower than 5 s; its replicas come back on another node."""
    one = Memory(make_table(path, drawn(300, 8)))
    second = Node(f"--address={head}", num_cpus=8)
    try:
        wait_for(lambda: require_nodes(2))
        memory = start(path, shards=2, replicas=2, index="flat", timeout_s=2)
        for shard in range(2):
            assert len({node for replica, node in nodes_of(memory).items() if replica[0] == shard}) == 2
        q = queries(1, 8)
        expected = one.search(q, 5)
        slowest, lost_at = 0.0, 0.0
        while True:
            began = time.monotonic()
            assert_same(memory.search(q, 5), expected)
            slowest = max(slowest, time.monotonic() - began)
            if not lost_at:
                lost_at = time.monotonic()
                second.kill()
            elif len(nodes := nodes_of(memory)) == 4 and set(nodes.values()) == {this_node()} and is_loaded(memory):
                break
            assert time.monotonic() - lost_at < BACK_S
        assert slowest <= 5
    finally:
        if second.process.poll() is None:
            second.kill()


def is_loaded(memory: ShardedMemory) -> bool:
    """Asks replicas to load that have not."""
    return all(each.rows is not None for each in memory.status())


def this_node() -> str:
    """The head's."""
    import ray

    return ray.get_runtime_context().get_node_id()


def nodes_of(memory: ShardedMemory) -> dict[Replica, str]:
    """Where the replicas are that answer: for a moment on a node that is lost, too."""
    found = memory._calls.every("about", (), timeout_s=2)
    return {replica: each.node for replica, each in found.items() if isinstance(each, About)}


def test_nodes_that_see_a_common_folder_alone(head, start, pair, tmp_path, monkeypatch):
    """Three of them encode, beside the head, and search: rows and answers are one machine's."""
    import ray

    own, common = tmp_path / "own", tmp_path / "common"
    own.mkdir()
    common.mkdir()
    if subprocess.run([*BEHIND_TMPFS, own, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    folder = Path(shutil.copytree(pair[0], common / "encoder"))
    alone = one_process(own / "alone.lance", folder, passages := texts(5 * UNIT))
    seen: dict[str, bool] = {}

    def entered(pool: _Pool) -> _Pool:
        seen.update(ray.get([actor.__ray_call__.remote(what_a_node_sees, own) for actor in pool._actors]))
        return pool

    monkeypatch.setattr(_Pool, "__enter__", entered)
    with ExitStack() as stack:
        wait_for(partial(require_nodes, 1))  # those of the test before are lost
        for num in (2, 3, 4):  # one by one: those that start at once on a machine take the same names for their sockets
            node = Node(f"--address={head}", num_cpus=2, hides=own)
            stack.callback(node.kill)
            wait_for(partial(require_nodes, num))
        how: dict[str, Any] = {"source": str(folder), "device": "cpu", "actors": 4, "passages_per_unit": UNIT}
        done = add(common / "wiki.lance", passages, lambda: load_passage_encoder(folder, device="cpu"), **how)
        assert sorted(seen.values()) == [False, False, False, True]
        assert rows_of(done.memory).equals(rows_of(alone))
        memory = start(common / "wiki.lance", shards=4, index="flat")
        assert len(set(nodes_of(memory).values())) == 4
        q = queries(20, 16)
        assert_same(memory.search(q, 5), done.memory.search(q, 5))


def what_a_node_sees(_: object, folder: Path) -> tuple[str, bool]:
    """The node of an actor, and whether there is anything in the folder."""
    import ray

    return ray.get_runtime_context().get_node_id(), any(folder.iterdir())


def require_nodes(num: int) -> None:
    import ray

    assert sum(node["Alive"] for node in ray.nodes()) == num
