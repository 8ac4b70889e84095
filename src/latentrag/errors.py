"""Every error that latentrag raises on purpose. Messages say: got, needed, remedy."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Formatter


def command(*words: object) -> str:
    """A command of ours as a message shows it: what stands between the marks can be pasted into a shell."""
    return f"`latentrag {shlex.join(map(str, words))}`"


class LatentRagError(Exception):
    """Base of all of them. The command line prints its message as one line and exits with 2."""


class ShapeError(LatentRagError, ValueError):
    """Tensors whose shapes do not fit together."""


class InputError(LatentRagError, ValueError):
    """A question, label list, option or other argument that cannot be used as it is.

    Attributes:
        field: the option that is wrong, by its field's name, where it is known to be one.
    """

    field: str | None = None


class ConditionError(InputError):
    """A condition on passages that is none, or that none satisfies."""

    field = "where"


class OptionError(InputError):
    """An option's value that cannot be used, or that does not go with another's.

    Args:
        text: with "{num_beams}" where it names an option, which users of each interface call something else.
        values: what else stands in braces.
    """

    def __init__(self, text: str, **values: object) -> None:
        self._text, self._values = text, values
        names = (name for _, name, *_ in Formatter().parse(text))
        self.field = next((name for name in names if name and name not in values), None)
        super().__init__(self.called(str))

    def called(self, name_of: Callable[[str], str]) -> str:
        """The message, with each option called what ``name_of`` makes of its field's name."""
        return self._text.format_map(_Filled(self._values, name_of))


def exceeds_memory(k: int, size: int) -> OptionError:
    """K is more than the passages that there are."""
    text = "{k}={given} exceeds the memory's {size} passages; lower {k} or add passages"
    return OptionError(text, given=k, size=size)


class _Filled(dict[str, object]):
    """Values by name; what is none of them is an option."""

    def __init__(self, values: Mapping[str, object], name_of: Callable[[str], str]) -> None:
        super().__init__(values)
        self._name_of = name_of

    def __missing__(self, name: str) -> str:
        return self._name_of(name)


class DataError(LatentRagError, ValueError):
    """A file of documents or examples that cannot be read; names the file and, where it has one, the line."""


class ModelError(LatentRagError):
    """A model folder that is missing, incomplete, corrupt or of a kind that is not supported."""


class MemoryStoreError(LatentRagError):
    """A memory that is missing, empty, corrupt, or has no such version."""


class UnavailableError(MemoryStoreError):
    """A memory of which a part does not answer now; a moment later it may."""


class UnknownVersionError(MemoryStoreError):
    """A version, tag or moment that a memory does not have."""


class DamagedVersionError(MemoryStoreError):
    """A version of a memory with files that are missing or not as they were written; ``what`` says which."""

    def __init__(self, folder: object, version: int, what: str) -> None:
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


class OtherProcessError(TrainingError):
    """Another process of the same run has failed, and has said why: this one ends with it, and says nothing."""


class OutputError(LatentRagError):
    """Standard output that cannot be written."""
