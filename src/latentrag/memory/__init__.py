"""The non-parametric memory: passages and their vectors in a versioned table, and indexes to search it."""

from latentrag.memory.filtered import FilteredMemory, FilteredTable
from latentrag.memory.history import Diff, Version
from latentrag.memory.live import LiveMemory, ServedMemory, ServedVersion
from latentrag.memory.memory import Memory, add
from latentrag.memory.schema import EncoderCard
from latentrag.memory.storage import LocalDisk, Storage
from latentrag.memory.writer import Added, Writer

__all__ = [
    "Added",
    "Diff",
    "EncoderCard",
    "FilteredMemory",
    "FilteredTable",
    "LiveMemory",
    "LocalDisk",
    "Memory",
    "ServedMemory",
    "ServedVersion",
    "Storage",
    "Version",
    "Writer",
    "add",
]
