"""`latentrag serve` and `latentrag mcp` as processes, and what they refuse before they load anything."""

import asyncio
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI

from latentrag.assemble import live_memory, load_passage_encoder
from latentrag.memory import Memory, history
from latentrag.memory.scratch import FOLDER, sweep
from latentrag.serving.options import ServeOptions
from latentrag.serving.run import address, bound, run
from latentrag.types import Passage
from tests.cli.conftest import QUESTION, cli
from tests.serving.conftest import PATIENCE_S
from tests.serving.test_api import close, to_clients

KEY = "0123456789abcdef"


def test_a_server_from_start_to_end(model, memory, ask) -> None:
    command = [sys.executable, "-m", "latentrag", "serve", "-m", model, "-i", memory, "--port", "0"]
    environment = {**os.environ, "LATENTRAG_API_KEY": KEY}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            assert first.startswith("serving tiny over notes.lance version 2 at http://127.0.0.1:")
            url = first.split()[-1]
            with httpx.Client(base_url=url, timeout=PATIENCE_S, verify=False) as client:  # noqa: S501
                assert client.get("/v1/models").status_code == 401
                client.headers["authorization"] = f"Bearer {KEY}"
                answer = client.post("/v1/answer", json={"question": QUESTION})
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
        log = process.stderr.read().splitlines()
    assert close(answer.json(), to_clients(ask(QUESTION, "--json").json))
    assert [line.split(" ", 2)[2].rsplit(" ", 2)[0] for line in log] == ["GET /v1/models 401", "POST /v1/answer 200"]
    assert QUESTION not in "".join(log)


def test_what_a_killed_server_was_sent_is_gone_when_the_next_one_starts(model, memory, tmp_path) -> None:
    path = shutil.copytree(memory, tmp_path / "own.lance")
    command = [sys.executable, "-m", "latentrag", "serve", "-m", model, "-i", path, "--port", "0", "--allow-writes"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            port = int(process.stderr.readline().rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sender:
                part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.md"\r\n\r\nsecret'
                head = "POST /api/documents HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n"
                kind = "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
                sender.sendall(f"{head}{kind}".encode() + part)
                deadline = time.monotonic() + PATIENCE_S
                while not list((path / FOLDER).glob("*/a.md")):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                process.kill()
                process.wait(PATIENCE_S)
        finally:
            process.kill()
    assert list((path / FOLDER).glob("*/a.md"))
    sweep(path)  # as the next server does first
    assert not (path / FOLDER).exists()
    assert Memory.open(path).version == 2


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGHUP is not ignored, as it is where the tests themselves were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_lets_the_server_finish_what_it_accepted(name) -> None:
    app, accepted = FastAPI(), threading.Event()

    @app.get("/slow")
    async def slow() -> str:
        accepted.set()
        await asyncio.sleep(0.5)
        return "done"

    def ask(url: str) -> str:
        return httpx.get(f"{url}/slow", timeout=PATIENCE_S).text

    def hang_up() -> None:
        assert accepted.wait(PATIENCE_S)
        os.kill(os.getpid(), getattr(signal, name))

    with bound("127.0.0.1", 0) as listening, ThreadPoolExecutor(2) as pool:
        listening.listen()
        answer = pool.submit(ask, address(listening))
        pool.submit(hang_up)
        run(app, listening, ServeOptions())
        assert answer.result() == '"done"'


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
def test_a_server_that_is_killed_while_it_exchanges_its_memory_loses_nothing(
    tmp_path, model, memory, encoder, delay_s
) -> None:
    path = shutil.copytree(memory, tmp_path / "own.lance")
    Memory.open(path).add([Passage("new", "Tokyo is a city.")], load_passage_encoder(encoder))
    before = {number: sorted(z.id for z in Memory.open(path, version=number).passages()) for number in (2, 3)}
    command = [sys.executable, "-m", "latentrag", "serve", "-m", model, "-i", path, "--port", "0", "--quiet"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, ThreadPoolExecutor(1) as pool:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().split()[-1]
            exchanges = pool.submit(exchange_until_gone, url)
            process.stderr.close()
            time.sleep(0.5 + delay_s)
        finally:
            process.kill()
        assert exchanges.result() > 0
    assert cli("index", "verify", path).code == 0
    assert {number: sorted(z.id for z in Memory.open(path, version=number).passages()) for number in (2, 3)} == before
    assert len(Memory.open(path, version="newest").log()) == 3
    served = live_memory(path)
    assert served.version in before
    history.serve(path, 2)  # no lock is left that holds anybody up
    assert live_memory(path).version == 2


def exchange_until_gone(url: str) -> int:
    """How often it was done."""
    with httpx.Client(base_url=url, timeout=PATIENCE_S, verify=False) as client:  # noqa: S501
        for count in itertools.count():
            try:
                used = client.post("/v1/memory", json={"action": "use", "version": 2 + count % 2})
            except httpx.TransportError:
                return count
            assert used.status_code == 200
    raise AssertionError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others connect, and there is no API key"),  # noqa: S104
        (["--host", "::"], "lets others connect"),
        (["--host", "a.host.that.is.not", "--api-key-file", "KEY"], "cannot listen at a.host.that.is.not"),
        (["--api-key-file", "none"], "none cannot be read"),
        (["--api-key-file", "EMPTY"], "holds no API key"),
        (["--api-key-file", "SHORT"], "an API key is shorter than 16 characters"),
        (["--port", "TAKEN"], "choose another --host or --port"),
        (["--rate", 0], "--rate=0.0; needed more than 0"),
        (["--queue", 0], "--queue=0; needed 1 or more"),
        (["--batch", 0], "--batch=0; needed 1 or more"),
        (["--wait", 0], "--wait=0.0; needed more than 0"),
        (["--passage-cache", "much"], "--passage-cache 'much' is not a size"),
        (["-k", 0, "--port", 0], "--k=0; needed 1 or more"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.delenv("LATENTRAG_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    for name, text in (("KEY", KEY), ("EMPTY", "\n\n"), ("SHORT", f"{KEY}\nsecret\n")):
        (tmp_path / name).write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = [port if each == "TAKEN" else each for each in arguments]
        assert message in cli("serve", "-m", tmp_path, "-i", tmp_path, *arguments).error()


def test_without_the_extra(monkeypatch, tmp_path) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "run `pip install 'latentrag[serve]'`" in cli("serve", "-i", tmp_path).error()
    assert "run `pip install 'latentrag[mcp]'`" in cli("mcp", "-i", tmp_path).error()


def test_tools_of_the_model_context_protocol(model, memory, ask) -> None:
    import anyio
    from mcp.client import ClientSession
    from mcp.client.stdio import StdioServerParameters, stdio_client
    from mcp.types import TextContent

    arguments = ["-m", "latentrag", "mcp", "-m", str(model), "-i", str(memory)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}

    async def talk() -> None:
        place = StdioServerParameters(command=sys.executable, args=arguments, env=environment)
        async with stdio_client(place) as (reading, writing), ClientSession(reading, writing) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            assert {tool.name for tool in tools} == {"ask", "search"}
            answer = await session.call_tool("ask", {"question": QUESTION, "k": 2, "variant": "token"})
            found = await session.call_tool("search", {"question": QUESTION, "k": 2})
            wrong = await session.call_tool("ask", {"question": QUESTION, "k": 50})
            some = await session.call_tool("search", {"question": QUESTION, "where": "place like 'emma%'"})
        expected = to_clients(ask(QUESTION, "-k", 2, "--variant", "token", "--json").json)
        assert close(answer.structured_content, expected)
        ids = [each["id"] for each in found.structured_content["passages"]]
        assert ids == [each["id"] for each in expected["sources"]]
        assert {each["source"] for each in some.structured_content["passages"]} == {"emma.txt"}
        assert wrong.is_error
        assert isinstance(wrong.content[0], TextContent)
        assert "k=50 exceeds the memory's 4 passages" in wrong.content[0].text

    anyio.run(talk)
