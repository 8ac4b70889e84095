"""The log of a memory: what each commit did, and when."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

from latentrag.memory import files

if TYPE_CHECKING:
    import lance


@dataclass(frozen=True, slots=True)
class Version:
    """One commit of a memory. ``change`` says what it did, in words; ``time`` is UTC."""

    number: int
    time: datetime
    num_passages: int
    change: str


def log(path: Path, dataset: lance.LanceDataset) -> list[Version]:
    """Every version up to that of ``dataset``, oldest first. Those that cannot be read are left out, with a warning."""
    newest = int(dataset.version)
    numbers = [number for number in files.version_numbers(path) if number <= newest]
    return [found for found in (_logged(path, dataset, number) for number in numbers) if found is not None]


def _logged(path: Path, newest: lance.LanceDataset, number: int) -> Version | None:
    import lance

    try:
        dataset = lance.dataset(str(path), version=number, session=newest.session())
        found = dataset.get_version()
        change = _change(dataset)
    except BaseException as error:
        if not files.is_lances(error):
            raise
        warnings.warn(f"version {number} of {path} cannot be read ({files.reason(error)})", stacklevel=4)
        return None
    return Version(
        number=number,
        # Lance gives local time without a zone.
        time=cast("datetime", found["timestamp"]).astimezone(UTC),
        num_passages=int(found["metadata"]["total_rows"]),
        change=change,
    )


def _change(dataset: lance.LanceDataset) -> str:
    """What a version's commit said that it does."""
    from lance.dataset import LANCE_COMMIT_MESSAGE_KEY

    transaction = dataset.read_transaction(dataset.version)
    properties = (transaction.transaction_properties if transaction else None) or {}
    return properties.get(LANCE_COMMIT_MESSAGE_KEY, "unknown")
