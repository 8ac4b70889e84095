"""What every test runs under: one thread a worker, no network, checked shapes, the same seed."""

import os
import signal

# Who starts this in the background has it ignore Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch, faiss and transformers read them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # workers would fight for the cores
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis
import jaxtyping
import pytest

# A loaded machine is slow, not wrong.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")
jaxtyping.install_import_hook(["latentrag.marginal"], "beartype.beartype")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds torch's global generator, which draws the random weights of tiny models."""
    import torch

    torch.manual_seed(0)
    return 0


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty LATENTRAG_HOME."""
    monkeypatch.setenv("LATENTRAG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
