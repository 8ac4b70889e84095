"""Rows and key–value caches: B questions × K passages × M beams as rows of one batch, how rows follow their beams, and
caches of transformers whose rows are chosen, joined, or shared by the beams of a context."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache
    from transformers.cache_utils import DynamicLayer

# Rows


def rows_of_questions(index: Tensor, num_passages: int) -> Tensor:
    """Rows (R·K,) of the questions at ``index`` (R,), where question b has rows b·K … b·K + K − 1."""
    offsets = torch.arange(num_passages, device=index.device)
    return (index[:, None] * num_passages + offsets).reshape(-1)


def rows_of_parents(parents: Tensor, num_passages: int, num_beams: int) -> Tensor:
    """Rows (B'·K·M',) that the beams ``parents`` (B', M') continue.

    ``parents`` indexes the previous (B, M) flattened; row (b, k, m) of the previous batch is (b·K + k)·M + m.
    """
    question, beam = parents // num_beams, parents % num_beams  # (B', M')
    passage = torch.arange(num_passages, device=parents.device)[None, :, None]
    return ((question[:, None, :] * num_passages + passage) * num_beams + beam[:, None, :]).reshape(-1)


def are_all(rows: Tensor, number: int) -> bool:
    """Whether ``rows`` are 0 … number − 1, in order."""
    return len(rows) == number and torch.equal(rows, torch.arange(number, device=rows.device))


def token_positions(mask: Tensor) -> Tensor:
    """(R, S) position of every token in its row; padding gets 0."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


# Caches


def selected(whole: Cache, index: Tensor) -> Cache:
    """The rows at ``index`` as a cache of their own: what is appended to it does not reach the given one."""
    own = copy.copy(whole)
    own.layers = [copy.copy(layer) for layer in whole.layers]
    if not are_all(index, whole.layers[0].keys.shape[0]):
        own.batch_select_indices(index)
    return own


def joined(parts: Sequence[tuple[Cache, Tensor]], rows: Sequence[Sequence[int]]) -> tuple[Cache, Tensor]:
    """One cache in place of several, with every row's tokens moved to its end. The parts are used up.

    Args:
        parts: caches, and which of their positions hold a token (R', S), without a gap between two of one row.
        rows: which rows of the result each part's become.
    Returns: the cache, and which of its positions hold a token (R, S).
    """
    from transformers import DynamicCache

    totals = [mask.sum(dim=1) for _, mask in parts]
    width = max(int(total.max()) for total in totals)
    if len(parts) == 1 and int(totals[0].min()) == parts[0][1].shape[1]:
        return parts[0]
    device = totals[0].device
    from_end = torch.arange(-width, 0, device=device)
    lengths = torch.empty(sum(map(len, rows)), dtype=torch.long, device=device)
    places, goals = [], [torch.tensor(of_part, device=device) for of_part in rows]
    for (_, mask), total, goal in zip(parts, totals, goals, strict=True):
        lengths[goal] = total
        first = mask.int().argmax(dim=1)[:, None]
        # Padding repeats the row's first token: nobody attends to it, but it has to be a number.
        places.append((first + total[:, None] + from_end).clamp(min=first))  # (R', S)
    whole = DynamicCache()
    for number in range(len(parts[0][0].layers)):
        like = parts[0][0].layers[0].keys
        both = like.new_empty(2, len(lengths), like.shape[1], width, like.shape[3])
        for (part, _), place, goal in zip(parts, places, goals, strict=True):
            layer = part.layers.pop(0)
            for into, states in zip(both, (layer.keys, layer.values), strict=True):
                into[goal] = _at_places(states, place)
        whole.update(both[0], both[1], number)
    return whole, from_end >= -lengths[:, None]


def _at_places(states: Tensor, places: Tensor) -> Tensor:
    """(R, N, S, D) at the positions (R, S') of each row: (R, N, S', D)."""
    rows, heads, width, size = states.shape
    start = torch.arange(rows * heads, device=states.device).view(rows, heads, 1) * width
    chosen = states.reshape(-1, size).index_select(0, (start + places[:, None]).flatten())
    return chosen.view(rows, heads, -1, size)


# Beams that share what was read before them


def beam_cache(read: Cache, rows: Tensor) -> Cache:
    """A cache for the beams' own tokens, which come after a context that stands once for all beams of a row.

    Args:
        read: a cache of the contexts.
        rows: which of its rows the contexts (C,) are.
    """
    from transformers import Cache

    made = Cache(layers=[_beam_layer()((layer.keys, layer.values)) for layer in read.layers])
    if not are_all(rows, len(read.layers[0].keys)):
        select_contexts(made, rows)
    return made


def select_contexts(of_beams: Cache, indices: Tensor) -> None:
    """Choose rows of the contexts alone, not of the beams' own tokens."""
    for layer in of_beams.layers:
        layer.context = tuple(states[indices] for states in layer.context)


@cache
def _beam_layer() -> type[DynamicLayer]:
    """The class of the layers of ``beam_cache``; made when it is first needed, as transformers is imported then."""
    from transformers.cache_utils import DynamicLayer

    class BeamLayer(DynamicLayer):  # type: ignore[misc]
        """Keys and values (C·M, N, S, D) of the beams' own tokens. They carry along those of the context (C, N, S', D),
        for ``shared_context.attend``."""

        def __init__(self, context: tuple[Tensor, Tensor]) -> None:
            super().__init__()
            self.context = context

        def update(self, *states: Tensor, **named: object) -> tuple[Tensor, Tensor]:
            keys, values = super().update(*states, **named)
            keys.context = self.context
            return keys, values

        def batch_select_indices(self, indices: Tensor) -> None:
            if self.is_initialized:
                super().batch_select_indices(indices)

        def get_seq_length(self) -> int:
            own = self.keys.shape[2] if self.is_initialized else 0
            return int(own + self.context[0].shape[2])

    return BeamLayer


# Several states in one pass


def beside(caches: Sequence[Cache], rows: Sequence[int]) -> Cache:
    """The caches of several states as one, for a pass over one token of each of their rows. What the pass appends, it
    appends to them.

    Args:
        caches: as ``beam_cache`` makes them.
        rows: how many each has.
    """
    from transformers import Cache

    of_layers = zip(*(cache.layers for cache in caches), strict=True)
    return Cache(layers=[_layer_beside()(layers, rows) for layers in of_layers])


@cache
def _layer_beside() -> type[DynamicLayer]:
    """The class of the layers of ``beside``."""
    from transformers.cache_utils import DynamicLayer

    class LayerBeside(DynamicLayer):  # type: ignore[misc]
        """The same layer of several caches. The keys that it returns carry those of each along, for
        ``shared_context.attend``."""

        def __init__(self, layers: Sequence[DynamicLayer], rows: Sequence[int]) -> None:
            super().__init__()
            self.layers, self.rows = layers, rows

        def update(self, keys: Tensor, values: Tensor, *_: object, **named: object) -> tuple[Tensor, Tensor]:
            parts = zip(self.layers, self.rows, keys.split(self.rows), values.split(self.rows), strict=True)
            carried: Any = keys
            carried.beside = [(number, *layer.update(*states, **named)) for layer, number, *states in parts]
            return keys, values

        def get_seq_length(self) -> int:
            return max(int(layer.get_seq_length()) for layer in self.layers)

    return LayerBeside


# Several passages in one row


def in_a_row(lengths: Sequence[int]) -> Cache:
    """An empty cache for one pass over passages that stand one after the other in a row, each seeing itself alone.

    Args:
        lengths: tokens of each.
    """
    from transformers import Cache

    layer: Any = _layer_in_a_row()
    return Cache(layer_class_to_replicate=lambda: layer(lengths))


@cache
def _layer_in_a_row() -> type[DynamicLayer]:
    """The class of the layers of ``in_a_row``."""
    from transformers.cache_utils import DynamicLayer

    class LayerInARow(DynamicLayer):  # type: ignore[misc]
        """Keys and values (1, N, S, D). They carry along where each passage ends, for ``shared_context.attend``."""

        def __init__(self, lengths: Sequence[int]) -> None:
            super().__init__()
            self.lengths = list(lengths)

        def update(self, *states: Tensor, **named: object) -> tuple[Tensor, Tensor]:
            keys, values = super().update(*states, **named)
            keys.in_a_row = self.lengths
            return keys, values

    return LayerInARow
