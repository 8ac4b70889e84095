"""What the addresses of memories and models mean, and where latentrag keeps what it fetches and makes.

An address is ``demo``, a path, for a model also a hub id, or one with a scheme: "name:rest", or for a generator a file
with an ending of its own, ".name". Schemes are rows of the tables here; other packages add theirs by entry points.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from latentrag.errors import InputError, MemoryStoreError, ModelError
from latentrag.home import expanded
from latentrag.home import home as home  # noqa: PLC0414  others know it from here
from latentrag.options import DEMO, DEMOS
from latentrag.registry import Table

if TYPE_CHECKING:
    from latentrag.memory.object_path import Folder, ObjectPath
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
OBJECTS = "s3://"
"""Addresses of memories in an object store."""
_SCHEME = re.compile(r"([a-z][a-z0-9+-]+):(//)?", re.ASCII)


def opener(address: object, table: Table[Callable[..., T]]) -> Callable[..., T] | None:
    """What opens an address by its scheme or ending; None for all others, which are names and paths.

    Raises: InputError for "scheme://…" where there is no such scheme.
    """
    if not isinstance(address, str | os.PathLike):
        return None
    if table is MEMORIES and is_object(address):
        return None
    scheme = _SCHEME.match(address) if isinstance(address, str) else None
    if scheme is not None and scheme[1] in table:
        return table[scheme[1]]
    if scheme is not None and scheme[2] and not Path(address).exists():
        objects = [f"{OBJECTS}…"] if table is MEMORIES else []
        known = ", ".join(["a path", *objects, *(f"{name}:…" for name in table if not name.startswith("."))])
        raise InputError(f"{address}: nothing here opens {scheme[1]}://; needed {known}")
    ending = Path(address).suffix
    return table[ending] if table is GENERATORS and ending and ending in table else None


def memory_path(address: str | os.PathLike[str] | ObjectPath) -> Folder:
    """The path of a memory that is a folder, or its place in an object store.

    ``"demo"`` and ``"good"`` are the demos'; every other string, and every Path, is a path, which need not exist yet.
    The path ``./demo`` is a folder of that name. ``s3://BUCKET/NAME`` is in an object store.

    Raises: MemoryStoreError if the demo's memory has not been made; InputError for an address with a scheme.
    """
    if not isinstance(address, str | os.PathLike):
        return address
    if opener(address, MEMORIES) is not None:
        raise InputError(f"{address} is not a folder, and only a memory in a folder can be used so; name its path")
    if is_object(address):
        from latentrag.memory.object_path import ObjectPath

        return ObjectPath.parse(os.fspath(address))
    if address not in DEMOS:
        return expanded(Path(address))
    path = home().memories / f"{address}.lance"
    if not path.exists():
        raise MemoryStoreError(f"the demo's memory is not at {path}; run {_making(address)} to make it")
    return path


def memory_folder(address: str | os.PathLike[str]) -> Path:
    """As ``memory_path``, where nothing but a folder will do. Raises: InputError for an address in an object store."""
    path = memory_path(address)
    if not isinstance(path, Path):
        raise InputError(f"{address} is in an object store, needed a memory in a folder here; give its path")
    return path


def is_object(address: object) -> bool:
    """Whether an address is that of a memory in an object store."""
    return isinstance(address, str) and address.startswith(OBJECTS)


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
    path = expanded(Path(address))
    if path.exists():
        return path
    if isinstance(address, str) and _HUB_ID.fullmatch(address):
        return address
    raise ModelError(f"no model at {address}; give a folder that exists or a hub id such as owner/name")


def _making(demo: object) -> str:
    return "`latentrag demo`" if demo == DEMO else f"`latentrag demo --model {demo}`"
