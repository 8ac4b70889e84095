"""An index built anew beside the searches that go on."""

from __future__ import annotations

import atexit
import threading
import warnings
from typing import TYPE_CHECKING

from latentrag.errors import LatentRagError
from latentrag.memory.indexes.building import build, plan
from latentrag.types import IndexKind

if TYPE_CHECKING:
    from latentrag.memory.table import Table


class _StopBuildingError(Exception):
    """The process ends."""


class Renewal:
    """One build at a time, in a thread of its own. A process that ends has it stop first, and leaves nothing."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def start(self, table: Table, kind: IndexKind) -> None:
        """Build and publish an index of this version, unless a build is going on. The next version opened finds it."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._thread = threading.Thread(target=self._build, args=(table, kind), name="latentrag-index", daemon=True)
        atexit.register(self._end)
        self._thread.start()

    def wait(self) -> None:
        """Until the build that is going on has ended."""
        if self._thread is not None:
            self._thread.join()

    def _end(self) -> None:
        self._stop.set()
        self.wait()

    def _build(self, table: Table, kind: IndexKind) -> None:
        def progress(*_: object) -> None:
            if self._stop.is_set():
                raise _StopBuildingError

        try:
            build(table, plan(kind, len(table), table.manifest.dimension), progress=progress)
        except _StopBuildingError:
            return
        except LatentRagError as error:
            warnings.warn(f"the index of {table.path} was not renewed: {error}", stacklevel=2)
        finally:
            atexit.unregister(self._end)
