"""Rows of tokens → vectors: batches of similar length, padded to their longest, results in the order given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from latentrag.encoder.tokens import TokenRow

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor, nn
    from transformers import PreTrainedModel

BATCH_TOKENS = 4096
"""Tokens in a batch on an accelerator, padding included."""
PROCESSOR_BATCH_TOKENS = 1024
"""The same on a processor, where what a layer computes should stay in its caches: a fifth faster than 4,096 in
float32, a tenth in bfloat16 (all-MiniLM-L6-v2)."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows padded on the right. mask: True = real token."""

    ids: Int[Tensor, "B S"]
    type_ids: Int[Tensor, "B S"]
    mask: Bool[Tensor, "B S"]


def encode_rows(
    rows: Sequence[TokenRow],
    forward: Callable[[TokenBatch], Float[Tensor, "B D"]],
    *,
    module: PreTrainedModel,
    dimension: int,
    batch_tokens: int | None = None,
    progress: bool = False,
) -> Float[Tensor, "N D"]:
    """(N, D) float32, row i for ``rows[i]``; differentiable wherever ``forward`` is.

    Args:
        module: the transformer inside ``forward``, for its device and padding.
        dimension: D.
        batch_tokens: tokens in a batch, padding included; None: as many as suit the device.
    """
    device, pad_id = module.device, module.config.pad_token_id or 0
    if batch_tokens is None:
        batch_tokens = PROCESSOR_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS
    parts = [torch.empty((0, dimension), device=device)]
    order: list[int] = []
    with _progress_bar(len(rows), shown=progress) as advance:
        for indices in length_sorted_batches([len(row) for row in rows], batch_tokens):
            parts.append(forward(_padded([rows[i] for i in indices], pad_id, device)).float())  # (B, D)
            order += indices
            advance(len(indices))
    return torch.cat(parts)[torch.tensor(order, dtype=torch.int64, device=device).argsort()]  # (N, D)


def length_sorted_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of ``lengths`` in batches, longest first, each of at most ``batch_tokens`` with its padding.

    A longer row has a batch to itself. Longest first, so that memory runs out at once or never.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _padded(rows: Sequence[TokenRow], pad_id: int, device: torch.device) -> TokenBatch:
    lengths = torch.tensor([len(row) for row in rows])
    ids = pad_sequence([row.ids for row in rows], batch_first=True, padding_value=pad_id)  # (B, S)
    type_ids = pad_sequence([row.type_ids for row in rows], batch_first=True)  # (B, S)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]  # (B, S)
    return TokenBatch(ids.long().to(device), type_ids.long().to(device), mask.to(device))


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within: eval mode and no gradient, also for a model that is in the middle of training."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        # Not inference_mode: its tensors could not meet a query that needs a gradient.
        with torch.no_grad():
            yield
    finally:
        for child, training in modes:
            child.training = training


@contextmanager
def _progress_bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("encoding passages", total=total)
        yield lambda num_rows: bar.advance(task, num_rows)
