"""Every error that latentrag raises on purpose. Messages say: got, needed, remedy."""

from pathlib import Path


class LatentRagError(Exception):
    """Base of all of them. The command line prints its message as one line and exits with 2."""


class ShapeError(LatentRagError, ValueError):
    """Tensors whose shapes do not fit together."""


class InputError(LatentRagError, ValueError):
    """A question, label list, option or other argument that cannot be used as it is."""


class DataError(LatentRagError, ValueError):
    """A file of documents or examples that cannot be read; names the file and, where it has one, the line."""


class ModelError(LatentRagError):
    """A model folder that is missing, incomplete, corrupt or of a kind that is not supported."""


class MemoryStoreError(LatentRagError):
    """A memory that is missing, empty, corrupt, or has no such version."""


class UnknownVersionError(MemoryStoreError):
    """A version, tag or moment that a memory does not have."""


class DamagedVersionError(MemoryStoreError):
    """A version of a memory with files that are missing or not as they were written; ``what`` says which."""

    def __init__(self, folder: Path, version: int, what: str) -> None:
        super().__init__(
            f"version {version} of the memory at {folder} cannot be read ({what}); "
            "ask another version, restore it from a copy or build it again"
        )
        self.what = what


class IndexDamagedError(MemoryStoreError):
    """A file of an index that is not what was written. Indexes are made from the table: nothing is lost."""

    def __init__(self, file: Path, problem: str) -> None:
        super().__init__(f"{file} {problem}")
        self.file = file


class EncoderMismatchError(LatentRagError):
    """A query encoder whose vectors do not live in the space of the memory's vectors."""


class FetchError(LatentRagError):
    """A download that failed or whose hash is not the pinned one."""


class TrainingError(LatentRagError):
    """A run that cannot go on: its checkpoint does not fit, its loss is no number, its folder cannot be written."""


class OutputError(LatentRagError):
    """Standard output that cannot be written."""
