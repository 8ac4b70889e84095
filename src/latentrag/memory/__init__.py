"""The non-parametric memory: passages and their vectors in a versioned table, and indexes to search it."""

from latentrag.memory.live import LiveMemory
from latentrag.memory.log import Version
from latentrag.memory.manifest import Manifest
from latentrag.memory.memory import Memory

__all__ = ["LiveMemory", "Manifest", "Memory", "Version"]
