"""Settings from the environment, and what the names of memories and models mean."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from latentrag.errors import InputError, MemoryStoreError, ModelError
from latentrag.options import DEMO

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Settings:
    """Where latentrag keeps what it fetches and makes."""

    home: Path

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def memories(self) -> Path:
        return self.home / "memories"

    @property
    def wheels(self) -> Path:
        return self.home / "wheels"


def settings() -> Settings:
    """The settings as the environment has them now.

    ``home`` is LATENTRAG_HOME, else $XDG_CACHE_HOME/latentrag, else ~/.cache/latentrag. Nothing is created.

    Raises: InputError where no variable names a folder and the user has no home folder.
    """
    from pydantic_settings import BaseSettings, SettingsConfigDict

    class Environment(BaseSettings):
        model_config = SettingsConfigDict(env_prefix="LATENTRAG_", env_ignore_empty=True)
        home: Path | None = None

    home = Environment().home
    return Settings(home=_expanded(home).absolute() if home else _cache() / "latentrag")


def resolve_memory(name: str | os.PathLike[str]) -> Path:
    """The path of a memory.

    ``"demo"`` is the demo's; every other string, and every Path, is a path, which need not exist yet. The path
    ``./demo`` is a folder of that name.

    Raises: MemoryStoreError if the demo's memory has not been made.
    """
    if name != DEMO:
        return _expanded(Path(name))
    path = settings().memories / "demo.lance"
    if not path.exists():
        raise MemoryStoreError(f"the demo's memory is not at {path}; run `latentrag demo` to make it")
    return path


def resolve_model(name: str | os.PathLike[str]) -> Path | str:
    """The folder of a model, or its id on a model hub.

    ``"demo"`` is the demo's, a path that exists is itself, and a string that looks like ``name`` or
    ``owner/name`` is a hub id.

    Raises: ModelError if the demo's model has not been made, or if a path does not exist.
    """
    if name == DEMO:
        path = settings().models / DEMO
        if not path.exists():
            raise ModelError(f"the demo's model is not at {path}; run `latentrag demo` to make it")
        return path
    path = _expanded(Path(name))
    if path.exists():
        return path
    if isinstance(name, str) and _HUB_ID.fullmatch(name):
        return name
    raise ModelError(f"no model at {name}; give a folder that exists or a hub id such as owner/name")


def _cache() -> Path:
    """The user's cache folder. The XDG specification says to ignore a path that is not absolute."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else _expanded(Path("~/.cache"))


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise InputError(f"no home folder is known for {path}; set LATENTRAG_HOME to a folder") from None
