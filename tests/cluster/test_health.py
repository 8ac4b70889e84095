"""What a server says of its shards: without asking them, without Ray."""

from types import SimpleNamespace
from typing import Any

import pytest

from latentrag.cluster import health
from latentrag.cluster.health import STALE_S, Watch
from latentrag.cluster.shard import About
from latentrag.errors import MemoryStoreError
from latentrag.serving.metrics import text_of
from tests.cluster.test_calls import DIVISION, Replicas

HOLDS = About("n", "h", 1, {}, True, {DIVISION.key: 2})
OTHER = HOLDS._replace(loaded={"another": 2})
BUSY, DEAD = TimeoutError("no answer within 1 s"), RuntimeError("dead")


class Shards(Replicas):
    """Two shards with two replicas each, which say of themselves what the test wants."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.said = {(shard, replica): HOLDS for shard in range(2) for replica in range(2)}

    def every(self, method, arguments, *, timeout_s):
        assert (method, arguments) == ("about", (DIVISION.key,))
        return dict(self.said)


@pytest.fixture
def shards() -> Shards:
    return Shards()


@pytest.fixture
def now(monkeypatch) -> list[float]:
    found = [100.0]
    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: found[0]))
    return found


def watch(shards: Shards, **how) -> Watch:
    version: Any = SimpleNamespace(version=3, division=DIVISION)
    return Watch(shards, lambda: version, **how)


def test_ready_as_long_as_each_shard_has_one_replica(shards, now):
    seen = watch(shards)
    assert seen.health().problem == "the shards have not been asked yet"
    seen.look()
    assert seen.health().problem is None
    assert [(each.there, each.ready, each.rows) for each in seen.health().shards] == [(2, 2, 2), (2, 2, 2)]
    shards.said |= {(0, 0): DEAD, (1, 1): OTHER}
    seen.look()
    assert seen.health().problem is None
    assert [(each.there, each.ready) for each in seen.health().shards] == [(1, 1), (2, 1)]
    assert shards.loads == [(1, 1)]
    shards.said[1, 0] = DEAD
    seen.look()
    assert seen.health().problem == "no replica of shard 2 of 2 of cluster:wiki holds version 3"


def test_with_partial_one_shard_is_enough(shards, now):
    seen = watch(shards, partial=True)
    shards.said |= {(1, 0): DEAD, (1, 1): DEAD}
    seen.look()
    assert seen.health().problem is None
    shards.said |= {(0, 0): DEAD, (0, 1): OTHER}
    seen.look()
    assert seen.health().problem is not None


def test_one_that_is_too_busy_to_answer_is_what_it_was_for_a_while(shards, now):
    seen = watch(shards)
    seen.look()
    shards.said = dict.fromkeys(shards.said, BUSY)
    now[0] += STALE_S - 1
    seen.look()
    assert seen.health().problem is None
    now[0] += 1
    seen.look()
    assert "no replica of shard 1 of 2" in str(seen.health().problem)


def test_a_look_that_fails_or_hangs(shards, now, monkeypatch):
    seen = watch(shards)
    seen.look()
    now[0] += STALE_S + 5
    assert seen.health().problem == "the cluster has not answered for 20 s"
    seen.look()
    assert seen.health().problem is None

    def gone(*_, **__):
        raise MemoryStoreError("the cluster has no memory named 'wiki'")

    monkeypatch.setattr(shards, "every", gone)
    seen.look()
    assert seen.health().problem == "the cluster has no memory named 'wiki'"


def test_what_an_operator_watches(shards, now):
    seen = watch(shards)
    shards.said[1, 0] = DEAD
    shards.num_failed[1] = 7
    shards.search_s[0] = 0.25
    seen.look()
    lines = text_of(seen.health()).splitlines()
    for line in (
        "# TYPE latentrag_shard_replicas_ready gauge",
        'latentrag_shard_replicas_ready{shard="1"} 2',
        'latentrag_shard_replicas_ready{shard="2"} 1',
        'latentrag_shard_failed_tries_total{shard="2"} 7',
        'latentrag_shard_search_seconds{shard="1"} 0.25',
        'latentrag_shard_passages{shard="1"} 2',
    ):
        assert line in lines
    assert not any(line.startswith('latentrag_shard_search_seconds{shard="2"}') for line in lines)
