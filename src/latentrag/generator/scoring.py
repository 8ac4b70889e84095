"""What both kinds of generators share: log p_θ of gold tokens, through the output layer's gold column alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from latentrag.generator.gold import OutputHead
from latentrag.generator.own_logits import OwnLogits
from latentrag.generator.settings import decoding_defaults
from latentrag.types import Targets


class _Prepared(Protocol):
    @property
    def num_questions(self) -> int: ...

    @property
    def num_passages(self) -> int: ...


P = TypeVar("P", bound=_Prepared)
A = ParamSpec("A")
R = TypeVar("R")
S = TypeVar("S", bound="GoldScorer[Any]")


def one_at_a_time(method: Callable[Concatenate[S, A], R]) -> Callable[Concatenate[S, A], R]:
    """A method that computes with the model: threads wait for each other, for models are changed while they compute
    (the output layer is left out, an adapter is)."""

    @wraps(method)
    def waiting(self: S, /, *args: A.args, **named: A.kwargs) -> R:
        with self._head.lock:
            return method(self, *args, **named)

    return waiting


class GoldScorer(ABC, Generic[P]):
    """A model and its output layer. Subclasses say in ``_hidden`` how the layer's inputs come about."""

    model: Any
    _head: OutputHead | OwnLogits

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def decoding_defaults(self) -> Mapping[str, Any]:
        return decoding_defaults(self.model)

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """θ; with an adapter only its weights need a gradient."""
        named: Iterator[tuple[str, torch.nn.Parameter]] = self.model.named_parameters()
        return named

    @one_at_a_time
    def log_p_theta(self, prepared: P, targets: Targets) -> Tensor:
        log_p, _ = self._scored(prepared, targets)
        return log_p

    @one_at_a_time
    def log_p_theta_and_mean(
        self, prepared: P, targets: Targets, weigh: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        log_p, hidden = self._scored(prepared, targets)
        return log_p, self._head.mean_log_probs(hidden, weigh(log_p), targets.mask)

    def _scored(self, prepared: P, targets: Targets) -> tuple[Tensor, Tensor]:
        """log p of the gold tokens (B, K, T), and the inputs of the output layer (B·K, T, H)."""
        num_passages = prepared.num_passages
        ids = targets.ids.repeat_interleave(num_passages, dim=0)  # (B·K, T)
        mask = targets.mask.repeat_interleave(num_passages, dim=0)
        hidden = self._hidden(prepared, Targets(ids, mask))
        log_p = self._head.gold_log_probs(hidden, ids, mask)
        return log_p.view(prepared.num_questions, num_passages, -1), hidden

    @abstractmethod
    def _hidden(self, prepared: P, each: Targets) -> Tensor:
        """(B·K, T, H): what the output layer reads where it predicts the tokens of each row (B·K, T)."""
