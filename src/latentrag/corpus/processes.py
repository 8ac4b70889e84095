"""Files read by other processes, which a hostile file may crash, keep busy for ever or have fill the memory.

Each process is handed files by name on its standard input and writes documents as lines of JSON to its standard output;
what it is ahead of the caller fits into that pipe. The files go round the processes, so that their documents are taken
in the files' order without a thread or a lock. JSON and not pickles: a process that was taken over cannot take over
this one. docs/adr/0010-readers.md says why no library does this.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from latentrag.corpus.readers import File, Ledger, Reading, UnreadableError
from latentrag.errors import DataError
from latentrag.options import FileOptions
from latentrag.types import Document

_FILES_AHEAD = 4
"""For each process, how many files are handed out before their turn."""
_START_LIMIT_S = 60.0
_READY = b'"ready"\n'
# -P: a json.py in the current folder is none of ours.
_START = (
    "-P",
    "-c",
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from latentrag.corpus.processes import serve; serve()",
)
_OUT_OF_MEMORY = 99
"""How a process ends that notices it. Code in C often does not, and ends by a signal."""


def read_in_processes(files: Iterable[File], options: FileOptions) -> Generator[Reading]:
    """As ``read_each``. The processes start with the first file and end with the last, or with ``close``.

    Raises: DataError if a process cannot be started.
    """
    workers, pool = options.workers, list[_Worker]()
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(pool, over, min(1.0, options.time_limit_s / 4)), daemon=True)
    watch.start()
    upcoming = enumerate(files)
    handed_out: deque[tuple[File, _Worker]] = deque()
    try:
        while True:
            while len(handed_out) < workers * _FILES_AHEAD and (numbered := next(upcoming, None)):
                i, file = numbered
                if i < workers:
                    pool.append(_Worker(options))
                pool[i % workers].hand(file)
                handed_out.append((file, pool[i % workers]))
            if not handed_out:
                return
            file, worker = handed_out.popleft()
            ledger = file.ledger()
            documents = worker.documents(ledger)
            yield Reading(file, documents, ledger)
            with contextlib.suppress(UnreadableError):
                deque(documents, maxlen=0)  # what the caller did not want
    finally:
        over.set()
        watch.join()
        for worker in pool:
            worker.end()


class _Worker:
    """A process, the files that it was handed and has not finished, and since when their reader has waited for it."""

    process: subprocess.Popen[bytes]
    tasks_to: IO[bytes]
    messages: IO[bytes]

    def __init__(self, options: FileOptions) -> None:
        self.options = options
        self.tasks: deque[bytes] = deque()
        self.waiting_since: float | None = None
        self.is_ready = self.is_overdue = False
        self._start()

    def hand(self, file: File) -> None:
        task = json.dumps([str(file.path), file.name, file.format, file.in_folder, file.encoding]).encode() + b"\n"
        self.tasks.append(task)
        self._send([task])

    def documents(self, ledger: Ledger) -> Iterator[Document]:
        """Those of the oldest file, whose ledger is completed. Raises: UnreadableError; DataError."""
        num_documents = 0
        while (line := self._next_line()).endswith(b"\n"):
            kind, content = json.loads(line)
            if kind == "document":
                num_documents += 1
                yield Document(**{**content, "page_starts": tuple(content["page_starts"])})
                continue
            self.tasks.popleft()
            for reason, count in content["left_out"].items():
                ledger.leave_out(reason, count)
            ledger.encoding, ledger.is_guess = content["encoding"], content["is_guess"]
            if content["problem"] is not None:
                raise UnreadableError(content["problem"], content["line"])
            return
        self.tasks.popleft()
        problem = self._death(num_documents)
        self._start()
        self._send(self.tasks)
        raise UnreadableError(problem)

    def end(self) -> None:
        """End the process, whatever it is doing, and wait for it."""
        self.process.kill()
        with self.process:
            pass

    def _start(self) -> None:
        path = json.dumps([str(place) for place in sys.path])
        try:
            self.process = subprocess.Popen(  # noqa: S603  the arguments are ours
                [sys.executable, *_START, path, str(self.options.memory_limit_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "RUST_BACKTRACE": "0"},  # of a library that is out of memory, 50 lines
                # Ctrl-C at the terminal is for this process, which then ends the others.
                process_group=0,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            raise DataError(_not_started(str(error))) from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.tasks_to, self.messages = self.process.stdin, self.process.stdout
        self.is_ready = self.is_overdue = False

    def _send(self, tasks: Iterable[bytes]) -> None:
        # If it has died, reading will say so. No buffer: what is left in one would come up again when it is closed.
        with contextlib.suppress(OSError):
            for task in tasks:
                os.write(self.tasks_to.fileno(), task)

    def _next_line(self) -> bytes:
        """What it writes next; no whole line if it has died."""
        self.waiting_since = time.monotonic()
        try:
            if not self.is_ready and self.messages.readline() != _READY:
                self.process.kill()
                raise DataError(_not_started(f"it ended with code {self.process.wait()}"))
            self.is_ready, self.waiting_since = True, time.monotonic()
            return self.messages.readline()
        finally:
            self.waiting_since = None

    def _death(self, num_documents: int) -> str:
        """Why there will be no more from this process."""
        code = self.process.wait()
        self.end()
        kept = f" after {num_documents} documents" if num_documents else ""
        given_up = f"given up{kept}: {{}}; remove or repair the file, or raise the limit"
        if self.is_overdue:
            return given_up.format(f"a document took more than {self.options.time_limit_s:g} s")
        memory = f"took more than {self.options.memory_limit_bytes / 1e6:.0f} MB"
        if code == _OUT_OF_MEMORY:
            return given_up.format(memory)
        name = f"{signal.Signals(-code).name}, perhaps as it {memory}" if code < 0 else f"code {code}"
        return f"the process that read it ended{kept} ({name}); remove or repair the file"


def _watch(pool: Iterable[_Worker], over: threading.Event, period_s: float) -> None:
    """End processes that are waited for too long. Not an alarm within them: a loop in C would not heed it."""
    while not over.wait(period_s):
        for worker in pool:
            since, process = worker.waiting_since, worker.process
            limit_s = worker.options.time_limit_s
            if not worker.is_ready:  # which no file is to blame for
                limit_s = max(_START_LIMIT_S, limit_s)
            if since is not None and time.monotonic() - since > limit_s:
                worker.is_overdue = True
                process.kill()


def _not_started(problem: str) -> str:
    return f"a process that reads files did not start ({problem}); read with workers=0"


# In the processes


def serve() -> None:
    """Read the files that standard input names, until it ends; the second argument is the limit of memory, in bytes."""
    _limit_memory(int(sys.argv[2]))
    # What libraries print must not come between the messages.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tasks: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=(tasks,), daemon=True).start()
    try:
        messages.write(_READY)
        messages.flush()
        while True:
            for message in _messages(tasks.get()):
                messages.write(json.dumps(message).encode() + b"\n")
                messages.flush()
    except BrokenPipeError:
        os._exit(0)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)


def _limit_memory(num_bytes: int) -> None:
    """What this process writes to, its libraries' code not counted. Of the systems, Linux keeps it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with contextlib.suppress(OSError, ValueError):  # no more than a limit that is there already
        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, hard))


def _receive(tasks: SimpleQueue[bytes]) -> None:
    """End this process as soon as the one that started it is gone, even in the middle of a file."""
    # Unbuffered: Python cannot end a process in which another thread waits in a buffered read.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            tasks.put(line)
    os._exit(0)


def _messages(task: bytes) -> Iterator[tuple[str, dict[str, object]]]:
    """Each document, and how the reading ended."""
    path, name, format_name, in_folder, encoding = json.loads(task)
    file = File(Path(path), name, format_name, in_folder=in_folder, encoding=encoding)
    ledger = file.ledger()
    problem, line = None, None
    try:
        for document in file.documents(ledger):
            yield "document", asdict(document)
    except UnreadableError as error:
        problem, line = error.problem, error.line
    encoding = {"encoding": ledger.encoding, "is_guess": ledger.is_guess}
    yield "end", {**encoding, "left_out": ledger.left_out, "problem": problem, "line": line}
