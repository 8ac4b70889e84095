"""For models whose output layer's result is changed in ways that ``OutputHead`` does not know."""

import threading
from typing import Any

import torch
from torch import Tensor, nn

from latentrag.generator.gold import pick


class OwnLogits:
    """Stands in for ``OutputHead``: what it calls hidden states are the model's own logits, all of them held."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.lock = threading.RLock()
        self.linear = nn.Identity()

    def after(self, logits: Tensor) -> Tensor:
        return logits

    def run(self, **inputs: Any) -> tuple[Tensor, Any]:
        output = self.model(**inputs)
        return output.logits, output

    def gold_log_probs(self, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return pick(hidden, ids).masked_fill(~mask, 0.0)

    def mean_log_probs(self, hidden: Tensor, log_weights: Tensor, mask: Tensor) -> Tensor:
        num_questions, num_passages, num_tokens = log_weights.shape
        log_p = torch.log_softmax(hidden.float(), dim=-1).view(num_questions, num_passages, num_tokens, -1)
        marginal = (log_weights[..., None] + log_p).logsumexp(dim=1)  # (B, T, V)
        return marginal.mean(dim=-1).masked_fill(~mask, 0.0)
