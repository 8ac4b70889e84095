"""The process's memory: Python's collector while much is loaded, the C library's heap for who computes for long."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_SETTINGS = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
_OF_THE_USER = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's collector. While libraries and a vocabulary are loaded, a million objects come into being, which
    all stay, and it would look through them again and again: a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def keep_memory() -> bool:
    """Let glibc keep large blocks that are freed. It gives them back to the system otherwise, which hands them out
    again a page at a time, each cleared first: every step of decoding asks for some. And one arena for all threads:
    those of other threads have room for 64 MB.

    To be called before anything large is imported. Nothing happens with another C library, or where the environment
    says how memory is to be managed.

    Returns: whether it does now.
    """
    if not sys.platform.startswith("linux") or any(name.startswith(_OF_THE_USER) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) for name, value in _SETTINGS)
