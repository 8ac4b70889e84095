"""Files → documents → passages, as a stream: a 10 GB file is read in constant memory."""

from latentrag.corpus.readers import READERS, Ledger, Reader, UnreadableError
from latentrag.corpus.reading import passages, read
from latentrag.corpus.splitting import bounds_of, split

__all__ = ["READERS", "Ledger", "Reader", "UnreadableError", "bounds_of", "passages", "read", "split"]
