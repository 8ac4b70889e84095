"""The benchmark of the server: what it asks, what it counts as failed, and that it goes on where it ended."""

import asyncio
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving_clients as clients
from benchmarks.serving import answers_per_s, percentile, shown, summary
from benchmarks.serving_plan import MARK, Kept, Plan, fault

PLAN = Plan(Path("m.lance"), ["one?", "two?", "three?"], (4, 5), frozenset({"a"}))


def test_an_answer_of_two_versions_is_a_fault() -> None:
    new, old, other = {"id": "a", "text": f"new{MARK}"}, {"id": "a", "text": "old"}, {"id": "b", "text": "old"}
    assert fault({"memory_version": 5, "sources": [new, other]}, PLAN) is None
    assert fault({"memory_version": 4, "sources": [old, other]}, PLAN) is None
    assert fault({"memory_version": 4, "sources": [new, other]}, PLAN) == "mixed"
    assert fault({"memory_version": 6, "sources": [old]}, PLAN) == "version 6 was never served"


def test_questions_come_in_turn_from_one_of_them_on() -> None:
    bodies = PLAN.bodies(4, k=2)
    assert [next(bodies) for _ in range(3)] == [{"question": x, "k": 2} for x in ("two?", "three?", "one?")]


def test_figures_are_kept_by_settings(tmp_path) -> None:
    path = tmp_path / "kept" / "serving.json"
    kept = Kept(path, {"clients": 64})
    kept.add("saturation", "after", 0, {"answers_per_s": 2.0, "failed": 0})
    kept.add("killed", "after", 0, {"cpu_s": [0.5, 1.5, 1.0]})
    again = Kept(path, {"clients": 64})
    assert again.has("saturation", "after", 0)
    assert not again.has("saturation", "before", 0)
    assert not again.has("saturation", "after", 1)
    assert not Kept(path, {"clients": 8}).has("saturation", "after", 0)
    table = "\n".join(shown(again))
    assert "| after, 1 rounds | 2.00 |" in table
    assert "| 1.00 |" in table  # the median of the tries


def test_percentiles_and_failures() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 50) == 2.0
    assert percentile([float(n) for n in range(1, 101)], 95) == 95.0
    assert percentile([], 95) is None
    replies = [clients.Reply(0.0, 1.0, 2.0), clients.Reply(0.0, 3.0, 4.0), clients.Reply(0.0, error="mixed")]
    found = summary(replies)
    assert (found["answers"], found["failed"], found["errors"]) == (2, 1, ["mixed"])
    assert (found["first_p95_s"], found["whole_p50_s"]) == (3.0, 2.0)


def test_the_rate_does_not_depend_on_how_a_server_begins_and_ends() -> None:
    batches = [clients.Reply(0.0, 1.0, float(end)) for end in (30, 30, 60, 60, 90, 90)]
    assert answers_per_s(batches, 2) == pytest.approx(2 / 30)
    singly = [clients.Reply(0.0, 1.0, 40.0 + 15 * number) for number in range(5)]
    failed = clients.Reply(0.0, 1.0, 45.0, error="mixed")
    assert answers_per_s([*singly, failed], 2) == pytest.approx(1 / 15)
    with pytest.raises(SystemExit, match="2 answers, needed more than 2; measure for longer"):
        answers_per_s(batches[:2], 2)


def test_arrivals_have_the_rate_that_was_asked_for() -> None:
    gaps = clients.gaps_of(5.0, 400.0, seed=1)
    assert sum(gaps) <= 400
    assert len(gaps) == pytest.approx(2000, rel=0.1)
    assert gaps == clients.gaps_of(5.0, 400.0, seed=1)


class Streams:
    """An HTTP client whose streams say these lines, one in a hundredth of a second."""

    def __init__(self, lines: list[str], status: int = 200) -> None:
        self.lines, self.status_code, self.num_asked = lines, status, 0

    @asynccontextmanager
    async def stream(self, *_: Any, **__: Any) -> Any:
        self.num_asked += 1
        yield self

    async def aiter_lines(self) -> Any:
        for line in self.lines:
            await asyncio.sleep(0.01)
            yield line


ANSWER = ["event: sources", "data: {}", "event: token", "data: {}", "event: answer"]
ANSWER += ['data: {"memory_version": 4, "sources": []}']


def test_a_client_says_when_the_first_token_and_the_answer_came() -> None:
    http: Any = Streams(ANSWER)
    reply = asyncio.run(clients.ask(http, {}, PLAN))
    assert reply.error == ""
    assert reply.first_s is not None
    assert reply.whole_s is not None
    assert 0.03 <= reply.first_s < reply.whole_s
    refused: Any = Streams(ANSWER, status=429)
    assert asyncio.run(clients.ask(refused, {}, PLAN)).error == "status 429"
    cut: Any = Streams(ANSWER[:4])
    assert asyncio.run(clients.ask(cut, {}, PLAN)).error == "the stream ended with token"


def test_clients_that_never_pause_stop_in_time() -> None:
    http: Any = Streams(ANSWER)
    began_s = time.monotonic()
    replies = asyncio.run(clients.without_pause(http, PLAN.bodies(0), PLAN, clients=3, seconds=0.5))
    assert time.monotonic() - began_s < 5
    assert 3 <= len(replies) <= http.num_asked
    assert all(not reply.error for reply in replies)
    arrived = asyncio.run(clients.as_they_come(http, PLAN.bodies(0), PLAN, gaps=[0.0, 0.01]))
    assert [reply.error for reply in arrived] == ["", ""]


def test_a_client_that_leaves_says_whether_it_had_an_answer() -> None:
    http: Any = Streams(ANSWER)
    assert asyncio.run(clients.leave(http, {}, PLAN, after_s=0.02)) is True
    assert asyncio.run(clients.leave(http, {}, PLAN, after_s=5.0)) is False
