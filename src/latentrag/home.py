"""Where latentrag keeps what it fetches and makes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from latentrag.errors import InputError


@dataclass(frozen=True, slots=True)
class Home:
    """Where latentrag keeps what it fetches and makes."""

    path: Path

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def memories(self) -> Path:
        return self.path / "memories"

    @property
    def wheels(self) -> Path:
        return self.path / "wheels"


def home() -> Home:
    """LATENTRAG_HOME, else $XDG_CACHE_HOME/latentrag, else ~/.cache/latentrag. Nothing is created.

    Raises: InputError where no variable names a folder and the user has no home folder.
    """
    named = os.environ.get("LATENTRAG_HOME", "")
    return Home(expanded(Path(named)).absolute() if named else _cache() / "latentrag")


def _cache() -> Path:
    """The user's cache folder. The XDG specification says to ignore a path that is not absolute."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else expanded(Path("~/.cache"))


def expanded(path: Path) -> Path:
    """The path with the user's home folder for "~". Raises: InputError where there is none."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise InputError(f"no home folder is known for {path}; set LATENTRAG_HOME to a folder") from None
