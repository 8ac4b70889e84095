"""What a causal model reads of passages: keys and values that do not depend on the question, read once."""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from latentrag.generator.gold import OutputHead
from latentrag.generator.grid import padded
from latentrag.generator.lora import MARK, without_lora
from latentrag.generator.own_logits import OwnLogits
from latentrag.generator.passage_cache import Layers, PassageCache

_READ_TOKENS = 4096
"""Tokens of passages read in one forward pass on an accelerator, padding included. A processor reads each passage
alone, which takes no longer and makes what is kept of it independent of what was read beside it."""


class PassageReader:
    """Reads passages, each alone in its context.

    Args:
        untouched: the model's adapter leaves passages alone (scope "question").
        cache: keeps what was read, until a weight that reads it changes in place (an optimiser's step). One on disk
            is for weights that do not.
    """

    def __init__(
        self, model: Any, head: OutputHead | OwnLogits, *, pad_id: int, untouched: bool, cache: PassageCache | None
    ) -> None:
        self._model = model
        self._head = head
        self._pad_id = pad_id
        self._untouched = untouched
        self.cache = cache
        self._weights = self._state_of_weights()

    def past(self, rows: Sequence[Sequence[int]], *, recurring: bool) -> tuple[Any, Tensor]:
        """The cache of these passages, left-padded, and its mask (R, P); read where they are not known yet."""
        from transformers import DynamicCache

        if self.cache is not None and (now := self._state_of_weights()) != self._weights:
            self.cache.forget()
            self._weights = now
        known = self._layers_of({tuple(row) for row in rows}, self.cache if recurring else None)
        cache, width = DynamicCache(), max(map(len, rows))
        mask = torch.arange(width) >= width - torch.tensor([len(row) for row in rows])[:, None]
        if width == 0:
            return cache, mask.to(self._model.device)
        for number, layer in enumerate(known[max(map(tuple, rows), key=len)]):
            whole = layer.new_zeros(2, len(rows), layer.shape[1], width, layer.shape[3])
            for r, row in enumerate(rows):
                if row:
                    whole[:, r, :, width - len(row) :] = known[tuple(row)][number]
            keys, values = whole.to(self._model.device)
            cache.update(keys, values, number)
        return cache, mask.to(self._model.device)

    def _state_of_weights(self) -> int:
        """Changes with every change in place of a weight that reads passages."""
        named = self._model.named_parameters()
        return sum(weight._version for name, weight in named if not (self._untouched and MARK in name))  # noqa: SLF001

    @torch.no_grad()
    def _layers_of(
        self, rows: Collection[tuple[int, ...]], cache: PassageCache | None
    ) -> dict[tuple[int, ...], Layers]:
        """Keys and values of passages, without an adapter whose scope is the question."""
        found: dict[tuple[int, ...], Layers] = {}
        unread: list[tuple[int, ...]] = []
        for row in sorted(filter(None, rows), key=lambda row: (-len(row), row)):
            kept = cache.get(row) if cache is not None else None
            if kept is None:
                unread.append(row)
            else:
                found[row] = kept
        while unread:
            size = 1 if self._model.device.type == "cpu" else max(1, _READ_TOKENS // len(unread[0]))
            batch, unread = unread[:size], unread[size:]
            fresh = self._read_passages(batch)
            found.update(fresh)
            if cache is not None:
                for row, layers in fresh.items():
                    cache.put(row, layers)
        return found

    def _read_passages(self, batch: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Layers]:
        from transformers import DynamicCache

        ids, mask = padded(batch, pad=self._pad_id)
        with without_lora(self._model) if self._untouched else nullcontext():
            # The output layer sees one position; padding comes last, where no token attends to it.
            _, output = self._head.run(
                input_ids=ids.to(self._model.device),
                attention_mask=mask.long().to(self._model.device),
                past_key_values=DynamicCache(),
                use_cache=True,
            )
        layers = [torch.stack([layer.keys, layer.values]) for layer in output.past_key_values.layers]
        return {row: [layer[:, r, :, : len(row)].clone() for layer in layers] for r, row in enumerate(batch)}
