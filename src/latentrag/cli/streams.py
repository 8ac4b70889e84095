"""How a process of ours is joined to the system: text in UTF-8 whatever the locale, and standard streams whatever they
are connected to."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from latentrag.errors import OutputError


def prepare() -> None:
    """To be called once, before anything is read, written or loaded."""
    _open_missing()
    _use_utf8()
    sys.stdout = _wrapped(sys.stdout, _Output)
    sys.stderr = _wrapped(sys.stderr, _Messages)


def silence(handle: int) -> None:
    """Send what is written to a descriptor, and what waits to be written, nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, handle)
    os.close(nowhere)


def _open_missing() -> None:
    """Open descriptors 0 to 2 that were closed; a file that got such a number would take what libraries print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(handle, True)
            setattr(sys, name, os.fdopen(handle, mode))


def _use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode if the locale has file names and arguments in another encoding.

    The system knows both as bytes; decoded by the locale they would name other files, or none. Output stays in the
    locale's encoding.
    """
    is_utf8 = sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8"
    if is_utf8 or os.environ.get("PYTHONUTF8") == "1" or not sys.executable:
        return
    os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  this very program


class _Output(io.TextIOWrapper):
    """Standard output. What cannot be written is an error of ours, once; the rest goes nowhere."""

    def write(self, text: str) -> int:
        with self._refused():
            return super().write(text)

    def flush(self) -> None:
        with self._refused():
            super().flush()

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            silence(self.fileno())
            raise OutputError(
                f"standard output cannot be written ({error.strerror or error}); what was done stays done; "
                "make room, or send it elsewhere"
            ) from error


class _Messages(io.TextIOWrapper):
    """Standard error. Whether a message can be written decides nothing."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _wrapped(stream: TextIO, kind: type[io.TextIOWrapper]) -> io.TextIOWrapper:
    assert isinstance(stream, io.TextIOWrapper)
    encoding, is_line_buffered = stream.encoding, stream.line_buffering
    return kind(stream.detach(), encoding, "backslashreplace", line_buffering=is_line_buffered)
