"""Key–value caches of transformers: rows chosen, padding moved, positions of left-padded tokens."""

import copy
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


def shift_right(cache: Any, by: Tensor) -> None:
    """Move every row's positions so that its padding at the end comes to stand at the beginning; by: (R,)."""
    if not bool(by.any()):
        return
    for layer in cache.layers:
        width = layer.keys.shape[2]
        places = (torch.arange(width, device=by.device) - by[:, None]) % width  # (R, S)
        places = places[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
        layer.keys, layer.values = layer.keys.gather(2, places), layer.values.gather(2, places)
