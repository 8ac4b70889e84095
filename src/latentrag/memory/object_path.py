"""Objects of a bucket by path: as much of ``pathlib`` as a memory's files need, so that their readers need not know.

A bucket has no folders. What a name with slashes lies in counts as one as long as something lies in it.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from latentrag.errors import InputError, MemoryStoreError
from latentrag.place import require_unforked

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore import ObjectMeta
    from obstore.store import S3Store

SCHEME = "s3://"
MAX_RETRIES, RETRY_FOR_S = 3, 20
"""Of a request that fails for want of a network or of the server: the error comes within half a minute."""
_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.*)", re.ASCII | re.DOTALL)
_READ_BYTES = 8 << 20

_EXPLANATIONS = {
    "NoSuchBucket": "there is no such bucket; make it, or correct the address",
    "/api/token|169\\.254\\.": "no credentials are set; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "\\b40[13] |AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch": (
        "access is denied; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do"
    ),
    "redirect": "the bucket is of another region; set AWS_REGION",
    "BadScheme": "its address begins with http: and not https:; set AWS_ALLOW_HTTP=true to allow that",
    "error sending request|timed out": "there is no connection; check the network and AWS_ENDPOINT_URL",
}
"""What a failure's text has, and what that means."""


def is_object_address(address: object) -> bool:
    """Whether this is the address of something in an object store."""
    return isinstance(address, str) and address.startswith(SCHEME)


@dataclass(frozen=True, slots=True)
class Stat:
    """What is known of an object without reading it; ``changed`` is UTC."""

    st_size: int
    changed: datetime


@dataclass(frozen=True, slots=True, order=True)
class ObjectPath:
    """An object, or what lies under a name. ``key`` is without slashes at its ends.

    Raises, in all methods: MemoryStoreError in one line where the store cannot be asked.
    """

    bucket: str
    key: str

    @classmethod
    def parse(cls, address: str) -> ObjectPath:
        """From ``s3://BUCKET/NAME``.

        Raises: InputError for what is no such address; MemoryStoreError if obstore is not installed.
        """
        found = _ADDRESS.fullmatch(address)
        parts = found[2].strip("/").split("/") if found else []
        if found is None or any(part in {"", ".", ".."} for part in parts):
            raise InputError(f"{address!r} is not the address of a memory in an object store; give s3://BUCKET/NAME")
        try:
            import obstore  # noqa: F401
        except ModuleNotFoundError as error:
            raise MemoryStoreError(
                f"{address} cannot be opened without obstore; install it with `pip install 'latentrag[s3]'`"
            ) from error
        return cls(found[1], "/".join(parts))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.bucket, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name

    @property
    def suffix(self) -> str:
        return self.name.removeprefix(self.stem)

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether anything lies under this name."""
        return next(self.listed(), None) is not None

    def iterdir(self) -> Iterator[ObjectPath]:
        """What lies directly under this name."""
        import obstore

        with _errors_in_one_line(self):
            found = obstore.list_with_delimiter(_client_of(self.bucket), f"{self.key}/")
        keys = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return (ObjectPath(self.bucket, key.rstrip("/")) for key in keys)

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """What lies directly under this name and is called so."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def listed(self) -> Iterator[tuple[str, Stat]]:
        """Every object under this name: the rest of its name, its size and when it was written."""
        import obstore

        start = len(self.key) + 1
        with _errors_in_one_line(self):
            for page in obstore.list(_client_of(self.bucket), f"{self.key}/"):
                for entry in page:
                    yield entry["path"][start:], _stat(entry)

    def stat(self) -> Stat:
        """Raises: FileNotFoundError."""
        import obstore

        with _errors_in_one_line(self):
            return _stat(obstore.head(_client_of(self.bucket), self.key))

    def read_bytes(self) -> bytes:
        """Raises: FileNotFoundError."""
        import obstore

        with _errors_in_one_line(self):
            return bytes(obstore.get(_client_of(self.bucket), self.key).bytes())

    def open(self, mode: Literal["rb"]) -> BufferedReader:  # noqa: ARG002  as pathlib's
        """To be read once, from the beginning. Raises: FileNotFoundError."""
        import obstore

        with _errors_in_one_line(self):
            chunks = obstore.get(_client_of(self.bucket), self.key).stream(_READ_BYTES)
        return BufferedReader(_Stream(self, map(bytes, chunks)), _READ_BYTES)

    def write_new(self, content: bytes) -> bool:
        """An object with this content, whole or not at all; False if there is one already, which stays."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            with _errors_in_one_line(self):
                obstore.put(_client_of(self.bucket), self.key, content, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def remove(self, names: list[str]) -> None:
        """Remove these objects under this name. Those that are not there do not matter."""
        import obstore

        if names:
            with _errors_in_one_line(self):
                obstore.delete(_client_of(self.bucket), [f"{self.key}/{name}" for name in names])


Folder = Path | ObjectPath
"""Where the files of a memory lie: on a disk or in an object store."""


class _Stream(RawIOBase):
    """The chunks of an object as a file."""

    def __init__(self, path: ObjectPath, chunks: Iterator[bytes]) -> None:
        self._path, self._chunks, self._rest = path, chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._rest:
            with _errors_in_one_line(self._path):
                self._rest = memoryview(next(self._chunks, b""))
        target = memoryview(buffer).cast("B")
        size = min(len(target), len(self._rest))
        target[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _stat(entry: ObjectMeta) -> Stat:
    return Stat(entry["size"], entry["last_modified"])


def lance_options() -> dict[str, str]:
    """Lance's storage options: it reads the same variables as we do, and gives up as soon."""
    return {"client_max_retries": str(MAX_RETRIES), "client_retry_timeout": str(RETRY_FOR_S)}


def endpoint() -> str:
    """Which object store the addresses are of; empty for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def _client_of(bucket: str) -> S3Store:
    require_unforked(MemoryStoreError)  # its threads do not come along
    return _client(bucket, tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))


@lru_cache(8)
def _client(bucket: str, environment: tuple[tuple[str, str], ...]) -> S3Store:  # noqa: ARG001  what it is made from
    from obstore.store import S3Store

    return S3Store(
        bucket,
        retry_config={"max_retries": MAX_RETRIES, "retry_timeout": timedelta(seconds=RETRY_FOR_S)},
    )


@contextmanager
def _errors_in_one_line(path: ObjectPath) -> Iterator[None]:
    """Failures of the store as one line; an object that is missing, or there already, stays that."""
    from obstore.exceptions import AlreadyExistsError, BaseError

    try:
        yield
    except AlreadyExistsError:
        raise
    except FileNotFoundError as error:
        if "NoSuchBucket" not in str(error):
            raise FileNotFoundError(errno.ENOENT, "no such object", str(path)) from error
        raise MemoryStoreError(f"{path} cannot be reached: {_explained(error)}") from error
    except (BaseError, PermissionError) as error:
        raise MemoryStoreError(f"{path} cannot be reached: {_explained(error)}") from error


def failure_of_store(error: BaseException) -> str | None:
    """What kept the object store from answering Lance, and what to do about it; None for an error of another kind."""
    return f"the object store cannot be reached: {_explained(error)}" if "S3 error" in str(error) else None


def _explained(error: BaseException) -> str:
    """What failed and what to do about it."""
    text = str(error)
    for pattern, explanation in _EXPLANATIONS.items():
        if re.search(pattern, text):
            return explanation
    first = text.split("\n", maxsplit=1)[0].strip()
    return f"{first}; try again, or check the AWS_ variables"
