"""Requests wait, are done together where they are alike, are refused when there are too many."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from latentrag.assemble import live_memory, load, load_passage_encoder
from latentrag.errors import InputError
from latentrag.memory import Memory
from latentrag.rag import Rag
from latentrag.serving import engine
from latentrag.serving.app import create_app
from latentrag.serving.batching import Batcher, Job
from latentrag.serving.failures import Refused
from latentrag.serving.metrics import Metrics
from latentrag.serving.options import ServeOptions
from latentrag.types import Passage
from tests.serving.conftest import PATIENCE_S, GatedGenerator, serving
from tests.test_rag import FakeRetriever
from tests.toy import passages


class Work:
    """Doubles numbers; the first batch waits until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self, batch):
        numbers = [job.request for job in batch]
        self.batches.append(numbers)
        self.begun.set()
        assert self.may_go_on.wait(PATIENCE_S)
        if 13 in numbers:
            raise InputError("13 cannot be doubled")
        if 99 in numbers:
            raise RuntimeError("a bug")
        return [2 * number for number in numbers]


@pytest.fixture
def work():
    return Work()


def held(work: Work, **options) -> Batcher:
    """A batcher whose thread is busy with the job 0."""
    batcher = Batcher(work, ServeOptions(gather_s=0.0, **options))
    batcher.submit(Job("first", 1, 0))
    assert work.begun.wait(PATIENCE_S)
    return batcher


def test_jobs_that_are_alike_are_done_together_and_the_oldest_first(work) -> None:
    batcher = held(work, max_batch=3, max_rows=10)
    jobs = [Job(key, rows, n) for n, (key, rows) in enumerate([("a", 1), ("b", 1), ("a", 1), ("a", 1), ("a", 1)], 1)]
    jobs += [Job("b", 8, 6), Job("b", 8, 7)]
    for job in jobs:
        batcher.submit(job)
    assert len(batcher) == 7
    work.may_go_on.set()
    assert [job.result.result(PATIENCE_S) for job in jobs] == [2, 4, 6, 8, 10, 12, 14]
    assert work.batches == [[0], [1, 3, 4], [2, 6], [5], [7]]  # three jobs, or ten rows, and no more
    batcher.close()


def test_a_batch_gathers_those_that_come_soon(work) -> None:
    work.may_go_on.set()
    batcher = Batcher(work, ServeOptions(gather_s=20.0, max_batch=2))
    jobs = [batcher.submit(Job("a", 1, number)) for number in (1, 2)]
    assert [job.result.result(PATIENCE_S) for job in jobs] == [2, 4]
    assert work.batches == [[1, 2]]
    batcher.close()


def test_what_the_library_refuses_does_not_spoil_the_others(work) -> None:
    batcher = held(work)
    jobs = [batcher.submit(Job("a", 1, number)) for number in (1, 13, 2)]
    work.may_go_on.set()
    assert (jobs[0].result.result(PATIENCE_S), jobs[2].result.result(PATIENCE_S)) == (2, 4)
    with pytest.raises(InputError, match="13 cannot be doubled"):
        jobs[1].result.result(PATIENCE_S)
    batcher.close()


def test_a_bug_ends_its_request_and_nothing_else(work, caplog) -> None:
    batcher = held(work)
    bad = batcher.submit(Job("a", 1, 99))
    beside = batcher.submit(Job("a", 1, 5))
    good = batcher.submit(Job("b", 1, 4))
    work.may_go_on.set()
    with pytest.raises(RuntimeError, match="a bug"):
        bad.result.result(PATIENCE_S)
    assert beside.result.result(PATIENCE_S) == 10
    assert good.result.result(PATIENCE_S) == 8
    assert batcher.is_alive
    assert "a batch of 2 failed" in caplog.text
    batcher.close()


def test_a_full_queue_refuses_and_says_when_to_come_back(work) -> None:
    batcher = held(work, max_queue=2)
    first = batcher.submit(Job("a", 1, 1))
    batcher.submit(Job("a", 1, 2))
    with pytest.raises(Refused, match="2 requests wait already") as refused:
        batcher.submit(Job("a", 1, 3))
    assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "1")
    assert first.leave()  # who leaves makes room
    batcher.submit(Job("a", 1, 4))
    work.may_go_on.set()
    batcher.close()
    assert work.batches == [[0], [2, 4]]
    with pytest.raises(CancelledError):
        first.result.result()


def test_closing_finishes_what_was_accepted_and_accepts_no_more(work) -> None:
    batcher = held(work)
    jobs = [batcher.submit(Job(key, 1, 5)) for key in "abc"]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while batcher.is_alive:
        time.sleep(0.001)
    with pytest.raises(Refused, match="is stopping") as refused:
        batcher.submit(Job("a", 1, 6))
    assert refused.value.status == 503
    work.may_go_on.set()
    closing.join(PATIENCE_S)
    assert [job.result.result(0) for job in jobs] == [10, 10, 10]


def test_who_wants_the_same_takes_no_room(work) -> None:
    batcher = held(work, max_batch=2, max_rows=10)
    wanted = [(1, "x"), (2, "y"), (1, "x"), (3, "z"), (2, "y"), (4, None), (4, None)]
    jobs = [batcher.submit(Job("a", 5, number, same=same)) for number, same in wanted]
    work.may_go_on.set()
    assert [job.result.result(PATIENCE_S) for job in jobs] == [2 * number for number, _ in wanted]
    assert work.batches == [[0], [1, 2, 1, 2], [3, 4], [4]]  # who says nothing of what is the same stays apart
    batcher.close()


# Over HTTP


def wait_for(is_so: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE_S
    while not is_so() and time.monotonic() < until:
        time.sleep(0.001)
    return is_so()


@contextmanager
def busy(gated, live) -> Iterator[tuple[Any, ThreadPoolExecutor]]:
    """A server whose model has a first question before it until the gate is set, and threads to ask more."""
    with (
        serving(create_app(gated, live, name="toy")) as served,
        ThreadPoolExecutor(8) as pool,
        gated.generator.closed(),
    ):
        first = pool.submit(served.post, "/v1/answer", {"question": "first?"})
        assert gated.generator.reached.wait(PATIENCE_S)
        yield served, pool
        assert first.result().status_code == 200


def test_questions_that_wait_are_answered_together_and_draw_as_alone(gated, live) -> None:
    with busy(gated, live) as (served, pool):
        seeded = {"sample": True, "seed": 1}
        bodies: list[dict[str, Any]] = [
            {"question": "one?"},
            {"question": "two?"},
            {"question": "three?", "beams": 1},
            seeded,
            seeded,
        ]
        others = [pool.submit(served.post, "/v1/answer", {"question": "x?", **body}) for body in bodies]
        while len(served.batcher) < 5:
            time.sleep(0.001)
        assert served.get("/healthz").status_code == 200  # the loop does not wait for the model
        gated.generator.gate.set()
        answers = [each.result().json() for each in others]
    assert sorted(gated.generator.batches) == [1, 1, 2, 8]  # two together; four samples each
    assert answers[0]["question"] == "one?"
    assert answers[3]["answer"] == answers[4]["answer"] == gated.answer("x?", sample=True, seed=1).text
    assert answers[0]["log_prob"] == pytest.approx(gated.answer("one?").log_prob, abs=1e-5)


def test_the_same_question_is_answered_once_for_all_who_wait(gated, live) -> None:
    with busy(gated, live) as (served, pool):
        paths = ["/v1/answer", "/v1/answer", "/v1/answer/stream", "/v1/score", "/v1/score"]
        bodies = [*[{"question": "x?"}] * 3, *[{"x": "x?", "y": "a"}] * 2]
        others = [pool.submit(served.post, path, body) for path, body in zip(paths, bodies, strict=True)]
        drawn = [pool.submit(served.post, "/v1/answer", {"question": "x?", "sample": True}) for _ in range(2)]
        while len(served.batcher) < 7:
            time.sleep(0.001)
        gated.generator.gate.set()
        answers = [each.result() for each in others]
        assert {each.result().status_code for each in drawn} == {200}
    assert sorted(gated.generator.batches) == [1, 1, 8]  # one for three; samples are each one's own
    assert answers[0].json() == answers[1].json()
    streamed = answers[2].text.rstrip().rpartition("data: ")[2]
    assert json.loads(streamed) == answers[0].json()
    assert answers[3].json() == answers[4].json()


@pytest.mark.parametrize("path", ["/v1/answer", "/v1/answer/stream"])
def test_too_many_requests_are_told_to_come_back(gated, live, path) -> None:
    options = ServeOptions(max_queue=1)
    with (
        serving(create_app(gated, live, name="toy", options=options)) as served,
        ThreadPoolExecutor(2) as pool,
        gated.generator.closed(),
    ):
        first = pool.submit(served.post, "/v1/answer", {"question": "first?"})
        assert gated.generator.reached.wait(PATIENCE_S)
        second = pool.submit(served.post, "/v1/answer", {"question": "second?"})
        while not len(served.batcher):
            time.sleep(0.01)
        full = served.post(path, {"question": "third?"})
        gated.generator.gate.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert (full.status_code, full.headers["retry-after"].isdigit()) == (429, True)
    assert full.json()["error"]["message"] == "1 requests wait already; try again later"


@pytest.mark.parametrize("path", ["/v1/answer", "/v1/answer/stream"])
def test_who_has_waited_too_long_is_told_to_come_back(gated, live, path) -> None:
    options = ServeOptions(max_wait_s=0.3)
    with (
        serving(create_app(gated, live, name="toy", options=options)) as served,
        ThreadPoolExecutor(1) as pool,
        gated.generator.closed(),
    ):
        first = pool.submit(served.post, "/v1/answer", {"question": "first?"})
        while not gated.generator.reached.wait(0.05):
            if first.done():  # the model's thread had not been given a turn
                first = pool.submit(served.post, "/v1/answer", {"question": "first?"})
        waited = served.post(path, {"question": "second?"})
        gated.generator.gate.set()
    assert (waited.status_code, waited.headers["retry-after"].isdigit()) == (429, True)
    assert waited.json()["error"]["message"] == "the request has waited 0.3 s for the model; try again later"


@pytest.mark.parametrize("path", ["/v1/answer", "/v1/answer/stream"])
@pytest.mark.parametrize("is_waiting", [True, False], ids=["waiting", "decoding"])
def test_who_goes_away_is_not_decoded_any_further(gated, live, path, is_waiting) -> None:
    generator = gated.generator
    body = {"question": "long?", "min_tokens": 30, "max_tokens": 40, "beams": 1}
    with (
        serving(create_app(gated, live, name="toy")) as served,
        ThreadPoolExecutor(1) as pool,
        gated.generator.closed(),
    ):
        if is_waiting:
            first = pool.submit(served.post, "/v1/answer", {"question": "first?", "max_tokens": 2})
            assert generator.reached.wait(PATIENCE_S)
        with pytest.raises(httpx.ReadTimeout):
            served.post(path, body, timeout=1.0)
        while f'path="{path}"' not in served.get("/metrics").text:  # until the server has noticed
            time.sleep(0.01)
        generator.gate.set()
        if is_waiting:
            assert first.result().status_code == 200
        assert served.post("/v1/answer", {"question": "next?", "max_tokens": 2}).status_code == 200
    assert generator.num_steps < 10
    assert generator.batches == [1, 1]


def test_stopping_finishes_what_was_accepted_and_accepts_no_more(gated, live) -> None:
    with ThreadPoolExecutor(2) as pool, serving(create_app(gated, live, name="toy")) as served:
        with gated.generator.closed():
            under_way = pool.submit(served.post, "/v1/answer", {"question": "first?"})
            assert gated.generator.reached.wait(PATIENCE_S)
            streamed = pool.submit(served.post, "/v1/answer/stream", {"question": "second?", "beams": 1})
            while not len(served.batcher):
                time.sleep(0.01)
            served.server.should_exit = True
            while can_connect(served.port):
                time.sleep(0.01)
        assert under_way.result().json()["question"] == "first?"
        assert "event: answer" in streamed.result().text


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
    except OSError:
        return False
    return True


class Exchanged(FakeRetriever):
    """Says which version of its memory it has searched."""

    def retrieve(self, x, k):
        return replace(super().retrieve(x, k), version=self.memory.version)


def test_who_asks_after_the_memory_was_exchanged_joins_no_answer_of_the_version_before(live) -> None:
    gated: Any = Rag(Exchanged(passages(4)), GatedGenerator(vocabulary=4, seed=11), k=3)
    memory = gated.retriever.memory
    with busy(gated, live) as (served, pool):
        before = memory.version
        joining = pool.submit(served.post, "/v1/answer", {"question": "first?"})
        assert wait_for(lambda: len(served.batcher) == 1)
        memory.version = before + 1
        after = pool.submit(served.post, "/v1/answer", {"question": "first?"})
        assert wait_for(lambda: len(served.batcher) == 2)
        gated.generator.gate.set()
        assert joining.result().json()["memory_version"] == before
        assert after.result().json()["memory_version"] == before + 1
    assert gated.generator.batches == [1, 1]  # the first, which one joined, and that of the new version


def test_every_answer_is_of_one_version_while_the_memory_is_exchanged(tmp_path, model, encoder) -> None:
    """60 answers by 6 clients, while versions 2 to 4 take turns; the texts say which version they are of."""
    passage_encoder = load_passage_encoder(encoder)
    memory = Memory.create(tmp_path / "m.lance", passage_encoder)
    for number in (2, 3, 4):
        memory = memory.upsert([Passage(f"p{i}", f"words {number}") for i in range(4)], passage_encoder)
    live = live_memory(tmp_path / "m.lance")
    with serving(create_app(load(model, memory=live), live, name="tiny")) as served, ThreadPoolExecutor(7) as pool:
        stop = threading.Event()

        def exchange() -> int:
            count = 0
            while not stop.is_set() or count < 6:
                used = served.post("/v1/memory", {"action": "use", "version": 2 + count % 3})
                assert used.status_code == 200
                count += 1
            return count

        def answer(number: int) -> int:
            response = served.post("/v1/answer", {"question": "who ?", "k": 4, "beams": 1, "max_tokens": 2})
            assert response.status_code == 200
            found = response.json()
            assert {source["text"] for source in found["sources"]} == {f"words {found['memory_version']}"}
            return found["memory_version"]

        exchanges = pool.submit(exchange)
        try:
            seen = set(pool.map(answer, range(60)))
        finally:
            stop.set()
        assert exchanges.result() >= 6
    assert len(seen) > 1


def test_memory_that_was_freed_goes_back_now_and_then(monkeypatch) -> None:
    now, times = [100.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("latentrag.io.give_back_memory", lambda: times.append(now[0]))
    made = engine.Engine(ServeOptions(), Metrics())
    try:
        for second in (100, 101, 109, 110, 119, 121, 140):
            now[0] = second
            made._note(1, 0.1)
    finally:
        made.batcher.close()
    assert times == [100, 110, 121, 140]
