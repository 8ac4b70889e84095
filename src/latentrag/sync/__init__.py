"""A memory kept equal to a folder: what is new is added, what changed is updated, what is gone is reported."""

from latentrag.options import SyncOptions
from latentrag.sync.report import Progress, Report, Tally
from latentrag.sync.run import sync

__all__ = ["Progress", "Report", "SyncOptions", "Tally", "sync"]
