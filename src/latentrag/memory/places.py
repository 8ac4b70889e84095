"""Where passages come from, as far as a client may know it: nothing about the folders of this machine."""

from __future__ import annotations

import re

_SEPARATOR = re.compile(r"[/\\]")
_ABSOLUTE = re.compile(r"\s*(?:[/\\~]|[a-z]:[/\\]|file:)", re.IGNORECASE)
_NOWHERE = {"", ".", "..", "~"}


def place_of(passage_id: str, source: str) -> str:
    """A passage's source without folders that only this machine knows.

    An absolute path, or one that leads upwards, is cut down to its file's name, or to the path within the folder that
    was added, with which the passage's id begins. Addresses and paths within a folder stay.
    """
    parts = _SEPARATOR.split(source)
    if not _ABSOLUTE.match(source) and ".." not in parts:
        return source
    kept = [part for part in parts[1:] if part not in _NOWHERE]
    inner = ("/".join(kept[start:]) for start in range(len(kept)))
    return next((path for path in inner if _begins(passage_id, path)), kept[-1] if kept else "")


def _begins(passage_id: str, path: str) -> bool:
    """Whether an id is that of a file, of a row in it (``path:3``), or of a part of either (``path#0``)."""
    return passage_id == path or passage_id.startswith((f"{path}#", f"{path}:"))
