"""The prior over passages, p_η(z|x)."""

import torch
from jaxtyping import Float
from torch import Tensor

from latentrag.errors import ShapeError


def accurate(values: Tensor) -> Tensor:
    """``values`` in float32, or as they are where they are more precise already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def log_prior(scores: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Log-prior over the retrieved passages (Lewis et al. 2020, §2.2).

        p_η(z|x) ∝ exp(d(z)ᵀ q(x)), normalised over the top K

    Args:
        scores: (B, K) d(z)·q(x), times the encoder's scale where it has one. −inf takes a passage out.
    Returns: (B, K) nats; every row sums to one in probability.
    Raises: ShapeError unless there are two dimensions and at least one passage.
    """
    if scores.dim() != 2 or scores.shape[1] == 0:
        raise ShapeError(f"scores have shape {tuple(scores.shape)}; needed (B, K) with K ≥ 1")
    return torch.log_softmax(accurate(scores), dim=1)  # (B, K)
