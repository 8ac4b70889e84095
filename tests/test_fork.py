"""Processes that are forked after a model was loaded, and those that are spawned."""

import multiprocessing
import os
import subprocess
import sys

import pytest

QUESTION = "who wrote emma ?"
CODE = """
import os, sys
import torch
torch.set_num_threads(2)
import faiss
faiss.omp_set_num_threads(2)
import latentrag
from latentrag.assemble import load_passage_encoder
from latentrag.memory import LiveMemory, Memory
from latentrag.serving.app import create_app
from latentrag.types import Passage
encoder, generator, path = sys.argv[1:]
passage_encoder = load_passage_encoder(encoder)
memory = Memory.open(path)
rag = latentrag.load((encoder, generator), memory=memory, k=1)
engine = create_app(rag, LiveMemory(memory), name="tiny").state.service.engine
rag.answer("who wrote emma ?")
torch.randn(600, 600) @ torch.randn(600, 600)  # starts the threads that a fork loses
q = torch.randn(64, memory.card.dimension).numpy()
memory.search(q, 1)
for refused in (
    lambda: rag.answer("who wrote emma ?"),
    lambda: rag.score("who wrote emma ?", "emma"),
    lambda: passage_encoder.encode_passages([Passage("a", "b")]),
    lambda: engine.search(rag, "who wrote emma ?", k=1),
    lambda: load_passage_encoder(encoder),
    lambda: latentrag.load((encoder, generator), memory=path),
    lambda: Memory.open(path),
    lambda: Memory.create(path + ".new", passage_encoder),
    lambda: memory.search(q, 1),
    lambda: next(iter(memory.passages())),
    lambda: memory.delete(["a"]),
    lambda: memory.log(),
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_what_was_loaded_before_a_fork_says_so(pair, filled):
    """To answer, to score, to encode, to serve, to load again, to open, to search: it waited for ever."""
    command = [sys.executable, "-W", "ignore", "-c", CODE, *map(str, (*pair, filled))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    for line in lines:
        assert "load it after the fork, or spawn" in line


def answer(parts, memory):
    """Load a model, and answer with it."""
    import torch

    import latentrag

    torch.set_num_threads(2)
    answer = latentrag.load(parts, memory=memory, k=1).answer(QUESTION)
    return answer.text, answer.log_prob


def test_a_spawned_process_loads_and_answers_as_its_parent_does(pair, filled):
    """Although the parent has loaded and computed already."""
    expected = answer(pair, filled)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(answer, (pair, filled)) == expected
