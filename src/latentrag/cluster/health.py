"""What a server knows of its shards without asking them: a thread looks again and again, probes read what it saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from latentrag.cluster.calls import Calls, Replica
from latentrag.cluster.shard import About
from latentrag.memory.live import Health, ShardHealth

if TYPE_CHECKING:
    from latentrag.cluster.sharded import ShardedVersion

LOOK_S = 1.0
"""Between two looks."""
STALE_S = 15.0
"""How old a look may become before the cluster counts as not there; so long, too, an actor that is too busy to answer
counts as what it was."""


class Watch:
    """Looks at the replicas of all shards while it is running.

    Args:
        snapshot: the version that is served.
        partial: whether questions are answered although shards are missing.
    """

    def __init__(self, calls: Calls, snapshot: Callable[[], ShardedVersion], *, partial: bool = False) -> None:
        self._calls, self._snapshot, self._partial = calls, snapshot, partial
        self._seen: dict[Replica, tuple[float, About]] = {}
        self._last: tuple[float, Health] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within: it looks every ``LOOK_S``. A look that hangs holds nobody up."""
        stop = threading.Event()
        threading.Thread(target=self._run, args=(stop,), name="latentrag-shards", daemon=True).start()
        try:
            yield
        finally:
            stop.set()

    def health(self) -> Health:
        """As it was at the last look."""
        if self._last is None:
            return Health("the shards have not been asked yet")
        at, health = self._last
        age = time.monotonic() - at
        return health if age < STALE_S else health._replace(problem=f"the cluster has not answered for {age:.0f} s")

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.look()
            stop.wait(LOOK_S)

    def look(self) -> None:
        """Ask all replicas, and those that do not hold the served version to load it."""
        try:
            health = self._looked()
        except Exception as error:  # noqa: BLE001  whatever Ray says, the next look may succeed
            health = Health(str(error).strip().partition("\n")[0] or type(error).__name__)
        self._last = time.monotonic(), health

    def _looked(self) -> Health:
        version = self._snapshot()
        found = self._about(version.division.key)
        for replica, about in found.items():
            if version.division.key not in about.loaded:
                self._calls.ask_to_load(replica, version.division)
        shards = tuple(
            self._of_shard(shard, rows, version.division.key, found) for shard, rows in enumerate(version.division.rows)
        )
        missing = [each for each in shards if each.rows and not each.ready]
        if not missing or (self._partial and any(each.rows and each.ready for each in shards)):
            return Health(None, shards)
        which = ", ".join(self._calls.named(each.shard - 1) for each in missing)
        return Health(f"no replica of {which} holds version {version.version}", shards)

    def _about(self, key: str) -> Mapping[Replica, About]:
        """Of the replicas that are there."""
        now = time.monotonic()
        for replica, about in self._calls.every("about", (key,), timeout_s=self._calls.timeout_s).items():
            if isinstance(about, About):
                self._seen[replica] = now, about
            elif not isinstance(about, TimeoutError):
                self._seen.pop(replica, None)
        return {replica: about for replica, (at, about) in self._seen.items() if now - at < STALE_S}

    def _of_shard(self, shard: int, rows: int, key: str, found: Mapping[Replica, Any]) -> ShardHealth:
        there = [about for (of_shard, _), about in found.items() if of_shard == shard]
        return ShardHealth(
            shard=shard + 1,
            rows=rows,
            replicas=self._calls.num_replicas,
            there=len(there),
            ready=sum(key in about.loaded for about in there),
            failed_tries=self._calls.num_failed[shard],
            search_seconds=self._calls.search_s.get(shard),
        )
