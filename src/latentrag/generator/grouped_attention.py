"""Attention with gradients where several heads read the same keys (grouped queries, Ainslie et al. 2023).

On a processor torch's own repeats keys and values for every head, and sums their gradients up again. Heads that share
keys may stand side by side instead, as positions of one head. Where few queries read many keys, as a question and its
answer do after a passage, plain products take less time still and no more memory.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_BYTES_OF_WEIGHTS = 6
"""Of each weight the plain way keeps float32 and, for the product with the values, bfloat16."""


def stands_in(query: Tensor, key: Tensor, mask: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether ``attend_side_by_side`` does what is asked for, and sooner; all as ``shared_context.attend`` has it."""
    return (
        query.device.type == "cpu"
        and torch.is_grad_enabled()
        and (query.requires_grad or key.requires_grad)
        and query.shape[1] > key.shape[1]
        and mask.shape[1] == 1
        and not options.get("dropout")
        and options.get("softcap") is None
        and options.get("position_bias") is None
    )


def attend_side_by_side(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float | None) -> Tensor:
    """softmax(query keyᵀ · scaling) value, head n of the queries reading head n // (N / N') of the keys.

    Args:
        query: (R, N, Q, D).
        key, value: (R, N', S, D), N a multiple of N'.
        mask: (R or 1, 1, Q, S) bool, True = seen, or added to the logits.
        scaling: default D^-½.
    Returns: (R, Q, N, D).
    """
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    together = query.reshape(rows, -1, groups * length, width)  # (R, N', G·Q, D)
    if _plain_keeps_less(query, key):
        logits = (together @ key.transpose(2, 3)).float().unflatten(2, (groups, length)) * scale  # (R, N', G, Q, S)
        weights = torch.softmax(_seen(logits, mask[:, :, None]), dim=4).to(query.dtype)
        found = weights.flatten(2, 3) @ value
    else:
        every = mask.expand(rows, -1, -1, -1).repeat(1, 1, groups, 1)
        found = functional.scaled_dot_product_attention(together, key, value, every, scale=scale)
    return found.reshape(rows, heads, length, -1).transpose(1, 2).contiguous()


def _plain_keeps_less(query: Tensor, key: Tensor) -> bool:
    """Whether weights of all queries are no larger than keys and values repeated for every head."""
    length, width = query.shape[2:]
    return _BYTES_OF_WEIGHTS * length <= 2 * width * key.element_size()


def _seen(logits: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)  # not −inf: a row that sees nothing is no NaN
    return logits + mask
