"""Key–value caches of transformers: rows chosen, padding moved, positions of left-padded tokens."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latentrag.generator.grid import are_all


def token_positions(mask: Tensor) -> Tensor:
    """(R, S) position of every token in its row; padding gets 0."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def selected(cache: Any, index: Tensor) -> Any:
    """The rows at ``index`` as a cache of their own: what is appended to it does not reach the given one."""
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in cache.layers]
    if not are_all(index, cache.layers[0].keys.shape[0]):
        own.batch_select_indices(index)
    return own


def joined(parts: Sequence[tuple[Any, Tensor]], rows: Sequence[Sequence[int]]) -> tuple[Any, Tensor]:
    """One cache of what several hold, every row's tokens moved to its end. The parts are used up.

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
        for (cache, _), place, goal in zip(parts, places, goals, strict=True):
            layer = cache.layers.pop(0)
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
