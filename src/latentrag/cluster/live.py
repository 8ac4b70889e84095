"""The memory of a cluster by its name: started, asked, exchanged, stopped."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from latentrag.addresses import memory_folder
from latentrag.cluster.calls import Calls, Replica, actor_name
from latentrag.cluster.connection import NAMESPACE, Register, connect, registered
from latentrag.cluster.division import Division
from latentrag.cluster.health import Watch
from latentrag.cluster.shard import About, Place, Shard, packages
from latentrag.cluster.sharded import START_S, ShardedVersion, divided, load
from latentrag.errors import InputError, MemoryStoreError, command
from latentrag.memory import EncoderCard, FilteredMemory
from latentrag.memory.filtered import Filterable
from latentrag.memory.live import Health, Searching

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from latentrag.protocols import QueryEncoder
    from latentrag.types import Passage, SearchResult

FORMAT = 1
"""Of a memory's record."""
NEWS_S = 0.5
"""How often a process looks whether another one has chosen another version."""
THREADS = 16
"""Requests that an actor handles at a time."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a memory was started; ``ShardedMemory.start`` says what each means."""

    name: str
    path: str
    shards: int
    replicas: int
    index: str
    index_folder: str | None
    timeout_s: float
    partial: bool = False

    def check(self) -> None:
        """Raises: InputError for what cannot be."""
        from latentrag.memory.indexes.building import require_choice

        if not _NAME.fullmatch(self.name):
            raise InputError(f"{self.name!r} is no name; needed up to 64 letters and digits, later also . _ -")
        for what, value in (("shards", self.shards), ("replicas", self.replicas)):
            if value < 1:
                raise InputError(f"{what}={value}; needed 1 or more")
        if not 0 < self.timeout_s < float("inf"):
            raise InputError(f"timeout_s={self.timeout_s:g}; needed more than 0 seconds")
        require_choice(self.index)
        if self.index == "flat" and self.index_folder is not None:
            raise InputError("index_folder has no effect on the index flat, which is in RAM; leave it out")


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica of a shard as it is now.

    Attributes:
        shard, replica: counted from 1.
        is_there: whether it answers.
        host: of its node; empty where it does not answer.
        rows: of the served version; None: it has not loaded it, or does not answer.
    """

    shard: int
    replica: int
    is_there: bool
    host: str
    rows: int | None


class ShardedMemory(Filterable[FilteredMemory]):
    """A memory whose shards are actors of a Ray cluster; a ``memory.ServedMemory``, as ``LiveMemory`` is.

    Each call goes to the version that is served when it begins. Whichever process chooses another version (``use``),
    all that ask the memory by its name follow within ``NEWS_S``.
    """

    def __init__(self, settings: Settings, division: Division) -> None:
        """Made by ``start`` and ``open``."""
        self.settings = settings
        self._calls = Calls(settings.name, settings.shards, settings.replicas, settings.timeout_s)
        self._register = Register(settings.name)
        self._now = ShardedVersion(self._calls, division, Path(settings.path), settings.partial)
        self._looked = time.monotonic()
        self._encoders = Searching()
        self._lock = threading.Lock()
        self._watch = Watch(self._calls, self.snapshot, partial=settings.partial)

    @classmethod
    def start(
        cls,
        path: str | Path,
        *,
        name: str | None = None,
        shards: int = 1,
        replicas: int = 1,
        version: int | str | None = "served",
        index: str = "auto",
        index_folder: str | Path | None = None,
        timeout_s: float = 2.0,
        partial: bool = False,
    ) -> Self:
        """Divide a memory among actors, which outlive this process until ``stop``.

        Args:
            path: of the memory's folder, which every node sees under this path.
            name: in the cluster; None: that of the folder, without its ending.
            shards: how many, each with rows of its own.
            replicas: actors that hold the same shard, on several nodes where there are several.
            version: as for ``Memory.open``.
            index: of each shard, as for ``Memory.open``.
            index_folder: of the shards' indexes, on each node's own disk; None: where latentrag keeps what it makes.
            timeout_s: how long a shard may take to answer before another replica is asked.
            partial: search without a shard of which no replica answers; what is found, and each answer, names it in
                ``missing``. False: an error that names it.
        Raises: InputError for options that cannot be; MemoryStoreError if no cluster can be reached, the name is in
            use, a node does not see the memory or has other versions of the packages, or a shard cannot load its rows.
            Nothing is left running then.
        """
        path = memory_folder(path).absolute()
        folder = None if index_folder is None else str(Path(index_folder).expanduser().absolute())
        settings = Settings(name or path.stem, str(path), shards, replicas, index, folder, timeout_s, partial)
        settings.check()
        connect()
        register = Register(settings.name)
        if not register.claim({"format": FORMAT, "settings": asdict(settings), "division": None}):
            raise MemoryStoreError(
                f"a memory named {settings.name} is in the cluster already; stop it with "
                f"{command('cluster', 'down', settings.name)}, or choose another name"
            )
        try:
            calls = Calls(settings.name, shards, replicas, timeout_s)
            _start_actors(settings)
            _check_nodes(calls, settings)
            division = divided(calls, version, None)
            load(calls, division)
            register.write({"format": FORMAT, "settings": asdict(settings), "division": division.as_record()})
        except BaseException:
            _stop(settings)
            raise
        return cls(settings, division)

    @classmethod
    def open(cls, name: str) -> Self:
        """The memory of this name, which ``start`` has started, perhaps in another process.

        Raises: MemoryStoreError if no cluster can be reached, or has no such memory.
        """
        connect()
        settings, division = _read(name)
        if division is None:
            raise MemoryStoreError(
                f"cluster:{name} is being started, or its start was killed; wait, or remove it with "
                f"{command('cluster', 'down', name)}"
            )
        return cls(settings, division)

    def at(self, version: int | str | None) -> ShardedVersion:
        """As ``ShardedVersion.at``, of the version that is served."""
        return self.snapshot().at(version)

    def use(self, version: int | str | None) -> ShardedVersion:
        """Answer from another version from now on, in every process that asks this memory.

        The shards load it first; until then, and if anything fails, the old one is served.

        Args: version: as for ``Memory.open``.
        Returns: the version from before.
        Raises: MemoryStoreError; EncoderMismatchError if it does not fit a query encoder that searches here.
        """
        with self._lock:
            before, after = self._now, self.at(version)
            self._encoders.check(after)
            record = {"format": FORMAT, "settings": asdict(self.settings), "division": after.division.as_record()}
            self._register.write(record)
            self._now, self._looked = after, time.monotonic()
            return before

    def snapshot(self) -> ShardedVersion:
        """The version that is served now; it stays what it is whatever is used later.

        Raises: MemoryStoreError if the memory was stopped; EncoderMismatchError if another process has chosen a
            version that does not fit a query encoder that searches here.
        """
        if time.monotonic() - self._looked < NEWS_S:
            return self._now
        _, division = _read(self.settings.name)
        if division is not None and division.key != self._now.division.key:
            after = ShardedVersion(self._calls, division, self._now.path, self._now.partial)
            self._encoders.check(after)
            self._now = after
        self._looked = time.monotonic()
        return self._now

    def status(self) -> list[ReplicaStatus]:
        """Every replica of every shard. Those that were restarted are asked to load the served version."""
        division = self.snapshot().division
        found = self._calls.every("about", (division.key,), timeout_s=self.settings.timeout_s)
        for replica, about in found.items():
            if isinstance(about, About) and division.key not in about.loaded:
                self._calls.ask_to_load(replica, division)
        return [_status(replica, about, division.key) for replica, about in sorted(found.items())]

    def watched(self) -> AbstractContextManager[None]:
        """As ``memory.ServedMemory.watched``: a thread asks the shards once a second."""
        return self._watch.running()

    def health(self) -> Health:
        """As ``memory.ServedMemory.health``."""
        return self._watch.health()

    def stop(self) -> None:
        """End the actors and give the name back. What lies on the disks stays, the shards' indexes too."""
        _stop(self.settings)

    # As a memory

    @property
    def name(self) -> str:
        """As ``ShardedVersion.name``."""
        return self._now.name

    @property
    def path(self) -> Path:
        """Of the memory, as the nodes see it."""
        return self._now.path

    @property
    def version(self) -> int:
        """Of the version that was served when this process looked last; no other process is asked."""
        return self._now.version

    @property
    def identity(self) -> str:
        """As ``Memory.identity``, of the same version."""
        return self._now.identity

    @property
    def lineage(self) -> str:
        """As ``Memory.lineage``."""
        return self._now.lineage

    @property
    def card(self) -> EncoderCard:
        """As ``Memory.card``, of the same version."""
        return self._now.card

    def __len__(self) -> int:
        return len(self._now)

    def __repr__(self) -> str:
        return f"ShardedMemory({self.name!r}, shards={self.settings.shards}, replicas={self.settings.replicas})"

    def check(self, query_encoder: QueryEncoder) -> None:
        """As ``Memory.check``, also for every version that is used later."""
        self.snapshot().check(query_encoder)
        self._encoders.add(query_encoder)

    def filtered(self) -> FilteredMemory:
        """As ``Filterable.filtered``, of whichever version is served."""
        return FilteredMemory(self)

    def search(self, q: npt.NDArray[np.float32], k: int) -> SearchResult:
        """As ``ShardedVersion.search``."""
        return self.snapshot().search(q, k)

    def passages(self) -> Iterator[Passage]:
        """As ``Memory.passages``."""
        return self.snapshot().passages()

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """As ``Memory.get``."""
        return self.snapshot().get(ids)

    def around(self, ids: Sequence[str], num: int) -> list[tuple[list[Passage], list[Passage]]]:
        """As ``Memory.around``."""
        return self.snapshot().around(ids, num)


def open_memory(address: str, *, version: int | str | None = None) -> ShardedMemory | ShardedVersion:
    """A row of ``addresses.MEMORIES``: "cluster:NAME". Args: version: None: the one that is served, also later."""
    memory = ShardedMemory.open(address.partition(":")[2])
    return memory if version is None else memory.at(version)


def names() -> list[str]:
    """Of all memories in the cluster. Raises: MemoryStoreError if no cluster can be reached."""
    connect()
    return registered()


def stop(name: str) -> None:
    """Stop a memory, also one whose start was killed. Raises: MemoryStoreError if there is none of this name."""
    connect()
    _stop(_read(name)[0])


def _read(name: str) -> tuple[Settings, Division | None]:
    record = Register(name).read()
    if record is None:
        known = ", ".join(registered()) or "none"
        raise MemoryStoreError(
            f"the cluster has no memory named {name!r} (there are: {known}); start one with `latentrag cluster up`"
        )
    if record["format"] != FORMAT:
        raise MemoryStoreError(f"cluster:{name} was started by another version of latentrag; use that one, or stop it")
    division = record["division"]
    return Settings(**record["settings"]), None if division is None else Division.of_record(division)


def _start_actors(settings: Settings) -> None:
    import ray

    shard_actor: Any = ray.remote(Shard)
    nodes = sorted(each["NodeID"] for each in ray.nodes() if each["Alive"] and each["Resources"].get("CPU"))
    for shard in range(settings.shards):
        place = Place(settings.name, settings.path, shard, settings.shards, settings.index, settings.index_folder)
        for replica in range(settings.replicas):
            shard_actor.options(
                name=actor_name(settings.name, (shard, replica)),
                namespace=NAMESPACE,
                lifetime="detached",
                max_restarts=-1,
                max_task_retries=0,
                max_concurrency=THREADS,
                scheduling_strategy=_on(nodes[(shard + replica) % len(nodes)]) if nodes else "SPREAD",
            ).remote(place)


def _on(node: str) -> Any:
    """A node, or another one if it is lost. Ray's own SPREAD may put all replicas of a shard on the same."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=True)


def _check_nodes(calls: Calls, settings: Settings) -> None:
    """Raises: MemoryStoreError unless every actor runs, sees the memory, and has our packages."""
    ours = packages()
    for (shard, _), about in calls.every("about", (), timeout_s=START_S).items():
        which = f"shard {shard + 1} of {settings.shards}"
        if not isinstance(about, About):
            raise MemoryStoreError(
                f"{which} did not start ({about}); see whether the cluster has room for "
                f"{settings.shards * settings.replicas} actors and every node has latentrag[cluster] installed"
            )
        if not about.sees_memory:
            raise MemoryStoreError(
                f"{which} runs on {about.host}, where there is no memory at {settings.path}; mount its folder there "
                "under the same path"
            )
        other = next((name for name in ours if about.packages.get(name) != ours[name]), None)
        if other is not None:
            raise MemoryStoreError(
                f"{which} runs on {about.host}, which has {other} {about.packages.get(other)}, this process has "
                f"{ours[other]}; install the same on every node"
            )


def _status(replica: Replica, about: Any, key: str) -> ReplicaStatus:
    shard, number = replica[0] + 1, replica[1] + 1
    if not isinstance(about, About):
        return ReplicaStatus(shard, number, False, "", None)
    return ReplicaStatus(shard, number, True, about.host, about.loaded.get(key))


def _stop(settings: Settings) -> None:
    import ray

    for shard in range(settings.shards):
        for replica in range(settings.replicas):
            with contextlib.suppress(ValueError):  # it is not there
                name = actor_name(settings.name, (shard, replica))
                ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
    Register(settings.name).remove()
