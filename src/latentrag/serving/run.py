"""A server process: the address, who may connect, uvicorn, an orderly end."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from latentrag.errors import InputError
from latentrag.options import KEY_VARIABLE
from latentrag.serving.guard import Access
from latentrag.serving.protocol import bounded
from latentrag.serving.rights import Rights

if TYPE_CHECKING:
    from fastapi import FastAPI

    from latentrag.serving.options import ServeOptions

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_SHORTEST_KEY = 16
_RATE_ELSEWHERE = 10.0
_BACKLOG = 1024


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def access_to(host: str, *, key_file: Path | None, hosts: Sequence[str] = (), allow_writes: bool = False) -> Access:
    """Who may ask a server at this address: everybody on this machine, or those with a key.

    Args:
        key_file: API keys, one a line, with its rights (see ``Rights.read``) after it; without it the variable
            LATENTRAG_API_KEY may hold one.
        hosts: other names under which it may be spoken to; without any, where others can connect, every name will do.
        allow_writes: whether everybody on this machine may change documents, where there are no keys.
    Raises: InputError if others can connect and there is no key, keys are there besides ``allow_writes``, one is too
        short to be a secret or comes twice, or what follows it is no right.
    """
    rights = _keys(key_file)
    keys = tuple(rights)
    if not keys and not is_loopback(host):
        raise InputError(
            f"--host {host} lets others connect, and there is no API key; name a file with --api-key-file or set "
            f"{KEY_VARIABLE}"
        )
    if keys and allow_writes:
        raise InputError("--allow-writes has no effect where API keys are needed; write `write` after a key instead")
    if any(len(key) < _SHORTEST_KEY or not key.isascii() for key in keys):
        raise InputError(f"an API key is shorter than {_SHORTEST_KEY} characters or not ASCII; choose a random one")
    named = frozenset(name.lower() for name in hosts)
    if is_loopback(host) or named:
        named |= _LOOPBACK_NAMES | {f"[{host}]" if ":" in host else host}
    return Access(keys=keys, hosts=named, rights=rights, without_key=Rights(write=allow_writes, exchange=True))


def _keys(key_file: Path | None) -> dict[str, Rights]:
    if key_file is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        return {key: Rights()} if key else {}
    try:
        lines = key_file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key_file} cannot be read ({error}); name a file with an API key a line") from error
    keys: dict[str, Rights] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, *rest = line.split(maxsplit=1)
        if key in keys:
            raise InputError(f"{key_file}:{number}: the API key of an earlier line; remove one of them")
        try:
            keys[key] = Rights.read("".join(rest))
        except InputError as error:
            raise InputError(f"{key_file}:{number}: {error}") from error
    if not keys:
        raise InputError(f"{key_file} holds no API key; write one, or several, one a line")
    return keys


def limited(options: ServeOptions, host: str) -> ServeOptions:
    """The options with a rate, where others can connect and none was chosen."""
    return options if options.rate is not None or is_loopback(host) else replace(options, rate=_RATE_ELSEWHERE)


def bound(host: str, port: int) -> socket.socket:
    """A socket with that address, on which nobody listens yet: so that a model is not loaded in vain.

    Raises: InputError if the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound_socket = socket.socket(found[0], found[1])
        try:
            bound_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound_socket.bind(found[4])
        except BaseException:
            bound_socket.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"cannot listen at {host} port {port} ({error}); choose another --host or --port") from error
    return bound_socket


def address(listening: socket.socket) -> str:
    """Where clients find it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def configured(app: FastAPI, options: ServeOptions) -> uvicorn.Config:
    """How uvicorn is used."""
    return uvicorn.Config(
        app,
        http=bounded(options),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client's own word for its address would get it a rate of its own
        timeout_graceful_shutdown=int(options.drain_s) + 1,
        h11_max_incomplete_event_size=16 * 1024,
        backlog=_BACKLOG,
    )


def run(app: FastAPI, listening: socket.socket, options: ServeOptions) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, then finish what was accepted; a second SIGINT ends it at once."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    # uvicorn raises the signal again when all is done, for whoever was to hear it before.
    before = {number: signal.signal(number, _already_heard) for number in (signal.SIGINT, signal.SIGTERM)}
    server = uvicorn.Server(configured(app, options))
    hang_up = getattr(signal, "SIGHUP", None)  # of which uvicorn does not know
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:  # as nohup has it
        before[hang_up] = signal.signal(hang_up, server.handle_exit)
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _already_heard(_number: int, _frame: FrameType | None) -> None:
    """Stopping was what the signal asked for."""
