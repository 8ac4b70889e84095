"""log p(y|x) under the paper's two models."""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from latentrag.errors import InputError, ShapeError
from latentrag.marginal.prior import accurate


def checked(
    log_p_eta: Tensor, log_p_theta: Tensor, mask: Tensor
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K T"]]:
    """The two tensors in float32 or better, masked positions of the second at 0: a token that is not there has
    probability one.

    Raises: ShapeError if the shapes do not fit together.
    """
    if log_p_theta.dim() != 3:
        raise ShapeError(f"log_p_theta has shape {tuple(log_p_theta.shape)}; needed (B, K, T)")
    num_questions, num_passages, num_tokens = log_p_theta.shape
    if tuple(log_p_eta.shape) != (num_questions, num_passages):
        raise ShapeError(
            f"log_p_eta has shape {tuple(log_p_eta.shape)}; log_p_theta {tuple(log_p_theta.shape)} needs "
            f"({num_questions}, {num_passages})"
        )
    if tuple(mask.shape) != (num_questions, num_tokens):
        raise ShapeError(
            f"mask has shape {tuple(mask.shape)}; log_p_theta {tuple(log_p_theta.shape)} needs "
            f"({num_questions}, {num_tokens})"
        )
    # Filling, not multiplying: −inf or NaN in the padding must not reach the sum.
    return accurate(log_p_eta), accurate(log_p_theta).masked_fill(~mask.bool()[:, None, :], 0.0)


def sequence_log_likelihood(
    log_p_eta: Float[Tensor, "B K"], log_p_theta: Float[Tensor, "B K T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B"]:
    """Log-likelihood of y under RAG-Sequence (Lewis et al. 2020, §2.1).

        log p(y|x) = log Σ_z p_η(z|x) Π_i p_θ(y_i|x,z,y_<i)

    Args:
        log_p_eta: (B, K) nats, normalised over K.
        log_p_theta: (B, K, T) nats, of the gold tokens.
        mask: (B, T), True = scored.
    Returns: (B,) nats.
    Raises: ShapeError if the shapes do not fit together.
    """
    prior, tokens = checked(log_p_eta, log_p_theta, mask)
    return (prior + tokens.sum(dim=2)).logsumexp(dim=1)  # (B,)


def token_log_likelihood(
    log_p_eta: Float[Tensor, "B K"], log_p_theta: Float[Tensor, "B K T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B"]:
    """Log-likelihood of y under RAG-Token (Lewis et al. 2020, §2.1).

        log p(y|x) = Σ_i log Σ_z p_η(z|x) p_θ(y_i|x,z,y_<i)

    Args:
        log_p_eta: (B, K) nats, normalised over K.
        log_p_theta: (B, K, T) nats, of the gold tokens.
        mask: (B, T), True = scored.
    Returns: (B,) nats.
    Raises: ShapeError if the shapes do not fit together.
    """
    prior, tokens = checked(log_p_eta, log_p_theta, mask)
    log_p = (prior[:, :, None] + tokens).logsumexp(dim=1)  # (B, T)
    # logsumexp of the prior is 0 only to rounding, so masked positions are dropped rather than trusted.
    return log_p.masked_fill(~mask.bool(), 0.0).sum(dim=1)  # (B,)


def log_likelihood(
    log_p_eta: Float[Tensor, "B K"],
    log_p_theta: Float[Tensor, "B K T"],
    mask: Bool[Tensor, "B T"],
    *,
    variant: Literal["sequence", "token"],
) -> Float[Tensor, "B"]:
    """Log-likelihood of y under the named model: ``sequence_log_likelihood`` or ``token_log_likelihood``.

    Args:
        log_p_eta: (B, K) nats, normalised over K.
        log_p_theta: (B, K, T) nats, of the gold tokens.
        mask: (B, T), True = scored.
        variant: "sequence" or "token".
    Returns: (B,) nats.
    Raises: ShapeError if the shapes do not fit together; InputError for another variant.
    """
    if variant == "sequence":
        return sequence_log_likelihood(log_p_eta, log_p_theta, mask)
    if variant == "token":
        return token_log_likelihood(log_p_eta, log_p_theta, mask)
    raise InputError(f"variant={variant!r} is unknown; needed 'sequence' or 'token'")
