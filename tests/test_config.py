"""Where things are kept, and what names mean."""

from pathlib import Path

import pytest

from latentrag.config import resolve_memory, resolve_model, settings
from latentrag.errors import InputError, MemoryStoreError, ModelError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No variable set, a home folder and a working folder that are empty."""
    for name in ("LATENTRAG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)


def test_home_is_found_in_this_order(tmp_path, monkeypatch):
    assert settings().home == tmp_path / "user/.cache/latentrag"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/caches")
    assert settings().home == Path("/var/caches/latentrag")
    monkeypatch.setenv("LATENTRAG_HOME", "~/rag")
    assert settings().home == tmp_path / "user/rag"


@pytest.mark.parametrize(("name", "value"), [("LATENTRAG_HOME", ""), ("XDG_CACHE_HOME", ""), ("XDG_CACHE_HOME", "x")])
def test_an_empty_variable_or_a_relative_cache_is_ignored(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert settings().home == tmp_path / "user/.cache/latentrag"


def test_a_relative_home_does_not_move_with_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTRAG_HOME", "rag")
    assert settings().home == tmp_path / "rag"


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(InputError, match="set LATENTRAG_HOME"):
        settings()


def test_the_folders_of_home(home):
    found = settings()
    assert (found.models, found.memories, found.wheels) == (home / "models", home / "memories", home / "wheels")
    assert not home.exists()  # asking makes nothing


def test_demo_is_the_demo_once_it_has_been_made(home):
    with pytest.raises(ModelError, match="latentrag demo"):
        resolve_model("demo")
    with pytest.raises(MemoryStoreError, match="latentrag demo"):
        resolve_memory("demo")
    (home / "models/demo").mkdir(parents=True)
    (home / "memories/demo.lance").mkdir(parents=True)
    assert resolve_model("demo") == home / "models/demo"
    assert resolve_memory("demo") == home / "memories/demo.lance"


@pytest.mark.parametrize("name", ["./demo", Path("demo")])
def test_a_path_reaches_a_folder_that_is_called_demo(home, tmp_path, name):
    (tmp_path / "demo").mkdir()
    assert resolve_model(name) == Path("demo")
    assert resolve_memory(name) == Path("demo")


def test_a_memory_may_be_one_that_is_yet_to_be_made(tmp_path):
    assert resolve_memory("new.lance") == Path("new.lance")
    assert resolve_memory("~/new.lance") == tmp_path / "user/new.lance"


def test_a_model_is_a_folder_if_there_is_one_and_else_a_hub_id(tmp_path):
    assert resolve_model("facebook/bart-base") == "facebook/bart-base"
    assert resolve_model("t5-small") == "t5-small"
    (tmp_path / "facebook/bart-base").mkdir(parents=True)
    assert resolve_model("facebook/bart-base") == Path("facebook/bart-base")


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "~/missing", "a/b/c", "a b", Path("missing")])
def test_what_can_only_be_a_path_must_exist(name):
    with pytest.raises(ModelError, match="folder that exists or a hub id"):
        resolve_model(name)
