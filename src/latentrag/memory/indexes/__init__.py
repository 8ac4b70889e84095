"""Indexes over a memory's vectors: exact, compressed, or a graph, all behind ``Index``. They can be thrown away.

protocol        what an index is            flat, ivf_rabitq, proposers (sq8, hnsw)   the kinds
scoring         the scores that count       stored, vector_file     candidates in RAM, vectors on disk
changes         two versions compared       revised                 an index that serves another version
building        from a table to files       files                   published, verified, thrown away
supply          which index serves          made, recall, renewal   built on request, measured, built again
"""

from latentrag.memory.indexes.flat import FlatIndex
from latentrag.memory.indexes.made import BuiltIndex, build_index
from latentrag.memory.indexes.protocol import Hits, Index
from latentrag.memory.indexes.supply import IndexSupply

__all__ = ["BuiltIndex", "FlatIndex", "Hits", "Index", "IndexSupply", "build_index"]
