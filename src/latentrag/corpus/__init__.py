"""Files → documents → passages, as a stream: a 10 GB file is read in constant memory."""

from latentrag.corpus.passages import passages, split
from latentrag.corpus.reading import read

__all__ = ["passages", "read", "split"]
