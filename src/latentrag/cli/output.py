"""What leaves the program: data on standard output, everything else on standard error.

Passages, titles and file names are other people's text. Nothing of theirs may steer the terminal.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager

from latentrag.cli import streams
from latentrag.errors import OptionError
from latentrag.io import finite
from latentrag.options import options_of_answers

EXIT_PROBLEMS = 1
"""A check found something wrong; also a bug, which keeps its traceback."""
EXIT_USER = 2
"""The user can mend it."""
EXIT_INTERRUPTED = 130

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Direction marks, overrides and isolates, separators of lines, invisible tags, halves of surrogate pairs.
_DECEPTIVE = re.compile(
    "[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)


def clean(text: str) -> str:
    """One line without control characters; marks that reorder or hide text are spelt out.

    White space becomes single spaces, so that a terminal shows the words and nothing acts on them.
    """
    return _DECEPTIVE.sub(_spelt_out, _CONTROL.sub("", " ".join(text.split())))


def message_of(error: Exception) -> str:
    """What went wrong, with options called what the user types."""
    return error.called(_flag_of) if isinstance(error, OptionError) else str(error)


def _flag_of(field: str) -> str:
    known = options_of_answers()
    return known[field].flags[0] if field in known else field


def say(line: str) -> None:
    """A message for the user, as one line."""
    sys.stderr.write(clean(line) + "\n")
    sys.stderr.flush()


def working(what: str) -> AbstractContextManager[object]:
    """Says on standard error what goes on within, where somebody looks on; it is wiped away afterwards."""
    from rich.console import Console

    return Console(stderr=True).status(what)


def print_line(line: str) -> None:
    """A result in words, as one line."""
    sys.stdout.write(clean(line) + "\n")


def print_json(record: Mapping[str, object]) -> None:
    """One JSON object as one line, at once.

    −∞, a probability of zero, is null. What could steer a terminal is written as \\u
    escapes, which mean the same to a program.
    """
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(finite(record, strict=True), ensure_ascii=ascii_only, allow_nan=False)
    for unsafe in (_CONTROL, _DECEPTIVE):
        text = unsafe.sub(lambda match: json.dumps(match[0])[1:-1], text)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def lenient_streams() -> None:
    """Characters that a terminal's encoding lacks are spelt out instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def silence() -> None:
    """Send what is still to be written nowhere: whoever was reading has gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
            continue
        with contextlib.suppress(OSError, ValueError):
            streams.silence(stream.fileno())


def _spelt_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
