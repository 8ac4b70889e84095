"""A tiny real model on disk, a memory made by `index add`, and a way to run commands."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from latentrag.cli.main import app
from tests import tiny
from tests.encoder.tiny import write_sentence_encoder

DOCUMENTS = {
    "paris": "Paris is the capital city of France.",
    "rome": "Rome is the capital city of Italy.",
    "fidelio": "Fidelio is an opera. Beethoven wrote Fidelio.",
    "emma": "Emma is a novel. Austen wrote Emma.",
}
QUESTION = "Who wrote the opera Fidelio?"


@dataclass(frozen=True)
class Ran:
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    def error(self) -> str:
        """The one line that a user's mistake costs."""
        assert self.code == 2
        assert self.stdout == ""
        (line,) = self.stderr.splitlines()
        assert line.startswith("error: ")
        return line


def cli(*arguments: object, stdin: str | bytes | None = None) -> Ran:
    """Runs a command in this process; a bug in it comes through as the exception that it is."""
    result = CliRunner().invoke(app(), [str(each) for each in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def change_weights(folder: Path) -> None:
    """One bit of a model's weights, behind the back of size and time."""
    path = folder / "model.safetensors"
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()  # a model that is loaded may still be mapped from it
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "encoder"
    return write_sentence_encoder(folder, head=["Normalize"], max_seq_length=None, positions=512)


@pytest.fixture(scope="session")
def generator(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "generator"
    tiny.save_tokenizer(folder, end=False)
    tiny.save_llama(folder)
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder of text files."""
    folder = tmp_path_factory.mktemp("files") / "notes"
    folder.mkdir()
    for name, text in DOCUMENTS.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def memory(tmp_path_factory, encoder, files) -> Path:
    """Not to be changed: tests share it."""
    path = tmp_path_factory.mktemp("memories") / "notes.lance"
    assert cli("index", "add", path, files, "--encoder", encoder).code == 0
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory, encoder, generator, memory) -> Path:
    """The folder that ``latentrag.save`` writes. Not to be changed."""
    import latentrag

    rag = latentrag.load((encoder, generator), memory=memory, k=3)
    rag.defaults = latentrag.DecodingOptions(num_beams=3, max_tokens=5)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    latentrag.save(rag, folder)
    return folder


@pytest.fixture
def ask(model, memory) -> Callable[..., Ran]:
    def run(*arguments: object) -> Ran:
        return cli("ask", *arguments, "-m", model, "-i", memory)

    return run


def program(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs a command as a process of its own, as users do; ``options`` are those of ``subprocess.run``."""
    options["env"] = {**os.environ, **options.get("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, "-m", "latentrag", *map(str, arguments)]
    done: Any = subprocess.run(command, check=False, **options)
    return done
