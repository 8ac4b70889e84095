"""Which replica is asked, when, and what follows from its answer. Without Ray."""

from types import SimpleNamespace

import pytest

from latentrag.cluster.calls import Calls
from latentrag.cluster.division import Division
from latentrag.cluster.shard import NotLoaded, Refused
from latentrag.errors import InputError, MemoryStoreError, UnavailableError

DIVISION = Division(3, "i", "l", "{}", 4, ((), ()), (2, 2))


class Replicas(Calls):
    """Answers are given; who was asked is noted."""

    def __init__(self, num_shards: int, num_replicas: int, answers=None) -> None:
        super().__init__("wiki", num_shards, num_replicas, 1.0)
        self.answers = answers or {}
        self.asked: list[tuple[str, int, int]] = []
        self.loads: list[tuple[int, int]] = []

    def _tried(self, method, arguments, *, limit_s):
        self.asked += [(method, *replica) for replica in arguments]
        return {replica: self.answers.get(replica, "found") for replica in arguments}

    def ask_to_load(self, replica, division) -> None:
        self.loads.append(replica)


def both(calls: Calls, method: str = "search"):
    return calls.each(method, {0: (), 1: ()}, DIVISION)


@pytest.mark.parametrize("methods", [["search"], ["search", "find"], ["search", "find", "count"]])
def test_replicas_take_turns_whatever_the_pattern(methods):
    calls = Replicas(2, 2)
    for _ in range(10):
        for method in methods:
            assert both(calls, method) == {0: "found", 1: "found"}
    for method in methods:
        for replica in ((0, 0), (0, 1), (1, 0), (1, 1)):
            assert calls.asked.count((method, *replica)) == 5


@pytest.mark.parametrize("answer", [TimeoutError("no answer"), RuntimeError("dead"), NotLoaded("k")])
def test_one_that_fails_is_asked_last_for_a_while(answer, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("latentrag.cluster.calls.time", SimpleNamespace(monotonic=lambda: now[0]))
    calls = Replicas(2, 2, {(0, 1): answer})
    now[0] = 100.0
    for _ in range(10):
        both(calls)
    assert calls.asked.count(("search", 0, 1)) == 1
    now[0] = 106.0
    both(calls)
    both(calls)
    assert calls.asked.count(("search", 0, 1)) == 2
    assert calls.loads == ([(0, 1)] * 2 if isinstance(answer, NotLoaded) else [])


def test_a_shard_without_an_answer_is_named():
    calls = Replicas(2, 2, {(1, 0): TimeoutError("no answer within 1 s"), (1, 1): Refused("MemoryStoreError", "gone")})
    with pytest.raises(MemoryStoreError, match=r"^shard 2 of 2 of cluster:wiki does not answer \((no answer|gone)"):
        both(calls)
    assert calls.asked.count(("search", 0, 0)) + calls.asked.count(("search", 0, 1)) == 1


def test_what_every_replica_would_refuse_is_not_asked_again():
    calls = Replicas(1, 3, {(0, each): Refused("InputError", "k=0") for each in range(3)})
    with pytest.raises(InputError, match="^k=0$"):
        calls.each("search", {0: ()}, DIVISION)
    assert len(calls.asked) == 1


def test_any_shard_will_do():
    calls = Replicas(3, 1, {(0, 0): RuntimeError("dead"), (1, 0): RuntimeError("dead")})
    for _ in range(3):
        assert calls.any("read", (), DIVISION) == "found"
    with pytest.raises(MemoryStoreError, match="does not answer"):
        Replicas(1, 1, {(0, 0): RuntimeError("dead")}).any("read", (), DIVISION)


def test_some_answers_and_why_others_are_missing():
    calls = Replicas(2, 1, {(1, 0): TimeoutError("no answer within 1 s")})
    answers, why = calls.some("search", {0: (), 1: ()}, DIVISION)
    assert (answers, why) == ({0: "found"}, {1: "no answer within 1 s"})
    assert calls.num_failed == {1: 1}
    with pytest.raises(UnavailableError, match="^shard 2 of 2 of cluster:wiki does not answer"):
        calls.require(why)
