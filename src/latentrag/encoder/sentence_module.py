"""What a sentence encoder is made of: how texts are written, and transformer → pooling → head."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from latentrag.encoder.batching import TokenBatch
from latentrag.encoder.pooling import Dense, Normalize, Pooling
from latentrag.types import Passage

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class SentenceSettings:
    """What the texts go through before the tokenizer.

    Attributes:
        query_prompt: put before each question.
        passage_prompt: put before each passage.
        lower_case: whether texts are lower-cased here, whatever the tokenizer does.
    """

    query_prompt: str = ""
    passage_prompt: str = ""
    lower_case: bool = False

    def question(self, x: str) -> str:
        return self._text(self.query_prompt + x)

    def passage(self, z: Passage) -> str:
        """The title, where there is one, on a line of its own; then the text."""
        return self._text(self.passage_prompt + (f"{z.title}\n{z.text}" if z.title else z.text))

    def _text(self, text: str) -> str:
        return text.strip().lower() if self.lower_case else text.strip()


class SentenceModule(nn.Module):
    """Transformer → pooling → head. The head stays in float32, whatever the transformer's dtype."""

    def __init__(self, transformer: PreTrainedModel, pooling: Pooling, head: Sequence[Normalize | Dense]) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling
        self.head = nn.Sequential(*head)
        self._takes_type_ids = "token_type_ids" in inspect.signature(transformer.forward).parameters

    @property
    def normalised(self) -> bool:
        """Whether its vectors have length 1."""
        return len(self.head) > 0 and isinstance(self.head[-1], Normalize)

    @property
    def dimension(self) -> int:
        layers = [layer for layer in self.head if isinstance(layer, Dense)]
        pooled = int(self.transformer.config.hidden_size) * len(self.pooling.modes)
        return layers[-1].linear.out_features if layers else pooled

    def forward(self, batch: TokenBatch, num_prompt_tokens: int = 0) -> Float[Tensor, "B D"]:
        """Vectors of a batch whose first ``num_prompt_tokens`` tokens belong to the prompt."""
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
        if self._takes_type_ids:
            inputs["token_type_ids"] = batch.type_ids
        hidden = self.transformer(**inputs).last_hidden_state.float()  # (B, S, D)
        mask = batch.mask
        if not self.pooling.include_prompt:
            mask = mask & (torch.arange(mask.shape[1], device=mask.device) >= num_prompt_tokens)
        vectors: Tensor = self.head(self.pooling(hidden, mask))
        return vectors
