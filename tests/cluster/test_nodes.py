"""Several nodes, of which one is lost."""

import time

import pytest

from latentrag.memory import Memory
from tests.cluster.conftest import Node, wait_for
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
        nodes = {each.node for each in memory._calls.every("about", (), timeout_s=60).values()}
        assert len(nodes) == 2
        q = queries(1, 8)
        expected = one.search(q, 5)
        slowest, end, is_lost = 0.0, time.monotonic() + BACK_S, False
        while True:
            began = time.monotonic()
            assert_same(memory.search(q, 5), expected)
            slowest = max(slowest, time.monotonic() - began)
            if not is_lost:
                second.kill()
                is_lost = True
            elif all(each.rows is not None for each in memory.status()):
                break
            assert time.monotonic() < end
        assert slowest <= 5
    finally:
        if second.process.poll() is None:
            second.kill()


def require_nodes(num: int) -> None:
    import ray

    assert sum(node["Alive"] for node in ray.nodes()) == num
