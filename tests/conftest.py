"""What every test runs under: one thread a worker, no network, checked shapes, the same seed."""

import os
import signal

# Who starts this in the background has it ignore Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch, faiss and transformers read them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # workers would fight for the cores
if "LATENTRAG_TEST_DEVICE" not in os.environ:  # what the tests expect are the CPU's numbers
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis
import jaxtyping
import pytest

# A loaded machine is slow, not wrong.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.register_profile("anew", deadline=None, database=None)  # no example of earlier runs
hypothesis.settings.load_profile("house")
jaxtyping.install_import_hook(["latentrag.marginal"], "beartype.beartype")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds torch's global generator, which draws the random weights of tiny models."""
    import torch

    from tests import fake_device

    if "LATENTRAG_TEST_DEVICE" not in os.environ:
        fake_device.install()  # before the first backward pass, at which autograd counts the devices
    torch.manual_seed(0)
    return 0


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty LATENTRAG_HOME."""
    monkeypatch.setenv("LATENTRAG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def pair(tmp_path):
    """Folders of a sentence encoder and of a causal generator, with random weights."""
    return write_pair(tmp_path)


@pytest.fixture
def filled(pair, tmp_path):
    """The path of a memory of four passages, encoded by the encoder of ``pair``."""
    return fill(tmp_path / "memory.lance", pair[0])


def write_pair(folder):
    """What ``pair`` is."""
    from tests import tiny
    from tests.encoder.tiny import write_sentence_encoder

    encoder = write_sentence_encoder(folder / "encoder", head=["Normalize"])
    generator = folder / "generator"
    tiny.save_tokenizer(generator, end=False)
    tiny.save_llama(generator)
    return encoder, generator


def fill(path, encoder_folder):
    """What ``filled`` is."""
    from latentrag.assemble import load_passage_encoder
    from latentrag.memory import Memory
    from tests.test_assemble import PASSAGES

    encoder = load_passage_encoder(encoder_folder)
    Memory.create(path, encoder).add(PASSAGES, encoder)
    return path
