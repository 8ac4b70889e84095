"""The rows of a file of JSON lines, or of a JSON array, also gzipped."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

from latentrag.errors import DataError

NOT_JSON = object()


def json_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Number and content of every row that is not blank: its line, or in a JSON array its place, from 1.

    What is not JSON comes as ``NOT_JSON`` in its place.

    Raises: DataError for a file that cannot be read, is empty, or is not whole.
    """
    try:
        with _opened(path) as stream:
            first = next((line for line in enumerate(stream, start=1) if line[1].strip()), None)
            if first is None:
                raise DataError(f"{path} is empty; needed JSON lines with a question and an answer each")
            # Only blank lines precede it, so what follows is the rest of the file.
            if first[1].lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                yield from enumerate(_array(first[1] + stream.read(), path), start=1)
            else:
                numbered: Iterable[tuple[int, bytes]] = chain([first], enumerate(stream, start=first[0] + 1))
                yield from ((number, _parsed(raw)) for number, raw in numbered if raw.strip())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); fetch it again") from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error


def _opened(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _array(raw: bytes, path: Path) -> list[object]:
    try:
        rows: list[object] = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no whole JSON array ({error}); fetch it again or write JSON lines") from error
    return rows


def _parsed(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return NOT_JSON
