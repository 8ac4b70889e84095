"""Files read by several processes, their documents in the order of the files.

A thread for each process hands it one file after another and gathers what it says; the caller takes the documents
of the first file, then those of the second. Not multiprocessing: it would run the user's main module again in each
process, and a pool of concurrent.futures is lost when one of its processes dies.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from typing import cast

from latentrag.corpus.formats import UnreadableError
from latentrag.corpus.readers import File, OnSkip
from latentrag.corpus.worker import DONE, READY, decode_message, encode_task
from latentrag.errors import DataError
from latentrag.types import Document

_MAX_AHEAD_BYTES = 1 << 25
"""What is kept in RAM of what has been read and not yet been asked for; documents that are longer come on top."""
_MAX_AHEAD_FILES = 64
"""For each worker, how many files may be read before the one that is asked for is finished."""
_READ_BYTES = 1 << 16
_MAX_DOCUMENT_S = 300.0
"""A document that takes longer is given up; thousands of pages take seconds."""
# -P: a json.py in the current folder is none of ours.
_START = (
    "-P",
    "-c",
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from latentrag.corpus.worker import serve; serve()",
)


def read_with_crew(files: Sequence[File], on_skip: OnSkip | None, *, workers: int) -> Generator[Document]:
    """As ``read_files``. The processes start with the first document and end with the last, or with ``close``."""
    crew = _Crew(files, min(workers, len(files)))
    try:
        for i, file in enumerate(files):
            try:
                yield from crew.documents(i)
            except UnreadableError as error:
                file.refuse(error, on_skip)
    finally:
        crew.close()


@dataclass(slots=True)
class _Said:
    """What has been said of a file and not been asked for: chunks of lines. ``returncode`` of a process that died."""

    chunks: deque[bytes] = field(default_factory=deque)
    ended: bool = False
    returncode: int | None = None


class _Crew:
    """The processes and their threads. What they share changes only while ``_changed`` is held."""

    def __init__(self, files: Sequence[File], num_workers: int) -> None:
        self._files = files
        self._changed = threading.Condition()
        self._said = [_Said() for _ in files]
        self._asked_for = 0
        self._num_claimed = 0
        self._num_bytes = 0
        self._closed = False
        self._not_started: str | None = None
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(num_workers)]
        self._num_working = num_workers
        for thread in self._threads:
            thread.start()

    def documents(self, i: int) -> Iterator[Document]:
        """Those of file ``i``; files are asked for in their order. Raises: UnreadableError; DataError."""
        unreadable: UnreadableError | None = None
        num_documents = 0
        for line in self._lines(i):
            if line + b"\n" == DONE:
                continue
            message = decode_message(line)
            if isinstance(message, UnreadableError):
                unreadable = message
                continue
            num_documents += 1
            yield message
        returncode = self._said[i].returncode
        if returncode is not None:
            raise UnreadableError(_death(returncode, num_documents))
        if unreadable is not None:
            raise unreadable

    def close(self) -> None:
        """Ends the processes, whatever they are doing, and waits for them."""
        with self._changed:
            self._closed = True
            for process in self._processes:
                process.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _lines(self, i: int) -> Iterator[bytes]:
        """What is said of file ``i``; not what a process that died had no time to finish."""
        pieces: list[bytes] = []
        while (chunk := self._next_chunk(i)) is not None:
            *ended, begun = chunk.split(b"\n")
            for piece in ended:
                yield b"".join([*pieces, piece])
                pieces.clear()
            pieces.append(begun)

    def _next_chunk(self, i: int) -> bytes | None:
        said = self._said[i]
        with self._changed:
            self._asked_for = i
            self._changed.notify_all()
            self._changed.wait_for(lambda: said.chunks or said.ended or self._not_started or not self._num_working)
            if self._not_started is not None:
                raise DataError(self._not_started)
            if said.chunks:
                chunk = said.chunks.popleft()
                self._num_bytes -= len(chunk)
                return chunk
            assert said.ended, "a thread ended before its file did"
            return None

    # In the threads

    def _work(self) -> None:
        process = None
        try:
            while (i := self._claim()) is not None:
                process = process or self._start()
                if process is not None and not self._relay(process, i):
                    self._end(process)
                    process = None
        finally:
            if process is not None:
                self._end(process)
            with self._changed:
                self._num_working -= 1
                self._changed.notify_all()

    def _claim(self) -> int | None:
        """The next file that nobody reads; None if there are no more."""
        ahead = _MAX_AHEAD_FILES * len(self._threads)
        with self._changed:
            self._changed.wait_for(lambda: self._over() or self._num_claimed < self._asked_for + ahead)
            if self._over():
                return None
            self._num_claimed += 1
            return self._num_claimed - 1

    def _over(self) -> bool:
        return self._closed or self._not_started is not None or self._num_claimed == len(self._files)

    def _start(self) -> subprocess.Popen[bytes] | None:
        try:
            process = subprocess.Popen(  # noqa: S603  the arguments are ours
                [sys.executable, *_START, json.dumps([str(place) for place in sys.path])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,  # Ctrl-C at the terminal is for this process, which then ends them
            )
        except OSError as error:
            self._give_up(str(error))
            return None
        with self._changed:
            self._processes.add(process)
            if self._closed:
                process.kill()
        if _output(process).readline() == READY:
            return process
        self._end(process)
        self._give_up(f"it ended with code {process.returncode}")
        return None

    def _give_up(self, problem: str) -> None:
        with self._changed:
            self._not_started = f"a process that reads files did not start ({problem}); read with workers=0"
            self._changed.notify_all()

    def _relay(self, process: subprocess.Popen[bytes], i: int) -> bool:
        """Passes on what the process says of file ``i``. False if it died."""
        assert process.stdin is not None
        # If it has died, that will be seen below. No buffer: what is left in one would come up again when it is closed.
        with suppress(BrokenPipeError):
            os.write(process.stdin.fileno(), encode_task(self._files[i], _MAX_DOCUMENT_S))
        output = _output(process)
        end = b""
        while not end.endswith(DONE):
            chunk = output.read1(_READ_BYTES)
            if not chunk:
                self._finish(i, process.wait())
                return False
            end = (end + chunk)[-len(DONE) :]
            self._put(i, chunk)
        self._finish(i, None)
        return True

    def _put(self, i: int, chunk: bytes) -> None:
        said = self._said[i]

        def may_go_on() -> bool:
            # The file that is asked for always may, when nothing of it is left: others wait for it.
            is_awaited = i == self._asked_for and not said.chunks
            return self._closed or is_awaited or self._num_bytes < _MAX_AHEAD_BYTES

        with self._changed:
            self._changed.wait_for(may_go_on)
            said.chunks.append(chunk)
            self._num_bytes += len(chunk)
            self._changed.notify_all()

    def _finish(self, i: int, returncode: int | None) -> None:
        with self._changed:
            self._said[i].ended = True
            self._said[i].returncode = returncode
            self._changed.notify_all()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with self._changed:
            self._processes.discard(process)
        process.kill()  # it has nothing to put in order
        with process:
            pass


def _output(process: subprocess.Popen[bytes]) -> BufferedReader:
    return cast("BufferedReader", process.stdout)


def _death(returncode: int, num_documents: int) -> str:
    kept = f" after {num_documents} documents" if num_documents else ""
    name = signal.Signals(-returncode).name if returncode < 0 else f"code {returncode}"
    if name == "SIGALRM":
        return f"given up{kept}: a document took more than {_MAX_DOCUMENT_S:g} s; remove or repair the file"
    memory = ", perhaps for want of memory" if name == "SIGKILL" else ""
    return f"reading it ended the process that did{kept} ({name}{memory}); remove or repair the file"
