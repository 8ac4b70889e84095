"""The kinds of retrievers, by the name that options and saved models have for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, Protocol

from latentrag.place import Places
from latentrag.protocols import Memory, Retriever
from latentrag.registry import Table
from latentrag.retriever.dense import TrainableQueryEncoder


class ModelParts(Protocol):
    """The parts of a model, of which a retriever opens those that it needs."""

    def query_encoder(self) -> TrainableQueryEncoder:
        """q(x). Raises: ModelError if the model has none."""
        ...

    def folder(self, name: str) -> Path:
        """Where a part of this name was saved. Raises: ModelError if the model has none."""
        ...


RetrieverFactory = Callable[Concatenate[ModelParts, Memory, Places, ...], Retriever]
"""Makes a retriever over a memory: (parts, memory, places, **settings). The settings are as the retriever's
``settings()`` gave them when the model was saved, by name; none otherwise. InputError for settings that cannot be;
EncoderMismatchError if the memory does not fit."""


RETRIEVERS: Table[RetrieverFactory] = Table(
    "retriever",
    {
        "dense": "latentrag.retriever.dense:dense",
        "bm25": "latentrag.retriever.bm25:bm25",
        "hybrid": "latentrag.retriever.hybrid:hybrid",
    },
    group="latentrag.retrievers",
)
