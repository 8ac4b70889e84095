"""The clients of ``benchmarks.serving``: they ask over streams, in one thread, and write down when what came."""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.serving_plan import Plan, fault

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a request.

    Attributes:
        asked_s: when it was sent, in seconds of ``time.monotonic``.
        first_s: from then to the first token; None: there was none.
        whole_s: from then to the answer; None: it did not come.
        error: what was wrong with it; empty: nothing.
    """

    asked_s: float
    first_s: float | None = None
    whole_s: float | None = None
    error: str = ""


def client(url: str, patience_s: float) -> httpx.AsyncClient:
    """One for all requests; as many connections as there are requests."""
    return httpx.AsyncClient(base_url=url, timeout=patience_s, limits=httpx.Limits(max_connections=None))


async def ask(asking: httpx.AsyncClient, body: Body, plan: Plan) -> Reply:
    """One question to its end."""
    asked_s, first_s, name = time.monotonic(), None, ""
    try:
        async with asking.stream("POST", "/v1/answer/stream", json=body) as response:
            if response.status_code != 200:
                return Reply(asked_s, error=f"status {response.status_code}")
            async for line in response.aiter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                    if name == "token" and first_s is None:
                        first_s = time.monotonic() - asked_s
                elif line.startswith("data: ") and name == "answer":
                    whole_s = time.monotonic() - asked_s
                    return Reply(asked_s, first_s or whole_s, whole_s, fault(json.loads(line[6:]), plan) or "")
    except httpx.HTTPError as error:
        return Reply(asked_s, first_s, error=type(error).__name__)
    return Reply(asked_s, first_s, error=f"the stream ended with {name or 'nothing'}")


async def without_pause(
    asking: httpx.AsyncClient, bodies: Iterator[Body], plan: Plan, *, clients: int, seconds: float
) -> list[Reply]:
    """So many clients that each ask again as soon as they have an answer. Returns: what came within the time."""
    replies: list[Reply] = []

    async def one() -> None:
        while True:
            replies.append(await ask(asking, next(bodies), plan))

    tasks = [asyncio.create_task(one()) for _ in range(clients)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return replies


async def as_they_come(
    asking: httpx.AsyncClient, bodies: Iterator[Body], plan: Plan, *, gaps: Sequence[float]
) -> list[Reply]:
    """Clients that come after these gaps, in seconds, whether others have their answers or not."""
    tasks = []
    for gap in gaps:
        await asyncio.sleep(gap)
        tasks.append(asyncio.create_task(ask(asking, next(bodies), plan)))
    return list(await asyncio.gather(*tasks))


def gaps_of(rate: float, seconds: float, *, seed: int) -> list[float]:
    """Between arrivals of a Poisson process: ``rate`` a second on average, for so many seconds."""
    drawn, gaps, total = random.Random(seed), [], 0.0  # noqa: S311
    while (total := total + (gap := drawn.expovariate(rate))) <= seconds:
        gaps.append(gap)
    return gaps


async def beside(asking: httpx.AsyncClient, large: Body, small: Body, plan: Plan, *, after_s: float) -> list[Reply]:
    """A large question, and a small one so long after it. Returns: what became of both."""
    first = asyncio.create_task(ask(asking, large, plan))
    await asyncio.sleep(after_s)
    second = await ask(asking, small, plan)
    return [await first, second]


async def leave(asking: httpx.AsyncClient, body: Body, plan: Plan, *, after_s: float) -> bool:
    """A client that goes so long after it has asked. Returns: whether its answer was not there yet."""
    task = asyncio.create_task(ask(asking, body, plan))
    await asyncio.wait({task}, timeout=after_s)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return task.cancelled()
