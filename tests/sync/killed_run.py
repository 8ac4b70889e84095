"""A sync in a process of its own: says how far it is, and notes every passage that it encodes.

Arguments: the memory, the folder, the file for the notes.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentrag.sync import Progress, SyncOptions, sync
from latentrag.types import Passage
from tests.sync.conftest import CountingEncoder

if TYPE_CHECKING:
    from torch import Tensor


class NotingEncoder(CountingEncoder):
    def __init__(self, notes: Path) -> None:
        super().__init__()
        self.notes = notes

    def encode_passages(self, passages: Sequence[Passage], *, progress: bool = False) -> "Tensor":
        with self.notes.open("a") as file:
            file.write("".join(f"{passage.id}\n" for passage in passages))
        return super().encode_passages(passages)


def say(progress: Progress) -> None:
    os.write(1, f"{progress.num_files_done}\n".encode())


if __name__ == "__main__":
    # A process that was started in the background ignores the signal, and so would this one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    memory, folder, notes = map(Path, sys.argv[1:])
    sync(
        memory,
        folder,
        lambda: NotingEncoder(notes),
        options=SyncOptions(words=10, delete_missing=True, passages_per_commit=50),
        on_progress=say,
    )
