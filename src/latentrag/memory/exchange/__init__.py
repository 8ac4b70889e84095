"""One version of a memory as plain files that anyone can check: Parquet for the rows, JSON for the rest."""

from latentrag.memory.exchange.listing import LISTING, ListedFile, Listing
from latentrag.memory.exchange.pull import pull
from latentrag.memory.exchange.push import push
from latentrag.memory.exchange.stores import Store, open_store

__all__ = ["LISTING", "ListedFile", "Listing", "Store", "open_store", "pull", "push"]
