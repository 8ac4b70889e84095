"""What the addresses of memories and models mean, and where latentrag keeps what it fetches and makes.

An address is ``demo``, a path, for a model also a hub id, or one with a scheme: "name:rest", or for a generator a file
with an ending of its own, ".name". Schemes are rows of the tables here; other packages add theirs by entry points.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from latentrag.errors import InputError, MemoryStoreError, ModelError
from latentrag.options import DEMO, DEMOS
from latentrag.registry import Table

if TYPE_CHECKING:
    from latentrag.protocols import Memory, SavableGenerator

T = TypeVar("T")

MEMORIES: Table[Callable[..., Memory]] = Table(
    "scheme of memories", {"cluster": "latentrag.cluster.live:open_memory"}, group="latentrag.memories"
)
"""Scheme → function from an address and ``version`` to an open memory."""
MODELS: Table[Callable[..., Any]] = Table("scheme of models", {}, group="latentrag.models")
"""Scheme → function from an address and ``place.Places`` to ``assemble.parts.Parts``."""
GENERATORS: Table[Callable[..., SavableGenerator]] = Table(
    "scheme of generators",
    {".gguf": "latentrag.generator.llama_cpp:open_gguf"},
    group="latentrag.generators",
)
"""Scheme or ending → function from an address and ``place.Place``, and settings by name if it takes them, to a
generator."""

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_SCHEME = re.compile(r"([a-z][a-z0-9+-]+):(//)?", re.ASCII)


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
    return Home(_expanded(Path(named)).absolute() if named else _cache() / "latentrag")


def opener(address: object, table: Table[Callable[..., T]]) -> Callable[..., T] | None:
    """What opens an address by its scheme or ending; None for all others, which are names and paths.

    Raises: InputError for "scheme://…" where there is no such scheme.
    """
    if not isinstance(address, str | os.PathLike):
        return None
    scheme = _SCHEME.match(address) if isinstance(address, str) else None
    if scheme is not None and scheme[1] in table:
        return table[scheme[1]]
    if scheme is not None and scheme[2] and not Path(address).exists():
        known = ", ".join(["a path", *(f"{name}:…" for name in table if not name.startswith("."))])
        raise InputError(f"{address}: nothing here opens {scheme[1]}://; needed {known}")
    ending = Path(address).suffix
    return table[ending] if table is GENERATORS and ending and ending in table else None


def memory_path(address: str | os.PathLike[str]) -> Path:
    """The path of a memory that is a folder.

    ``"demo"`` and ``"good"`` are the demos'; every other string, and every Path, is a path, which need not exist yet.
    The path ``./demo`` is a folder of that name.

    Raises: MemoryStoreError if the demo's memory has not been made; InputError for an address with a scheme.
    """
    if opener(address, MEMORIES) is not None:
        raise InputError(f"{address} is not a folder, and only a memory in a folder can be used so; name its path")
    if address not in DEMOS:
        return _expanded(Path(address))
    path = home().memories / f"{address}.lance"
    if not path.exists():
        raise MemoryStoreError(f"the demo's memory is not at {path}; run {_making(address)} to make it")
    return path


def memory_for(memory: T, model: object) -> T | str:
    """The address of a memory as it is meant beside a model: ``"demo"`` is that of the demo whose model it is."""
    return model if memory == DEMO and isinstance(model, str) and model in DEMOS else memory


def model_place(address: str | os.PathLike[str]) -> Path | str:
    """The folder of a model, or its id on a model hub.

    ``"demo"`` and ``"good"`` are the demos', a path that exists is itself, and a string that looks like ``name`` or
    ``owner/name`` is a hub id.

    An address with a scheme, and a generator with an ending of its own, stay as they are.

    Raises: ModelError if the demo's model has not been made, or if a path does not exist; InputError for an unknown
        scheme.
    """
    if opener(address, MODELS) is not None or opener(address, GENERATORS) is not None:
        return str(address)
    if address in DEMOS:
        path = home().models / str(address)
        if not path.exists():
            raise ModelError(f"the demo's model is not at {path}; run {_making(address)} to make it")
        return path
    path = _expanded(Path(address))
    if path.exists():
        return path
    if isinstance(address, str) and _HUB_ID.fullmatch(address):
        return address
    raise ModelError(f"no model at {address}; give a folder that exists or a hub id such as owner/name")


def _making(demo: object) -> str:
    return "`latentrag demo`" if demo == DEMO else f"`latentrag demo --model {demo}`"


def _cache() -> Path:
    """The user's cache folder. The XDG specification says to ignore a path that is not absolute."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else _expanded(Path("~/.cache"))


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise InputError(f"no home folder is known for {path}; set LATENTRAG_HOME to a folder") from None
