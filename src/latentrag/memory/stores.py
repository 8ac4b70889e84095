"""Where a pushed memory lies: a folder, or a data set on the Hugging Face hub."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from latentrag.errors import FetchError, InputError
from latentrag.io import sync_folder, sync_tree

LISTING = "memory.json"
"""Which files make up a pushed memory, with their sizes and hashes, and what encoded its passages."""
_SCHEME = "hf://"
_HUB = re.compile(r"hf://datasets/(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w.][\w./-]*))?", re.ASCII)
_OURS = re.compile(r"passages-\d{5}-of-\d{5}\.parquet")
_HUBS_OWN = {".gitattributes", "README.md"}


class Store(Protocol):
    """A place for the files of one memory."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def check_free(self) -> None:
        """Raises: InputError if something is there that ``publish`` must not replace."""
        ...

    def fetch(self, name: str, folder: Path) -> None:
        """Put the file of that name into a folder. Raises: FetchError."""
        ...

    @property
    def scratch_parent(self) -> Path:
        """Where to put the files together before they are published."""
        ...

    def publish(self, folder: Path, message: str) -> None:
        """Make the files in ``folder`` the ones that are there, all at once. Raises: FetchError."""
        ...


def open_store(place: str, *, hub: Any = None) -> Store:
    """A folder, or ``hf://datasets/USER/NAME``, perhaps with ``@REVISION``, through ``hub``, a ``HfApi``.

    Raises: InputError for another kind of address.
    """
    if not place.startswith(_SCHEME):
        return FolderStore(Path(place).expanduser())
    address = _HUB.fullmatch(place)
    if not address:
        raise InputError(f"{place} is no place for a memory; needed a folder or hf://datasets/USER/NAME")
    if hub is None:
        from huggingface_hub import HfApi

        hub = HfApi()
    return HubStore(hub, address["repo"], address["revision"])


class FolderStore:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return str(self._path)

    def check_free(self) -> None:
        if self._path.exists() and (not self._path.is_dir() or any(self._path.iterdir())):
            raise InputError(f"{self._path} exists and is not empty; name a new folder")

    def fetch(self, name: str, folder: Path) -> None:
        part = folder / f"{name}.part"
        try:
            shutil.copyfile(self._path / name, part)
            part.replace(folder / name)
        except OSError as error:
            raise FetchError(f"{self._path / name} cannot be copied ({error.strerror or error}); check it") from error

    @property
    def scratch_parent(self) -> Path:
        """Beside the folder: renaming does not copy."""
        return self._path.absolute().parent

    def publish(self, folder: Path, message: str) -> None:  # noqa: ARG002  a folder keeps no messages
        self.check_free()
        sync_tree(folder)
        if self._path.exists():
            self._path.rmdir()
        folder.rename(self._path)
        sync_folder(self._path.absolute().parent)


class HubStore:
    """A data set repository of the hub. Credentials are the affair of huggingface_hub."""

    def __init__(self, api: Any, repo: str, revision: str | None) -> None:
        self._api = api
        self._repo = repo
        self._revision = revision
        self._commit: str | None = None

    @property
    def name(self) -> str:
        return f"{_SCHEME}datasets/{self._repo}" + (f"@{self._revision}" if self._revision else "")

    def check_free(self) -> None:
        """A repository that does not exist, is empty, or holds a memory, which a new commit replaces."""
        from huggingface_hub.errors import RepositoryNotFoundError

        if self._revision is not None:
            raise InputError(f"{self.name} names a revision, a push makes a new one; leave @{self._revision} out")
        try:
            with self._reaching():
                names = set(self._api.list_repo_files(self._repo, repo_type="dataset"))
        except FetchError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError):
                return
            raise
        other = sorted(name for name in names - _HUBS_OWN - {LISTING} if not _OURS.fullmatch(name))
        if other:
            raise InputError(f"{self.name} holds {other[0]!r}, which is no part of a memory; name a new repository")

    def fetch(self, name: str, folder: Path) -> None:
        with self._reaching():
            if self._commit is None:  # all files from one commit, whatever is pushed meanwhile
                self._commit = self._api.repo_info(self._repo, repo_type="dataset", revision=self._revision).sha
            self._api.hf_hub_download(
                self._repo, name, repo_type="dataset", revision=self._commit, local_dir=str(folder)
            )

    @property
    def scratch_parent(self) -> Path:
        return Path(tempfile.gettempdir())

    def publish(self, folder: Path, message: str) -> None:
        """One commit. A repository that has to be made is private."""
        with self._reaching():
            self._api.create_repo(self._repo, repo_type="dataset", private=True, exist_ok=True)
            self._api.upload_folder(
                repo_id=self._repo,
                repo_type="dataset",
                folder_path=str(folder),
                commit_message=message,
                delete_patterns=["passages-*.parquet"],
            )

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """The hub's failures, and the network's, as one line."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), repr(error))
            raise FetchError(
                f"{self.name} cannot be reached ({reason}); check its name, the network, and that you are logged in"
            ) from error
