"""A tiny model over a tiny memory, served on loopback by a thread of this process."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from latentrag.assemble import live_memory, load
from latentrag.memory import LiveMemory
from latentrag.rag import Rag
from latentrag.serving.app import create_app
from latentrag.serving.options import ServeOptions
from latentrag.serving.run import bound
from tests.cli.conftest import ask, encoder, files, generator, memory, model
from tests.test_rag import FakeRetriever
from tests.toy import ToyGenerator, passages

PATIENCE_S = 300
"""How long a test waits for what is certain to come: a loaded machine is slow, not wrong."""

__all__ = ["ask", "encoder", "files", "generator", "memory", "model"]


@dataclass(frozen=True)
class Served:
    """An app that answers at ``url``."""

    url: str
    port: int
    app: Any
    client: httpx.Client
    server: Any

    @property
    def batcher(self) -> Any:
        return self.app.state.service.engine.batcher

    def post(self, path: str, body: Any, **kwargs: Any) -> httpx.Response:
        return self.client.post(path, json=body, **kwargs)

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.client.get(path, **kwargs)


@contextmanager
def serving(app: Any, options: ServeOptions | None = None) -> Iterator[Served]:
    """The app behind uvicorn as ``latentrag serve`` starts it; at the end what was accepted is finished."""
    import uvicorn

    from latentrag.serving.run import configured

    with bound("127.0.0.1", 0) as listening:
        server = uvicorn.Server(configured(app, options or ServeOptions()))
        started = threading.Event()
        startup = server.startup

        async def and_say_so(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets)
            started.set()

        setattr(server, "startup", and_say_so)  # noqa: B010
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        assert started.wait(PATIENCE_S)
        port = listening.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        # Certificates take long to load and nothing is encrypted here.
        limits = httpx.Limits(keepalive_expiry=1.0)  # well before the server closes an idle connection
        client = httpx.Client(base_url=url, timeout=PATIENCE_S, limits=limits, verify=False)  # noqa: S501
        with client:
            try:
                yield Served(url, port, app, client, server)
            finally:  # requests under way are finished
                server.should_exit = True
                thread.join(PATIENCE_S)
                assert not thread.is_alive()


@pytest.fixture(scope="module")
def live(memory) -> LiveMemory:
    return live_memory(memory)


@pytest.fixture(scope="module")
def rag(model, live) -> Rag:
    return load(model, memory=live)


@pytest.fixture(scope="module")
def served(rag, live) -> Iterator[Served]:
    """The tiny real model. Not to be changed."""
    with serving(create_app(rag, live, name="tiny")) as running:
        yield running


class GatedGenerator(ToyGenerator):
    """Takes no step of decoding until the gate is open, and says when it has come to it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gate, self.reached = threading.Event(), threading.Event()
        self.batches: list[int] = []

    @contextmanager
    def closed(self) -> Iterator[None]:
        """The gate is open afterwards, also when a test fails: else it would not end."""
        try:
            yield
        finally:
            self.gate.set()

    def start(self, prepared):
        self.batches.append(prepared.num_questions)
        self.reached.set()
        assert self.gate.wait(PATIENCE_S)
        return super().start(prepared)

    def step(self, state, parents, tokens):
        assert self.gate.wait(PATIENCE_S)
        return super().step(state, parents, tokens)


@pytest.fixture
def gated() -> Rag:
    """A toy model whose generator waits for ``rag.generator.gate``."""
    return Rag(FakeRetriever(passages(4)), GatedGenerator(vocabulary=4, seed=11), k=3)
