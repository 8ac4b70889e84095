"""What the README tells users of the server to type does what it says: a tiny model takes the demo's place."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentrag.assemble import live_memory, load, load_passage_encoder
from latentrag.memory import Memory
from latentrag.options import DecodingOptions
from latentrag.serving.app import create_app
from latentrag.types import Passage
from tests.cli.conftest import DOCUMENTS
from tests.encoder.tiny import write_sentence_encoder
from tests.serving.conftest import PATIENCE_S, Served, serving

README = Path(__file__).parents[2] / "README.md"
WRITTEN_URL = "http://127.0.0.1:8000"


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)^## ", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def commands() -> list[str]:
    return re.findall(r"^    \$ (curl .*)$", section("Serve"), re.MULTILINE)


def programs() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", section("Serve"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def as_demo(tmp_path_factory, generator) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("readme")
    # The letters of a name are a token each to the tiny encoder, which must read all of them.
    encoder = write_sentence_encoder(folder / "encoder", head=["Normalize"], max_seq_length=24)
    passage_encoder = load_passage_encoder(encoder)
    found = [Passage(name, text, title=name) for name, text in DOCUMENTS.items()]
    Memory.create(folder / "notes.lance", passage_encoder).add(found, passage_encoder)
    live = live_memory(folder / "notes.lance")
    model = load((encoder, generator), memory=live, k=3)
    model.defaults = DecodingOptions(num_beams=3, min_tokens=2, max_tokens=5)
    with serving(create_app(model, live, name="demo")) as running:
        yield running


def test_they_are_found() -> None:
    assert (len(commands()), len(programs())) == (2, 1)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("command", commands())
def test_curl(as_demo, command) -> None:
    words = shlex.split(command.replace(WRITTEN_URL, as_demo.url))
    # --json is short for these, which an older curl has too.
    place = words.index("--json")
    words[place : place + 2] = ["--data", words[place + 1], "--header", "Content-Type: application/json"]
    words += ["--silent", "--show-error", "--fail-with-body", "--max-time", str(PATIENCE_S)]
    done = subprocess.run(words, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = done.stdout
    question = json.loads(words[place + 1])["question"]
    if "/stream" in command:
        assert shown.startswith("event: sources\n")
        last = shown.rstrip().rpartition("data: ")[2]
        assert json.loads(last)["question"] == question
    else:
        assert shown.startswith(f'{{"question":{json.dumps(question)},"answer":')


@pytest.mark.parametrize("program", programs())
def test_the_python_example(as_demo, program, capsys) -> None:
    exec(compile(program.replace(WRITTEN_URL, as_demo.url), str(README), "exec"), {})  # noqa: S102  it is ours
    lines = capsys.readouterr().out.splitlines()
    body = {"question": "Who keeps the keys of the Petrel?"}
    first = as_demo.post("/v1/answer", {**body, "k": 3, "variant": "token"}).json()
    titles = {source["title"] for source in first["sources"]}
    assert lines[0] == first["answer"]
    assert all(any(line.startswith(title) for title in titles) for line in lines[1:-2])
    log_prob, posterior = map(float, lines[-2].split())
    assert log_prob == pytest.approx(first["log_prob"], abs=1e-5)
    assert posterior == pytest.approx(first["sources"][0]["posterior"], abs=1e-5)
    assert lines[-1] == as_demo.post("/v1/answer", body).json()["answer"]
