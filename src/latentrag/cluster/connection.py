"""Joining the Ray cluster, and the few things that all processes in it know of each memory by its name."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import socket
import warnings
from collections.abc import Mapping
from typing import Any

from latentrag.errors import MemoryStoreError, ModelError

NAMESPACE = "latentrag"
"""Of our actors and keys."""
OURS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # It tells of dead workers on standard output, where our results are.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}
"""Of Ray's variables, where they are not set. Ray reads them when it is imported."""
PROBE_S = 5.0
"""How long to wait for the cluster's head before it counts as not there; Ray itself tries for minutes."""


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, else the one that runs on this machine; once a process.

    Raises: ModelError if ray is not installed; MemoryStoreError if there is no cluster, or it does not let us in.
    """
    if importlib.util.find_spec("ray") is None:
        raise ModelError("this needs ray; run `pip install 'latentrag[cluster]'`")
    for name, value in OURS.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own future
        import ray

        if ray.is_initialized():
            return
        address = os.environ.get("RAY_ADDRESS") or "auto"
        _probe(address)
        try:
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise _unreachable(address, str(error).strip().splitlines()[0]) from error


def _probe(address: str) -> None:
    """Raises: MemoryStoreError for host:port where nobody listens."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from error


def _unreachable(address: str, why: str) -> MemoryStoreError:
    where = "on this machine" if address == "auto" else f"at {address}"
    return MemoryStoreError(
        f"no Ray cluster can be reached {where} ({why}); start one with `ray start --head`, join one with "
        "`ray start --address=HEAD:PORT`, or set RAY_ADDRESS"
    )


class Register:
    """The record of a memory under its name, kept by the cluster's head."""

    def __init__(self, name: str) -> None:
        self._key = f"{NAMESPACE}/{name}".encode()

    def claim(self, record: Mapping[str, Any]) -> bool:
        """Take the name; False if it is taken."""
        from ray.experimental import internal_kv

        return not internal_kv._internal_kv_put(self._key, _bytes_of(record), overwrite=False)  # noqa: SLF001

    def write(self, record: Mapping[str, Any]) -> None:
        """Another record."""
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(self._key, _bytes_of(record), overwrite=True)  # noqa: SLF001

    def read(self) -> dict[str, Any] | None:
        """None: nothing has the name."""
        from ray.experimental import internal_kv

        found = internal_kv._internal_kv_get(self._key)  # noqa: SLF001
        if found is None:
            return None
        record: dict[str, Any] = json.loads(found)
        return record

    def remove(self) -> None:
        """Give the name back."""
        from ray.experimental import internal_kv

        with contextlib.suppress(KeyError):
            internal_kv._internal_kv_del(self._key)  # noqa: SLF001


def registered() -> list[str]:
    """The names that are taken."""
    from ray.experimental import internal_kv

    prefix = f"{NAMESPACE}/"
    found = internal_kv._internal_kv_list(prefix.encode())  # noqa: SLF001
    return sorted(key.decode().removeprefix(prefix) for key in found)


def _bytes_of(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode()
