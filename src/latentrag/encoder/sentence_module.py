"""What a sentence encoder is made of: transformer → pooling → head, and how texts are written for it.

What sentence-transformers calls Pooling, Normalize and Dense. Dimensions: B texts, S tokens, D embedding, E embedding
after a concatenation or layer. mask (B, S): True = a token that is pooled.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from latentrag.encoder.tokens import TokenBatch
from latentrag.types import Passage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def cls(hidden: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B D"]:
    """The vector of the first token."""
    first = mask.long().argmax(1)  # (B,)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def maximum(hidden: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B D"]:
    """The largest value of each dimension."""
    return hidden.masked_fill(~mask[:, :, None], -torch.inf).amax(1)


def mean(hidden: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B D"]:
    return _weighted_sum(hidden, mask) / mask.sum(1, keepdim=True)


def mean_sqrt_len(hidden: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B D"]:
    """The sum over the square root of the number of tokens."""
    return _weighted_sum(hidden, mask) / mask.sum(1, keepdim=True).sqrt()


def weighted_mean(hidden: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B D"]:
    """The mean with weight s for the s-th token of the row, counted from 1 (SGPT, Muennighoff 2022)."""
    weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)  # (B, S)
    return _weighted_sum(hidden, weights) / weights.sum(1, keepdim=True)


def last_token(hidden: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B D"]:
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * positions).amax(1)  # (B,)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _weighted_sum(hidden: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("bsd,bs->bd", hidden, weights.to(hidden.dtype))


POOLERS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "cls": cls,
        "max": maximum,
        "mean": mean,
        "mean_sqrt_len_tokens": mean_sqrt_len,
        "weightedmean": weighted_mean,
        "lasttoken": last_token,
    }
)
"""By sentence-transformers' names, in the order in which it concatenates them."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """Several modes are concatenated. ``include_prompt=False`` leaves the prompt's tokens out."""

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True

    def __call__(self, hidden: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B E"]:
        return torch.cat([POOLERS[mode](hidden, mask) for mode in self.modes], dim=-1)


ACTIVATIONS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {
        "torch.nn.modules.activation.Tanh": nn.Tanh,
        "torch.nn.modules.activation.ReLU": nn.ReLU,
        "torch.nn.modules.activation.GELU": nn.GELU,
        "torch.nn.modules.activation.SiLU": nn.SiLU,
        "torch.nn.modules.activation.Sigmoid": nn.Sigmoid,
        "torch.nn.modules.linear.Identity": nn.Identity,
    }
)
"""Those that a Dense layer may name; a folder never chooses what is imported."""


class Normalize(nn.Module):
    """Vectors of length 1."""

    def forward(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return functional.normalize(vectors, dim=-1)


class Dense(nn.Module):
    """A linear layer and an activation, one of ``ACTIVATIONS``."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, activation: str) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation_name = activation
        self.activation = ACTIVATIONS[activation]()

    def forward(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        activated: Tensor = self.activation(self.linear(vectors))
        return activated


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

    def __init__(self, transformer: "PreTrainedModel", pooling: Pooling, head: Sequence[Normalize | Dense]) -> None:
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
