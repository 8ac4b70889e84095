"""Where things are kept, and what names mean."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import latentrag
from latentrag import addresses
from latentrag.addresses import home as home_folder
from latentrag.addresses import memory_path, model_place
from latentrag.assemble import load_passage_encoder
from latentrag.assemble.memories import memory_at
from latentrag.assemble.parts import _generator, open_parts
from latentrag.errors import InputError, MemoryStoreError, ModelError
from latentrag.memory import Memory
from latentrag.registry import Table
from tests.cli.conftest import QUESTION, cli, encoder, files, generator, memory, model
from tests.toy import ToyMemory

__all__ = ["encoder", "files", "generator", "memory", "model"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No variable set, a home folder and a working folder that are empty."""
    for name in ("LATENTRAG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)


def test_home_is_found_in_this_order(tmp_path, monkeypatch):
    assert home_folder().path == tmp_path / "user/.cache/latentrag"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/caches")
    assert home_folder().path == Path("/var/caches/latentrag")
    monkeypatch.setenv("LATENTRAG_HOME", "~/rag")
    assert home_folder().path == tmp_path / "user/rag"


@pytest.mark.parametrize(("name", "value"), [("LATENTRAG_HOME", ""), ("XDG_CACHE_HOME", ""), ("XDG_CACHE_HOME", "x")])
def test_an_empty_variable_or_a_relative_cache_is_ignored(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert home_folder().path == tmp_path / "user/.cache/latentrag"


def test_a_relative_home_does_not_move_with_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTRAG_HOME", "rag")
    assert home_folder().path == tmp_path / "rag"


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(InputError, match="set LATENTRAG_HOME"):
        home_folder()


def test_the_folders_of_home(home):
    found = home_folder()
    assert (found.models, found.memories, found.wheels) == (home / "models", home / "memories", home / "wheels")
    assert not home.exists()  # asking makes nothing


def test_demo_is_the_demo_once_it_has_been_made(home):
    with pytest.raises(ModelError, match="latentrag demo"):
        model_place("demo")
    with pytest.raises(MemoryStoreError, match="latentrag demo"):
        memory_path("demo")
    (home / "models/demo").mkdir(parents=True)
    (home / "memories/demo.lance").mkdir(parents=True)
    assert model_place("demo") == home / "models/demo"
    assert memory_path("demo") == home / "memories/demo.lance"


@pytest.mark.parametrize("name", ["./demo", Path("demo")])
def test_a_path_reaches_a_folder_that_is_called_demo(home, tmp_path, name):
    (tmp_path / "demo").mkdir()
    assert model_place(name) == Path("demo")
    assert memory_path(name) == Path("demo")


def test_a_memory_may_be_one_that_is_yet_to_be_made(tmp_path):
    assert memory_path("new.lance") == Path("new.lance")
    assert memory_path("~/new.lance") == tmp_path / "user/new.lance"


def test_a_model_is_a_folder_if_there_is_one_and_else_a_hub_id(tmp_path):
    assert model_place("facebook/bart-base") == "facebook/bart-base"
    assert model_place("t5-small") == "t5-small"
    (tmp_path / "facebook/bart-base").mkdir(parents=True)
    assert model_place("facebook/bart-base") == Path("facebook/bart-base")


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "~/missing", "a/b/c", "a b", Path("missing")])
def test_what_can_only_be_a_path_must_exist(name):
    with pytest.raises(ModelError, match="folder that exists or a hub id"):
        model_place(name)


@pytest.fixture
def toy(memory, model) -> Iterator[ToyMemory]:
    """Rows of the three tables for the scheme ``toy:`` and the ending ``.toy``, as another package would add them."""
    passages = list(Memory.open(memory).passages())
    vectors = load_passage_encoder(model).encode_passages(passages).half().float().numpy()  # as the table has them
    kept = ToyMemory(passages, vectors, version=3)
    asked: list[object] = []

    def open_memory(address: str, *, version: int | str | None) -> ToyMemory:
        asked.append(version)
        assert address == "toy:notes"
        return kept

    rows: tuple[tuple[Table[Any], str, object], ...] = (
        (addresses.MEMORIES, "toy", open_memory),
        (addresses.MODELS, "toy", lambda _, places: open_parts(model, places)),
        (addresses.GENERATORS, ".toy", lambda _, place: _generator(model / "generator", place)),
    )
    for table, name, row in rows:
        table.add(name, row)
    yield kept
    for table, name, _ in rows:
        table.remove(name)


def test_another_kind_of_memory_and_of_model_by_their_schemes(toy, memory, model, tmp_path) -> None:
    usual = latentrag.load(model, memory=memory).answer(QUESTION)
    parts = (model / "query_encoder", tmp_path / "model.toy")  # neither is a file there
    for source in ("toy:model", parts):
        for where in ("toy:notes", toy):
            answer = latentrag.load(source, memory=where, k=3, variant="sequence").answer(
                QUESTION, num_beams=3, max_tokens=5
            )
            assert (answer.text, answer.memory_version) == (usual.text, 3)
            assert answer.log_prob == pytest.approx(usual.log_prob, abs=1e-5)
    done = cli("ask", QUESTION, "-m", "toy:model", "-i", "toy:notes", "--json")
    assert (done.code, done.json["answer"], done.json["memory_version"]) == (0, usual.text, 3)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": QUESTION, "answer": "Beethoven"}) + "\n")
    assert cli("eval", data, "-m", "toy:model", "-i", "toy:notes", "--json").code == 0


def test_what_needs_a_folder_says_so(toy, files) -> None:
    assert "toy:notes is not a folder" in cli("index", "add", "toy:notes", files).error()
    assert "toy:notes is not a folder" in cli("index", "log", "toy:notes").error()
    with pytest.raises(InputError, match="version=2 of a ToyMemory that is open"):
        memory_at(toy, version=2)


@pytest.mark.parametrize("address", ["gs://bucket/notes.lance", "clouds://x"])
def test_a_scheme_that_nothing_opens_is_no_path(address, model) -> None:
    error = cli("ask", QUESTION, "-m", model, "-i", address).error()
    assert f"{address}: nothing here opens {address.partition(':')[0]}://; needed a path" in error
    with pytest.raises(InputError, match="nothing here opens"):
        model_place(address)


def test_a_path_may_hold_a_colon(tmp_path, monkeypatch) -> None:
    (tmp_path / "odd:name").mkdir()
    assert memory_path("odd:name") == Path("odd:name")
    assert model_place("odd:name") == Path("odd:name")
