"""Caches of beams: what was read of (x, z) stands once, the beams' own tokens are appended in place.

Beams follow their parents with one copy of their own tokens; nothing that was read before is touched.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from latentrag.generator.grid import are_all

_ROOM = 16
"""Positions to begin with; doubled when they are used up."""


class BeamLayer:
    """A layer of a cache: keys and values (R, N, S, D) of the beams' own tokens, which lie as (S, R, N, D), with room
    for more positions.

    A step writes its position behind the others. When beams follow their parents, rows are copied into a second pair
    of buffers, which changes places with the first: no step asks for memory.

    Args:
        context: keys and values (C, N, S', D) that come before these tokens, where every M rows share one of the C;
            ``shared_context.attend`` looks for them.
    """

    def __init__(self, context: tuple[Tensor, Tensor] | None = None) -> None:
        self.context = context
        self.keys: Any = None
        self.values: Any = None
        self.is_initialized = True
        self._length = 0
        self._buffers: list[Tensor] = []  # keys, values: (room, R, N, D)
        self._spare: list[Tensor] = []  # flat

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        rows, heads, added, width = key_states.shape
        new = [states.permute(2, 0, 1, 3) for states in (key_states, value_states)]
        total = self._length + added
        if not self._buffers:
            self._buffers = [states.new_empty(max(_ROOM, 2 * total), rows, heads, width) for states in new]
        while total > len(self._buffers[0]):
            self._buffers = [torch.cat([held, torch.empty_like(held)]) for held in self._buffers]
        for held, states in zip(self._buffers, new, strict=True):
            held[self._length : total] = states
        self._length = total
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the beams' own tokens; see ``select_contexts``."""
        chosen = []
        for number, held in enumerate(self._buffers):
            into = self._room(number, [held.shape[0], len(indices), *held.shape[2:]], held)
            torch.index_select(held[: self._length], 1, indices, out=into[: self._length])
            chosen.append(into)
        self._spare = [held.view(-1) for held in self._buffers]
        self._buffers = chosen
        if chosen:
            self._show()

    def select_contexts(self, indices: Tensor) -> None:
        if self.context is not None:
            keys, values = self.context
            self.context = (keys[indices], values[indices])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self._length + (0 if self.context is None else self.context[0].shape[2])

    def _room(self, number: int, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uninitialised, in the spare buffer where that is large enough."""
        size = torch.Size(shape).numel()
        if number < len(self._spare) and self._spare[number].numel() >= size:
            return self._spare[number][:size].view(shape)
        return like.new_empty(shape)

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (held[: self._length].permute(1, 2, 0, 3) for held in self._buffers)
        if self.context is not None:
            self.keys.context = self.context
        return self.keys, self.values


@cache
def _layer_of_transformers() -> Any:
    """A ``BeamLayer`` that transformers takes for one of its own."""
    from transformers.cache_utils import DynamicLayer

    return type("BeamLayer", (BeamLayer, DynamicLayer), {})


def beam_cache(read: Any = None, rows: Tensor | None = None) -> Any:
    """A cache of transformers, of ``BeamLayer``s.

    Args:
        read: a cache of what comes before the beams' own tokens.
        rows: which of its rows are the contexts (C,).
    """
    from transformers import Cache

    if read is None:
        return Cache(layer_class_to_replicate=_layer_of_transformers())
    made = Cache(layers=[_layer_of_transformers()((layer.keys, layer.values)) for layer in read.layers])
    if rows is not None and not are_all(rows, len(read.layers[0].keys)):
        select_contexts(made, rows)
    return made


def select_contexts(of_beams: Any, indices: Tensor) -> None:
    """Only what comes before the beams' own tokens."""
    for layer in of_beams.layers:
        layer.select_contexts(indices)
