"""Calls to the actors of shards: each try has a time limit, and where one fails another replica is asked.

Ray repeats no call of ours (max_task_retries=0): it would wait for an actor that restarts, and asks no other one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from latentrag.cluster.connection import NAMESPACE
from latentrag.cluster.division import Division
from latentrag.cluster.shard import About, NotLoaded, Refused
from latentrag.errors import InputError, MemoryStoreError, UnavailableError, UnknownVersionError, command

if TYPE_CHECKING:
    import ray

RESTS_S = 5.0
"""How long a replica that failed is asked after the others."""

Replica = tuple[int, int]
"""Numbers of a shard and of a replica, from 0."""


def actor_name(name: str, replica: Replica) -> str:
    """Of the actor that is this replica."""
    return f"{name}/shard-{replica[0] + 1}/replica-{replica[1] + 1}"


class Replies(NamedTuple):
    """Answers by shard, and of each shard without one, why."""

    answers: dict[int, Any]
    why_missing: dict[int, str]


@dataclass(slots=True, eq=False)
class Calls:
    """Safe to use from several threads.

    Attributes:
        name: of the memory in the cluster.
        timeout_s: the limit of a try.
        num_failed: tries that failed, by shard.
        search_s: what the last search of each shard took it.
    """

    name: str
    num_shards: int
    num_replicas: int
    timeout_s: float
    num_failed: Counter[int] = field(default_factory=Counter)
    search_s: dict[int, float] = field(default_factory=dict)
    _handles: dict[Replica, Any] = field(default_factory=dict)
    _failed: dict[Replica, float] = field(default_factory=dict)
    _loading: dict[tuple[Replica, str], Any] = field(default_factory=dict)
    _turns: Counter[tuple[str, int]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def each(self, method: str, arguments: Mapping[int, tuple[Any, ...]], division: Division) -> dict[int, Any]:
        """An answer of each of these shards. Args: as for ``some``.

        Raises: UnavailableError that names a shard of which no replica answers in time; what a shard refuses.
        """
        replies, why = self.some(method, arguments, division)
        self.require(why)
        return replies

    def some(self, method: str, arguments: Mapping[int, tuple[Any, ...]], division: Division) -> Replies:
        """An answer of each of these shards, from one of its replicas, as far as they answer in time.

        Args:
            arguments: shard → what the method gets.
            division: what a replica is asked to load that does not hold it.
        Raises: what a shard refuses.
        """
        replies: dict[int, Any] = {}
        why: dict[int, str] = {}
        orders = {shard: self._order(shard, self._turn(method, shard)) for shard in arguments}
        for turn in range(self.num_replicas):
            asked = [orders[shard][turn] for shard in arguments if shard not in replies]
            if not asked:
                break
            tried = self._tried(method, {each: arguments[each[0]] for each in asked}, limit_s=self.timeout_s)
            for replica, reply in tried.items():
                problem = self._problem(replica, reply, division)
                if problem is None:
                    replies[replica[0]] = reply
                else:
                    why[replica[0]] = problem
        return Replies(replies, {shard: why[shard] for shard in arguments if shard not in replies})

    def any(self, method: str, arguments: tuple[Any, ...], division: Division) -> Any:
        """An answer of whichever shard. Raises: as ``each``, if none of them answers."""
        start = self._turn(method, -1)
        for turn in range(self.num_shards):
            shard = (start + turn) % self.num_shards
            try:
                return self.each(method, {shard: arguments}, division)[shard]
            except MemoryStoreError:
                if turn == self.num_shards - 1:
                    raise
        raise AssertionError("there is no shard")

    def every(self, method: str, arguments: tuple[Any, ...], *, timeout_s: float) -> dict[Replica, Any]:
        """An answer of each replica of each shard; an exception of Ray or ``TimeoutError`` in place of one that does
        not answer."""
        replicas = [(shard, each) for shard in range(self.num_shards) for each in range(self.num_replicas)]
        return self._tried(method, dict.fromkeys(replicas, arguments), limit_s=timeout_s)

    def load(self, division: Division, *, timeout_s: float) -> dict[Replica, Any]:
        """As ``every``, of a version to be loaded, however long that takes a replica that is there at all."""
        found = self.every("about", (), timeout_s=timeout_s)
        there = [replica for replica, about in found.items() if isinstance(about, About)]
        return found | self._tried("load", dict.fromkeys(there, (division,)), limit_s=None)

    def handle(self, replica: Replica) -> ray.actor.ActorHandle[Any]:
        """The actor. Raises: ValueError if there is none of this name."""
        import ray

        with self._lock:
            if replica not in self._handles:
                self._handles[replica] = ray.get_actor(actor_name(self.name, replica), namespace=NAMESPACE)
            return self._handles[replica]

    def _tried(
        self, method: str, arguments: Mapping[Replica, tuple[Any, ...]], *, limit_s: float | None
    ) -> dict[Replica, Any]:
        """Answers and exceptions, all asked at once."""
        import ray

        replies: dict[Replica, Any] = {}
        asked: dict[Any, Replica] = {}
        for replica, of_replica in arguments.items():
            try:
                asked[getattr(self.handle(replica), method).remote(*of_replica)] = replica
            except (ValueError, ray.exceptions.RayError) as error:
                replies[replica] = error
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=limit_s) if asked else ((), ())
        for reference in answered:
            replies[asked[reference]] = _answer(reference)
        for replica in arguments:
            replies.setdefault(replica, TimeoutError(f"no answer within {limit_s or 0:g} s"))
        return replies

    def _problem(self, replica: Replica, reply: Any, division: Division) -> str | None:
        """Why another replica has to be asked; None: it need not. Raises: what is refused by every replica alike."""
        if isinstance(reply, Refused):
            error = reply.exception()
            if isinstance(error, InputError | UnknownVersionError) or not isinstance(error, MemoryStoreError):
                raise error
            problem = reply.message
        elif isinstance(reply, NotLoaded):
            self.ask_to_load(replica, division)
            problem = f"it loads version {division.version}"
        elif isinstance(reply, TimeoutError):
            problem = str(reply)
        elif isinstance(reply, Exception):
            with self._lock:
                self._handles.pop(replica, None)  # another actor may have its name by now
            problem = "its actor is not there or restarts"
        else:
            self._failed.pop(replica, None)
            return None
        with self._lock:
            self._failed[replica] = time.monotonic()
            self.num_failed[replica[0]] += 1
        return problem

    def ask_to_load(self, replica: Replica, division: Division) -> None:
        """Have a replica load a version, without waiting for it, unless it does so already."""
        import ray

        which = (replica, division.key)
        with self._lock:
            asked = self._loading.get(which)
            if asked is not None and not ray.wait([asked], timeout=0)[0]:
                return
        reference = self.handle(replica).load.remote(division)
        with self._lock:
            self._loading[which] = reference

    def _turn(self, method: str, shard: int) -> int:
        """Counted for each method and shard, so that no pattern of requests always meets the same replica."""
        with self._lock:
            self._turns[method, shard] += 1
            return self._turns[method, shard]

    def _order(self, shard: int, turn: int) -> list[Replica]:
        """In turns, those that failed a moment ago last."""
        now = time.monotonic()
        replicas = [(shard, (turn + number) % self.num_replicas) for number in range(self.num_replicas)]
        return sorted(replicas, key=lambda each: now - self._failed.get(each, -RESTS_S) < RESTS_S)

    def named(self, shard: int) -> str:
        """A shard, as messages call it."""
        return f"shard {shard + 1} of {self.num_shards} of cluster:{self.name}"

    def require(self, why_missing: Mapping[int, str]) -> None:
        """Raises: UnavailableError that names the first of these shards."""
        for shard, why in why_missing.items():
            raise UnavailableError(
                f"{self.named(shard)} does not answer ({why}); ask again in a moment, "
                f"{command('cluster', 'status', self.name)} shows the shards"
            )


def _answer(reference: Any) -> Any:
    """The answer, or Ray's exception where there is none. Raises: what is a bug of ours in the actor."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        return error
