"""Servers over a sharded memory: each says what one over the memory's folder says, and all follow an exchange."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentrag.assemble import load, load_passage_encoder, served_memory
from latentrag.conditions import condition_of
from latentrag.serving.app import create_app
from latentrag.serving.options import ServeOptions
from tests.cli.conftest import QUESTION, cli, encoder, files, generator, memory, model  # noqa: F401  fixtures
from tests.cluster.conftest import wait_for
from tests.cluster.test_sharded import kill
from tests.serving.conftest import Served, serving
from tests.serving.test_documents import added, files_of, ids
from tests.serving.test_filters import (
    ACCESS,
    ATTEMPTS,
    BOUND,
    HIDDEN,
    MOST,
    OTHER,
    WHOLE,
    asking,
    filled,
    finding,
    said,
)
from tests.serving.test_stream import events

pytestmark = pytest.mark.xdist_group("cluster")
NOT_THE_SAME = {
    "the version before there was anything",  # which has fewer passages than shards
    "counters",
    "loading the model",
}
OPEN = ServeOptions(allow_writes=True)


@pytest.fixture
def path(tmp_path, encoder) -> Path:  # noqa: F811
    filled(tmp_path / "facts.lance", load_passage_encoder(encoder), HIDDEN["one"], "one")
    return tmp_path / "facts.lance"


def server(model: str, address: object, **how: Any) -> Any:  # noqa: F811
    """As ``latentrag serve`` makes it."""
    live = served_memory(str(address))
    return create_app(load(model, memory=live), live, name="tiny", **how)


def test_what_is_said_is_what_a_server_over_the_folder_says(start, path, model) -> None:  # noqa: F811
    """To keys that see everything and to those that see some passages: answers, streams, versions, errors."""
    start(path, shards=2, index="flat", name="facts")
    some = condition_of("level >= 2 or team = 'y'")
    for where, keys, attempts in ((None, (WHOLE, BOUND), ATTEMPTS), (some, (BOUND, OTHER), MOST)):
        make = partial(server, model, access=ACCESS, where=where)
        with serving(make(path)) as one, serving(make("cluster:facts")) as sharded:
            for name in [name for name in attempts if name not in NOT_THE_SAME]:
                for key in keys:
                    found = said(sharded, key, *ATTEMPTS[name])
                    assert found == said(one, key, *ATTEMPTS[name]), (name, key, where)
            _, found = said(sharded, BOUND, *finding(k=100))
            assert {z["id"] for z in found["passages"]} == ({"x1", "x2", "x3", "x4"} if where is None else {"x2", "x4"})


def test_servers_follow_each_other_and_the_cluster(start, path, model, encoder) -> None:  # noqa: F811
    """An exchange, documents that are deleted and added, `cluster use`."""
    memory = start(path, shards=2, index="flat", name="facts")  # noqa: F811
    encodes = partial(load_passage_encoder, encoder)
    with ExitStack() as opened:
        first, second = (
            opened.enter_context(
                serving(server(model, "cluster:facts", options=OPEN, load_passage_encoder=encodes), OPEN)
            )
            for _ in range(2)
        )
        record = first.post("/v1/memory", {"action": "use", "version": 2}).json()
        assert (record["version"], record["newest"], record["follows_newest"], record["choice_kept"]) == (
            *(2, 3, False, True),
        )
        wait_for(lambda: assert_serves(second, 2))
        assert memory.snapshot().version == 2
        assert answered(second, as_of=3)["memory_version"] == 3  # beside it, for this request alone
        assert second.post("/v1/memory", {"action": "tag", "name": "mine", "version": 2}).json()["tags"]["mine"] == 2
        assert answered(first, as_of="mine")["memory_version"] == 2
        cli("cluster", "use", "facts", "newest")
        for each in (first, second):
            wait_for(lambda each=each: assert_serves(each, 3))
        assert "y1" in ids(first)
        done = first.client.delete("/api/documents?id=y1").json()
        assert (done["memory_version"], done["served_version"], done["deleted"]) == (4, 4, 1)
        wait_for(lambda: assert_serves(second, 4))
        done = added(second, files_of(ship_md="# Petrel\n\nIngrid keeps the keys of the Petrel."))
        assert (done["memory_version"], done["served_version"], done["added"]) == (5, 5, 1)
        wait_for(lambda: assert_serves(first, 5))
        every = {"question": QUESTION, "k": 100, "where": "id is not null"}
        found = first.post("/v1/search", every).json()["passages"]
        assert {"ship.md"} < {each["id"] for each in found}
        assert "y1" not in {each["id"] for each in found}


def answered(served: Served, **how: Any) -> dict[str, Any]:
    response = served.post("/v1/answer", {"question": QUESTION, "max_tokens": 3, **how})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def assert_serves(served: Served, version: int) -> None:
    assert answered(served)["memory_version"] == version


def test_where_the_folder_is_not_visible(start, path, model, tmp_path) -> None:  # noqa: F811
    """Questions are answered, also of a version by its number; whatever needs the folder says so in one line."""
    start(path, shards=2, index="flat", name="facts")
    with serving(server(model, "cluster:facts", options=OPEN), OPEN) as served:
        questions = asking(where="level >= 2"), asking(as_of=2), asking(as_of="served")
        expected = [said(served, "none", *each) for each in questions]
        assert {status for status, _ in expected} == {200}
        live = served.app.state.service.memories.live
        live._now = replace(live._now, path=tmp_path / "elsewhere")
        assert [said(served, "none", *each) for each in questions] == expected
        for method, place, body in (
            ("GET", "/v1/memory", None),
            ("POST", "/v1/memory", {"action": "use", "version": 2}),
            ("GET", "/v1/memory/diff?from=2&to=3", None),
            ("GET", "/api/documents", None),
            ("DELETE", "/api/documents?id=y1", None),
            asking(as_of="newest"),
        ):
            status, record = said(served, "none", method, place, body)
            assert status == 409, place
            assert record["error"]["message"] == (
                "this machine does not see the memory, the folder of cluster:facts, where its versions and documents "
                "are read; mount it here under the same path"
            )
        assert served.client.post("/api/documents", files=files_of(a_md="text")).status_code == 409
        assert not (tmp_path / "elsewhere").exists()  # nothing was made there


def test_a_shard_that_is_gone(start, path, model) -> None:  # noqa: F811
    """Questions, and whoever checks the server's health, hear which; probes wait for nothing."""
    memory = start(path, shards=2, index="flat", name="facts", timeout_s=5)  # noqa: F811
    with serving(server(model, "cluster:facts", access=ACCESS)) as served:
        wait_for(lambda: assert_status(served, "/readyz", 200))
        assert 'latentrag_shard_replicas_ready{shard="2"} 1' in metrics(served)
        kill(memory, 1)
        status, record = said(served, WHOLE, *asking())
        assert (status, record["error"]["code"]) == (503, "unavailable")
        assert record["error"]["message"].startswith("shard 2 of 2 of cluster:facts does not answer (")
        status, record = said(served, BOUND, *asking())
        assert (status, record["error"]["message"]) == (
            *(503, "a part of the memory does not answer; ask again in a moment"),
        )
        wait_for(lambda: assert_status(served, "/readyz", 503))
        message = served.get("/readyz").json()["error"]["message"]
        assert message.startswith("no replica of shard 2 of 2 of cluster:facts holds version 3; ")
        began = time.monotonic()
        assert_status(served, "/healthz", 200)
        assert_status(served, "/readyz", 503)
        lines = metrics(served)
        assert time.monotonic() - began < 1
        assert {'latentrag_shard_replicas_ready{shard="1"} 1', 'latentrag_shard_replicas_ready{shard="2"} 0'} < lines
        assert 'latentrag_shard_failed_tries_total{shard="2"} 0' not in lines


def test_a_partial_memory(start, path, model, tmp_path) -> None:  # noqa: F811
    """Answers say what is missing, in every interface; nothing is measured without it."""
    memory = start(path, shards=2, index="flat", name="facts", timeout_s=5, partial=True)  # noqa: F811
    which = ["shard 2 of 2 of cluster:facts"]
    kill(memory, 1)
    with serving(server(model, "cluster:facts")) as served:
        wait_for(lambda: assert_misses(served, which))
        for place, body in (
            ("/v1/search", {"question": QUESTION, "k": 2}),
            ("/v1/score", {"x": QUESTION, "y": "red", "k": 2}),
            ("/v1/classify", {"question": QUESTION, "labels": ["a", "b"], "k": 2}),
            ("/v1/answer", {"question": QUESTION, "k": 2, "where": "id is not null"}),
        ):
            assert served.post(place, body).json()["missing"] == which, place
        stream = events(served.post("/v1/answer/stream", {"question": QUESTION, "k": 2}).text)
        assert [event["missing"] for name, event in stream if name in {"sources", "answer"}] == [which, which]
        wait_for(lambda: assert_status(served, "/readyz", 200))
        assert 'latentrag_shard_replicas_ready{shard="2"} 0' in metrics(served)
    line = ["ask", QUESTION, "-m", model, "-i", "cluster:facts", "-k", 2]
    assert cli(*line, "--json").json["missing"] == which
    assert "Incomplete: shard 2 of 2 of cluster:facts did not answer" in cli(*line).stdout
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": QUESTION, "answer": ["Beethoven"]}) + "\n")
    refused = "shard 2 of 2 of cluster:facts did not answer, and what is measured or learned needs all passages; go on"
    measure = ["eval", data, "-m", model, "-i", "cluster:facts", "--k", 2]
    assert refused in cli(*measure).error()
    assert refused in cli(*measure, "--retrieval-only").error()


def assert_misses(served: Served, which: list[str]) -> None:
    assert served.post("/v1/answer", {"question": QUESTION, "k": 2}).json().get("missing") == which


def metrics(served: Served) -> set[str]:
    return set(served.get("/metrics", headers={"authorization": f"Bearer {WHOLE}"}).text.splitlines())


def assert_status(served: Served, path: str, status: int) -> None:
    assert served.get(path).status_code == status


def test_what_cannot_be_served(start, path, model) -> None:  # noqa: F811
    start(path, shards=2, index="flat", name="facts")
    line = ("serve", "--port", 0, "-m", model, "-i", "cluster:facts")
    assert (
        "all servers answer from the version that it has chosen; leave --as-of out" in cli(*line, "--as-of", 2).error()
    )
    assert "0 passages satisfy level > 99; widen the condition" in cli(*line, "--where", "level > 99").error()
    assert "no memory named 'fact'" in cli("serve", "--port", 0, "-m", model, "-i", "cluster:fact").error()


@pytest.mark.cluster
def test_serve_and_mcp_as_processes(start, path, model) -> None:  # noqa: F811
    from mcp.client.session import ClientSession
    from mcp.client.stdio import StdioServerParameters, stdio_client

    start(path, shards=2, index="flat", name="facts")
    line = ["-m", "latentrag", "serve", "-m", model, "-i", "cluster:facts", "--port", "0"]
    with subprocess.Popen([sys.executable, *map(str, line)], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            first = next(line for line in process.stderr if not line.startswith("["))  # Ray's own, without a network
            assert first.startswith("serving tiny over cluster:facts version 3 at http://127.0.0.1:"), first
            answer = httpx.post(f"{first.split()[-1]}/v1/answer", json={"question": QUESTION, "k": 3}, timeout=300)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    alone = cli("ask", QUESTION, "-m", model, "-i", path, "-k", 3, "--json").json
    assert answer.json()["answer"] == alone["answer"]
    words = ["-m", "latentrag", "mcp", "-m", str(model), "-i", "cluster:facts"]

    async def asked() -> list[dict[str, Any]]:
        place = StdioServerParameters(command=sys.executable, args=words, env=dict(os.environ))
        async with stdio_client(place) as (reading, writing), ClientSession(reading, writing) as session:
            await session.initialize()
            found = await session.call_tool("search", {"question": QUESTION, "k": 3})
            passages: list[dict[str, Any]] = found.structured_content["passages"]
            return passages

    assert [each["id"] for each in asyncio.run(asked())] == [each["id"] for each in alone["sources"]]


def test_a_server_over_a_folder_does_not_load_ray():
    program = "import sys, latentrag.cli.serve, latentrag.serving.app, latentrag.serving.tools; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "latentrag.serving.app" in modules
    assert not [name for name in modules if name.split(".")[0] == "ray" or name.startswith("latentrag.cluster")]
