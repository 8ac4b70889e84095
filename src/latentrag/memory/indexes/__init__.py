"""Indexes over a memory's vectors, all behind ``Index``. They are made from the table and can be thrown away.

index        what an index and a kind of index are; scores; recall
flat         exact search in RAM; an index that serves another version
ivf_rabitq   one bit a number in RAM, the most promising lists searched
stored       vectors and passages on disk, from which what a kind proposes is rescored
changes      what an index needs of the table: streams of rows, the difference of two versions
folder       how indexes are published, listed and thrown away
building     the table of kinds; from a table to a published index
supply       which index serves a version
words        indexes of words for the versions of a memory
"""

from latentrag.memory.indexes.building import INDEX_KINDS, BuiltIndex, build_index
from latentrag.memory.indexes.folder import IndexFolder
from latentrag.memory.indexes.index import Hits, Index
from latentrag.memory.indexes.supply import IndexSupply
from latentrag.memory.indexes.words import BuiltWords

__all__ = ["INDEX_KINDS", "BuiltIndex", "BuiltWords", "Hits", "Index", "IndexFolder", "IndexSupply", "build_index"]
