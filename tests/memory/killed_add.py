"""An addition in a process of its own: notes every passage that it encodes, and says when a part is committed.

Arguments: the memory, the file for the notes, how many passages.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrag.memory import Writer, add
from latentrag.types import Passage
from tests.sync.conftest import CountingEncoder

if TYPE_CHECKING:
    from torch import Tensor

PART = 50


class NotingEncoder(CountingEncoder):
    def __init__(self, notes: Path) -> None:
        super().__init__()
        self.notes = notes

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> "Tensor":
        with self.notes.open("a") as file:
            file.write("".join(f"{passage.id}\n" for passage in passages))
        return super().encode_passages(passages)


def passages(number: int) -> list[Passage]:
    return [Passage(f"p{i}", f"text {i}", "title", "file.txt", i, i + 6, fields={"number": i}) for i in range(number)]


def saying_commits() -> None:
    commit = Writer.commit

    def saying(writer: Writer, **options: Any) -> None:
        commit(writer, **options)
        os.write(1, b"committed\n")

    setattr(Writer, "commit", saying)  # noqa: B010


if __name__ == "__main__":
    # A process that was started in the background ignores the signal, and so would this one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    saying_commits()
    encoder = NotingEncoder(Path(sys.argv[2]))
    add(sys.argv[1], passages(int(sys.argv[3])), lambda: encoder, passages_per_commit=PART)
