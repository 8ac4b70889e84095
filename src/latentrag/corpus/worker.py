"""A process that reads files for ``crew``: tasks come in as lines of JSON, documents go out as lines of JSON.

Not pickles: what is parsed here comes from anywhere, and should it take this process over, it gets no further.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from latentrag.corpus.formats import UnreadableError
from latentrag.corpus.kinds import kind_of
from latentrag.corpus.readers import File
from latentrag.types import Document

READY = b'"ready"\n'
DONE = b'"done"\n'
"""No other message ends like this: they are arrays."""

_FIELDS = tuple(field.name for field in fields(Document))


def encode_task(file: File, limit_s: float) -> bytes:
    """A file to be read, as a line. A document that takes longer than the limit ends the process by SIGALRM."""
    return json.dumps([str(file.path), file.name, file.in_folder, limit_s]).encode() + b"\n"


def decode_message(line: bytes) -> Document | UnreadableError:
    """What a line of a worker says, which is neither READY nor DONE."""
    kind, content = json.loads(line)
    if kind == "unreadable":
        return UnreadableError(*content)
    return Document(**{**content, "page_starts": tuple(content["page_starts"])})


def _fields(document: Document) -> dict[str, Any]:
    return {name: getattr(document, name) for name in _FIELDS}


def serve() -> None:
    """Reads the files that standard input names, until it ends."""
    # What libraries print must not come between the messages.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tasks: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=(tasks,), daemon=True).start()
    try:
        messages.write(READY)
        messages.flush()
        while True:
            messages.writelines(_messages(tasks.get()))
            messages.write(DONE)
            messages.flush()
    except BrokenPipeError:
        os._exit(0)


def _receive(tasks: SimpleQueue[bytes]) -> None:
    """Ends this process as soon as the one that started it is gone, even in the middle of a file."""
    # Unbuffered: Python cannot end a process in which another thread waits in a buffered read.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            tasks.put(line)
    os._exit(0)


def _messages(task: bytes) -> Iterator[bytes]:
    path, name, in_folder, limit_s = json.loads(task)
    kind = kind_of(Path(path).name)
    assert kind is not None
    documents = File(Path(path), name, kind, in_folder=in_folder).documents()
    try:
        while (document := _next(documents, limit_s)) is not None:
            yield _encode("document", _fields(document))
    except UnreadableError as error:
        yield _encode("unreadable", [error.problem, error.line])


def _next(documents: Iterator[Document], limit_s: float) -> Document | None:
    """The next document. The limit is the system's: a library in an endless loop would not heed one of Python's."""
    if not hasattr(signal, "setitimer"):  # Windows
        return next(documents, None)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return next(documents, None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _encode(kind: str, content: Any) -> bytes:
    return json.dumps([kind, content]).encode() + b"\n"
