"""Attention of several beams to one context: its keys and values stand once for (x, z), never once for each beam.

Row (c, m) of a decoder is beam m of context c. In cross-attention the M queries of a context attend side by side, as
positions of one row: a query sees all keys, whatever stands beside it. In the self-attention of a causal model they
attend to the context side by side and to their own tokens each alone, under one softmax.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "latentrag_shared_context"
SWITCH = "LATENTRAG_SHARED_CONTEXT"
"""The environment's variable that turns this off: 0."""


def share_context(model: PreTrainedModel) -> bool:
    """Let a model's decoder take M rows for every row of its context.

    Models of transformers that choose their attention by name and use torch's may be able to; others, and models whose
    attention somebody chose, are left as they are.

    Returns: whether it may be able to now; whether its numbers are right is for a probe to say.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    before = _attention_of(model)
    if before == NAME:
        return True
    if before != "sdpa" or os.environ.get(SWITCH) == "0":
        return False
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return _attention_of(model) == NAME


def copy_context(model: PreTrainedModel) -> None:
    """Undo ``share_context``."""
    if _attention_of(model) == NAME:
        model.set_attn_implementation("sdpa")


def _attention_of(model: PreTrainedModel) -> str | None:
    config = model.config.get_text_config(decoder=True)
    name: str | None = getattr(config, "_attn_implementation", None)
    return name


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Torch's attention, but for rows that share a context.

    Args:
        query: (C·M, N, Q, D).
        key, value: (C, N', S, D), or (C·M, N', S, D) with ``key.context`` = keys and values (C, N', S', D) before;
            with ``key.beside`` those of several states, whose rows stand one after the other; with ``key.in_a_row``
            those of passages that stand one after the other in one row, of these lengths.
        attention_mask: over all keys, also those of the context. Of several states the columns end together.
    Returns: (C·M, Q, N, D), and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    beside = getattr(key, "beside", None)
    if beside is not None:
        return _each(module, query, beside, attention_mask, **options), None
    lengths = getattr(key, "in_a_row", None)
    if lengths is not None:
        return _each_in_turn(module, query, key, value, lengths, **options), None
    context = getattr(key, "context", None)
    if context is not None:
        return _after_context(query, key, value, context, attention_mask, **options), None
    num_beams = query.shape[0] // key.shape[0]
    if num_beams <= 1:
        attended: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
        return attended, None
    options |= {"is_causal": False, "position_bias": _repeated(options.get("position_bias"), num_beams)}
    mask = _repeated(attention_mask, num_beams)
    attended = sdpa_attention_forward(module, _side_by_side(query, num_beams), key, value, mask, **options)[0]
    return attended.unflatten(1, (num_beams, -1)).flatten(0, 1), None  # (C, M·Q, N, D) → (C·M, Q, N, D)


def _each(
    module: nn.Module,
    query: Tensor,
    states: Sequence[tuple[int, Tensor, Tensor]],
    mask: Tensor | None,
    **options: Any,
) -> Tensor:
    """``attend`` of several states, each to its own keys. states: of each its rows, keys and values."""
    attended, start = [], 0
    for num_rows, key, value in states:
        rows = slice(start, start + num_rows)
        width = key.shape[2] + (key.context[0].shape[2] if hasattr(key, "context") else 0)
        of_rows = None if mask is None else mask[rows, ..., -width:]
        attended.append(attend(module, query[rows], key, value, of_rows, **options)[0])
        start += num_rows
    return torch.cat(attended)


def _each_in_turn(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], **options: Any
) -> Tensor:
    """Torch's attention of passages (1, N, S, D) in one row, each to itself, as if it were read alone."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if options.get("position_bias") is not None:
        raise ValueError("a bias of positions is of one passage, not of several in a row")
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *part, None, **options)[0] for part in parts], dim=1)


def _side_by_side(query: Tensor, num_beams: int) -> Tensor:
    """(C·M, N, Q, D) → (C, N, M·Q, D)."""
    beside: Tensor = query.unflatten(0, (-1, num_beams)).transpose(1, 2).flatten(2, 3)
    return beside


def _repeated(of_positions: Tensor | None, num_beams: int) -> Tensor | None:
    """(…, Q, S) → (…, M·Q, S)."""
    return None if of_positions is None else of_positions.repeat(1, 1, num_beams, 1)


def _after_context(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    context: tuple[Tensor, Tensor],
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: object,
) -> Tensor:
    """One token of each beam (Q = 1) after its context and its own tokens. Returns (C·M, 1, N, D)."""
    if query.shape[2] != 1 or softcap is not None:
        raise ValueError("beams share a context one token at a time, and without a soft cap")
    keys, values = context
    rows, heads, width = query.shape[0], query.shape[1], query.shape[3]
    groups = heads // key.shape[1]
    num_beams = rows // keys.shape[0]
    scale = width**-0.5 if scaling is None else scaling
    own = query.reshape(rows, -1, groups, width)  # (C·M, N', G, D): heads that share keys stand side by side
    together = _side_by_side(own, num_beams)  # (C, N', M·G, D)
    before = together @ keys.transpose(2, 3)  # (C, N', M·G, S')
    before = before.unflatten(2, (num_beams, groups)).transpose(1, 2).flatten(0, 1)  # (C·M, N', G, S')
    scores = torch.cat([before, own @ key.transpose(2, 3)], dim=3).float() * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, dim=3).to(query.dtype)
    first, rest = weights.split([keys.shape[2], key.shape[2]], dim=3)
    of_all = _side_by_side(first, num_beams) @ values  # (C, N', M·G, D)
    of_context = of_all.unflatten(2, (num_beams, groups)).transpose(1, 2).flatten(0, 1)  # (C·M, N', G, D)
    both: Tensor = of_context + rest @ value
    return both.reshape(rows, 1, heads, width)
