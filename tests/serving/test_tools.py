"""The Model Context Protocol: greeted at once, loaded afterwards, cancelled where the client wants that."""

import asyncio
import threading
import time

import pytest

pytest.importorskip("mcp")

from mcp import Client
from mcp.server.mcpserver.exceptions import ToolError

from latentrag.errors import MemoryStoreError
from latentrag.serving.tools import server
from tests.serving.conftest import PATIENCE_S


def test_the_client_is_greeted_before_anything_is_loaded(gated) -> None:
    may_load, loads = threading.Event(), []

    def load():
        loads.append(time.monotonic())
        assert may_load.wait(PATIENCE_S)
        return gated

    async def talk() -> None:
        async with Client(server(load)) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"ask", "search"}
            asking = asyncio.create_task(client.call_tool("ask", {"question": "who?"}))
            await asyncio.sleep(0.05)
            assert not asking.done()
            may_load.set()
            gated.generator.gate.set()
            answer = (await asking).structured_content
            assert answer is not None
            assert answer["question"] == "who?"

    asyncio.run(talk())
    assert len(loads) == 1


def test_a_call_that_is_cancelled_leaves_at_the_next_step(gated) -> None:
    generator = gated.generator

    async def talk() -> None:
        offered = server(lambda: gated)
        with generator.closed():
            asking = asyncio.create_task(offered.call_tool("ask", {"question": "long?"}))
            assert await asyncio.to_thread(generator.reached.wait, PATIENCE_S)
            waiting = asyncio.create_task(offered.call_tool("ask", {"question": "later?"}))
            await asyncio.sleep(0.05)
            asking.cancel()
            waiting.cancel()
            await asyncio.wait({asking, waiting})
            assert asking.cancelled()
            assert waiting.cancelled()
        found = await offered.call_tool("search", {"question": "who?"})  # whoever comes next is served
        assert not getattr(found, "is_error", False)

    asyncio.run(talk())
    assert generator.num_steps == 0
    assert len(generator.batches) == 1  # the other one was never begun


def test_the_protocols_cancellation_frees_the_model(gated) -> None:
    generator = gated.generator

    async def talk() -> None:
        async with Client(server(lambda: gated)) as client:
            with generator.closed():
                asking = asyncio.create_task(client.call_tool("ask", {"question": "long?"}))
                assert await asyncio.to_thread(generator.reached.wait, PATIENCE_S)
                asking.cancel()
                await asyncio.wait({asking})
                await asyncio.sleep(0.2)  # the notification has arrived
            assert not (await client.call_tool("search", {"question": "who?"})).is_error

    asyncio.run(talk())
    assert generator.num_steps == 0


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again(gated) -> None:
    failures = [MemoryStoreError("no memory there")]
    told: list[str] = []
    gated.generator.gate.set()

    def load():
        if failures:
            raise failures.pop()
        return gated

    async def talk() -> None:
        async with Client(server(load, on_error=told.append)) as client:
            for _ in range(200):
                if told:
                    break
                await asyncio.sleep(0.05)
            found = await client.call_tool("search", {"question": "who?"})
            assert not found.is_error

    asyncio.run(talk())
    assert told == ["no memory there"]
    failures.append(MemoryStoreError("no memory there"))
    with pytest.raises(ToolError, match="no memory there"):
        asyncio.run(server(load).call_tool("search", {"question": "who?"}))
