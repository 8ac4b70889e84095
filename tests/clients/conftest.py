"""`latentrag serve` as a process, over a tiny model and memory with the names that the examples use."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import latentrag
from latentrag.assemble import load_passage_encoder
from latentrag.memory import Memory
from latentrag.types import Passage
from tests import tiny
from tests.cli.conftest import DOCUMENTS
from tests.clients.environments import ROOT
from tests.clients.quick_starts import KEY, MEMORY, MODEL, QUESTION, Reply
from tests.encoder.tiny import write_sentence_encoder
from tests.serving.conftest import PATIENCE_S, gated
from tests.serving.test_api import close

__all__ = ["gated"]


@dataclass(frozen=True)
class Place:
    """A folder with a model and a memory of the examples' names."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    @property
    def memory(self) -> Path:
        return self.folder / MEMORY


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    place = Place(tmp_path_factory.mktemp("clients"))
    # The letters of a name are a token each to the tiny encoder, which must read all of them.
    encoder = write_sentence_encoder(place.folder / "encoder", head=["Normalize"], max_seq_length=24)
    tiny.save_tokenizer(place.folder / "generator", end=False)
    tiny.save_llama(place.folder / "generator")
    passage_encoder = load_passage_encoder(encoder)
    passages = [Passage(name, text, title=name.title()) for name, text in DOCUMENTS.items()]
    Memory.create(place.memory, passage_encoder).add(passages, passage_encoder)
    rag = latentrag.load((encoder, place.folder / "generator"), memory=place.memory, k=3)
    rag.defaults = latentrag.DecodingOptions(num_beams=3, min_tokens=2, max_tokens=5)
    latentrag.save(rag, place.model)
    return place


@contextmanager
def server(place: Place, *options: object) -> Iterator[str]:
    """The URL at which it listens."""
    command = [sys.executable, "-m", "latentrag", "serve", "-m", place.model, "-i", place.memory, "--port", 0, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "LATENTRAG_API_KEY": KEY}
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            assert first.startswith("serving demo over notes.lance"), first + process.stderr.read()
            yield first.split()[-1]
        finally:
            process.kill()


@pytest.fixture(scope="session")
def url(place) -> Iterator[str]:
    with server(place, "--quiet") as url:
        yield url


@pytest.fixture(scope="session")
def reply(url) -> Reply:
    """What the server says to the examples' question."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
    with httpx.Client(timeout=PATIENCE_S, verify=False, headers={"authorization": f"Bearer {KEY}"}) as client:  # noqa: S501
        done = client.post(f"{url}/v1/chat/completions", json=asked)
    assert done.status_code == 200, done.text
    found: Reply = done.json()
    return found


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> Path:
    """A folder with this tree's `latentrag` as a program."""
    folder = tmp_path_factory.mktemp("programs")
    program = folder / "latentrag"
    command = shlex.join(["env", f"PYTHONPATH={ROOT / 'src'}", sys.executable, "-m", "latentrag"])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n', "utf-8")
    program.chmod(0o755)
    return folder


def same(printed: list[str], expected: list[str]) -> bool:
    """Equal but for rounding, which depends on what is computed together."""

    def parts(lines: list[str]) -> list[list[object]]:
        words = [line.split() for line in lines]
        return [[*start, float(end)] if start[:1] in (["prior"], ["share"]) else [*start, end] for *start, end in words]

    return close(parts(printed), parts(expected))
