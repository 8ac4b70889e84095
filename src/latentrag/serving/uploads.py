"""A form's files, written to a folder as they arrive: each of a format that is read, under a plain name of its own."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import AsyncIterator, Mapping
from email.message import Message
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from latentrag.corpus.finding import file_at, in_nfc
from latentrag.corpus.readers import File, Formats
from latentrag.serving.bodies import check_kind, shown
from latentrag.serving.failures import Refused
from latentrag.serving.options import MAX_FILES

MAX_NAME_BYTES = 200
_QUOTED = re.compile(rb';\s*filename="([^"]*)"', re.IGNORECASE)
_ENCODED = re.compile(rb";\s*filename\*=utf-8''([^;\s]*)", re.IGNORECASE)


async def received(stream: AsyncIterator[bytes], headers: Mapping[str, str], folder: Path) -> list[Path]:
    """The files of a form, written to ``folder`` under their own names, in the order in which they came.

    Args:
        stream: the body, as it comes.
        headers: of the request.
        folder: empty.
    Raises: Refused for a body that is no such form, or has no file, too many, two of one name, a field that is no
        file, a name that is no plain file name, or a file of a format that is not read.
    """
    check_kind(headers, "multipart/form-data")
    boundary = _boundary(headers["content-type"])
    try:
        form = _Form(boundary, folder)
        try:
            async for part in stream:
                await asyncio.to_thread(form.write, part)
        finally:
            form.close()
    except FormParserError as error:
        raise Refused(400, f"the body is no multipart/form-data ({shown(str(error))}); correct it", "form") from error
    except OSError as error:
        message = f"the files cannot be written here ({error.strerror}); make room on the server"
        raise Refused(507, message, "disk") from error
    form.check_whole()
    return form.files


def checked_name(raw: bytes) -> str:
    """The name of a file in a form. Raises: Refused for what is no plain file name."""
    name = in_nfc(raw.decode("utf-8", "replace"))
    problem = next((why for why, is_so in _PROBLEMS if is_so(name)), None)
    if problem is not None:
        raise Refused(422, f"file name {shown(name)!r} {problem}; send a plain name, such as notes.md", "file_name")
    return name


_PROBLEMS = (
    ("is empty", lambda name: not name.strip()),
    ("has a folder in it", lambda name: any(each in name for each in "/\\")),
    ("is not UTF-8", lambda name: "\ufffd" in name),
    ("has control characters in it", lambda name: any(unicodedata.category(each)[0] == "C" for each in name)),
    ("begins with a dot", lambda name: name.startswith(".")),
    (f"is longer than {MAX_NAME_BYTES} bytes", lambda name: len(name.encode()) > MAX_NAME_BYTES),
)


def _boundary(content_type: str) -> str:
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise Refused(400, "Content-Type multipart/form-data has no boundary; let your client write it", "form")
    return boundary


class _Form:
    """A form while it arrives. Its methods write to the disk: not for the event loop.

    Attributes:
        files: that have arrived.
    """

    def __init__(self, boundary: str, folder: Path) -> None:
        self.files: list[Path] = []
        self._folder, self._formats = folder, Formats()
        self._open: BinaryIO | None = None
        self._path = folder
        self._name, self._header, self._disposition = bytearray(), bytearray(), b""
        self._is_whole = False
        self._parser = MultipartParser(
            boundary.encode("latin-1", "replace"),
            {
                "on_part_begin": self._begin,
                "on_header_field": self._more_of_name,
                "on_header_value": self._more_of_header,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._create,
                "on_part_data": self._more,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def write(self, part: bytes) -> None:
        """The next bytes of the body. Raises: Refused; FormParserError."""
        if part:
            self._parser.write(part)

    def close(self) -> None:
        """No more will come."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def check_whole(self) -> None:
        """Raises: Refused for a form that ends too early, or has no file."""
        if not self._is_whole:
            raise Refused(400, "the form ends before its last boundary; send it again", "form")
        if not self.files:
            message = "the form has no file; send at least one, in a field named files"
            raise Refused(422, message, "files", param="files")

    # Called by the parser

    def _begin(self) -> None:
        self._name.clear()
        self._header.clear()
        self._disposition = b""

    def _more_of_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _more_of_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_ends(self) -> None:
        if bytes(self._name).lower() == b"content-disposition":
            self._disposition = bytes(self._header)
        self._name.clear()
        self._header.clear()

    def _create(self) -> None:
        encoded, quoted = _ENCODED.search(self._disposition), _QUOTED.search(self._disposition)
        if encoded is None and quoted is None:
            raise Refused(422, "a field of the form is no file; send files only, each with its name", "files")
        raw = unquote_to_bytes(encoded[1]) if encoded is not None else quoted[1] if quoted is not None else b""
        self._path = self._folder / checked_name(raw)
        if len(self.files) == MAX_FILES:
            raise Refused(422, f"more than {MAX_FILES} files; send fewer at once", "files")
        if self._path in self.files:
            raise Refused(422, f"two files are named {shown(self._path.name)!r}; rename one of them", "file_name")
        self._open = self._path.open("xb")

    def _more(self, data: bytes, start: int, end: int) -> None:
        if self._open is not None:
            self._open.write(data[start:end])

    def _end(self) -> None:
        self.close()
        found = file_at(self._path, self._path.name, self._formats, in_folder=False)
        if not isinstance(found, File):
            raise Refused(415, f"{shown(self._path.name)}: {found}", "file_type")
        self.files.append(self._path)

    def _finish(self) -> None:
        self._is_whole = True
