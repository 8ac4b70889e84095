"""Processes that are forked after a model was loaded, and those that are spawned."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

CODE = """
import os, sys
import torch
torch.set_num_threads(2)
import latentrag
from latentrag.assemble import load_passage_encoder
from latentrag.memory import LiveMemory, Memory
from latentrag.serving.app import create_app
from latentrag.types import Passage
encoder, generator, path = sys.argv[1:]
passage_encoder = load_passage_encoder(encoder)
rag = latentrag.load((encoder, generator), memory=path)
engine = create_app(rag, LiveMemory(Memory.open(path)), name="tiny").state.service.engine
torch.randn(600, 600) @ torch.randn(600, 600)  # starts the threads that a fork loses
for refused in (
    lambda: rag.answer("who wrote emma ?"),
    lambda: rag.score("who wrote emma ?", "emma"),
    lambda: passage_encoder.encode_passages([Passage("a", "b")]),
    lambda: engine.search(rag, "who wrote emma ?", k=1),
):
    if os.fork():
        os.wait()
        continue
    try:
        refused()
    except Exception as error:
        print(error, flush=True)
    os._exit(0)
"""


def test_what_was_loaded_before_a_fork_says_so(pair, filled):
    """To answer, to score, to encode, to serve: it waited for ever."""
    command = [sys.executable, "-W", "ignore", "-c", CODE, *map(str, (*pair, filled))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    answer, score, encode, serve = done.stdout.splitlines()
    for line in (answer, score, encode, serve):
        assert "load it after the fork, or spawn" in line
