"""p_η(z|x) with dense vectors: top-K by inner product, differentiable in the query encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from latentrag.protocols import Memory, QueryEncoder
from latentrag.types import Retrieved


class CheckedMemory(Memory, Protocol):
    """A memory that knows which query encoders its vectors can be compared with."""

    def check(self, query_encoder: QueryEncoder) -> None:
        """EncoderMismatchError for one that does not fit."""
        ...


class DenseRetriever:
    """The top-K of p_η(z|x) ∝ exp(s·d(z)·q(x)) (Lewis et al. 2020, §2.2).

    The search sees q(x) without its gradient, since which passages are the top K is not differentiable; their
    scores are computed again with it. d(z) is constant, as in §2.4.
    """

    def __init__(self, query_encoder: QueryEncoder, memory: CheckedMemory) -> None:
        """Raises: EncoderMismatchError if the memory holds the vectors of an encoder that does not fit."""
        memory.check(query_encoder)
        self.query_encoder = query_encoder
        self.memory = memory

    def retrieve(self, x: Sequence[str], k: int) -> Retrieved:
        """Passages and logits, best first, for B questions.

            scores[b, k] = s · Σ_i q(x_b)_i d(z_bk)_i

        Returns: scores (B, K) float32, on the device of the query encoder.
        Raises: InputError for a question that cannot be encoded, k < 1 or k > len(memory).
        """
        q = self.query_encoder.encode_queries(x).float()  # (B, D)
        found = self.memory.search(q.detach().cpu().numpy(), k)
        d = torch.from_numpy(found.vectors).to(q.device)  # (B, K, D)
        # Mixed precision would round the logits to a step of 0.5 at DPR's usual scores of about 80.
        with torch.autocast(q.device.type, enabled=False):
            scores = self.query_encoder.scale * torch.einsum("bd,bkd->bk", q, d)
        return Retrieved(passages=found.passages, scores=scores, version=found.version)
