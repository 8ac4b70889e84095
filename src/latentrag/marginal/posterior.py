"""Which passage explains y: posteriors, and what p(y|x) becomes without one of them."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentrag.errors import InputError, ShapeError
from latentrag.marginal.likelihood import checked, log_likelihood
from latentrag.marginal.prior import log_prior


def sequence_posterior(
    log_p_eta: Float[Tensor, "B K"], log_p_theta: Float[Tensor, "B K T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B K"]:
    """Posterior over passages given the whole y, under RAG-Sequence.

        p(z|x,y) ∝ p_η(z|x) Π_i p_θ(y_i|x,z,y_<i)

    Posterior minus prior is the gradient of log p(y|x) with respect to the scores (§2.4).

    Args:
        log_p_eta: (B, K) nats, normalised over K.
        log_p_theta: (B, K, T) nats, of the gold tokens.
        mask: (B, T), True = scored.
    Returns: (B, K) probabilities; every row sums to one.
    Raises: ShapeError if the shapes do not fit together.
    """
    prior, tokens = checked(log_p_eta, log_p_theta, mask)
    return torch.softmax(prior + tokens.sum(dim=2), dim=1)  # (B, K)


def token_posterior(
    log_p_eta: Float[Tensor, "B K"], log_p_theta: Float[Tensor, "B K T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B K T"]:
    """Posterior over passages for each token, under RAG-Token (the paper's Figure 2).

        p(z|x,y_i,y_<i) ∝ p_η(z|x) p_θ(y_i|x,z,y_<i)

    Summed over positions, posterior minus prior is the gradient of log p(y|x) with respect to the scores.

    Args:
        log_p_eta: (B, K) nats, normalised over K.
        log_p_theta: (B, K, T) nats, of the gold tokens.
        mask: (B, T), True = scored. A masked position says nothing about z and keeps the prior.
    Returns: (B, K, T) probabilities; they sum to one over K at every position.
    Raises: ShapeError if the shapes do not fit together.
    """
    prior, tokens = checked(log_p_eta, log_p_theta, mask)
    return torch.softmax(prior[:, :, None] + tokens, dim=1)  # (B, K, T)


def prefix_posterior(
    log_p_eta: Float[Tensor, "B K"], log_p_theta: Float[Tensor, "B K T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B K T"]:
    """Posterior over passages after each token, under RAG-Sequence: what is believed so far.

        p(z|x,y_≤i) ∝ p_η(z|x) Π_{j≤i} p_θ(y_j|x,z,y_<j)

    One step behind, these are the weights of the exact beam; the last column is ``sequence_posterior``.

    Args:
        log_p_eta: (B, K) nats, normalised over K.
        log_p_theta: (B, K, T) nats, of the gold tokens.
        mask: (B, T), True = scored. A masked position changes nothing.
    Returns: (B, K, T) probabilities; they sum to one over K at every position.
    Raises: ShapeError if the shapes do not fit together.
    """
    prior, tokens = checked(log_p_eta, log_p_theta, mask)
    return torch.softmax(prior[:, :, None] + tokens.cumsum(dim=2), dim=1)  # (B, K, T)


def marginal_weights(
    log_p_eta: Float[Tensor, "B K"],
    log_p_theta: Float[Tensor, "B K T"],
    mask: Bool[Tensor, "B T"],
    *,
    variant: Literal["sequence", "token"],
) -> Float[Tensor, "B K T"]:
    """Log-weights of the passages in the next token's marginal (§2.5).

        p(y_i|x,y_<i) = Σ_z w_{i,z} p_θ(y_i|x,z,y_<i),  RAG-Token:    w_{i,z} = p_η(z|x)
                                                        RAG-Sequence: w_{i,z} ∝ p_η(z|x) Π_{j<i} p_θ(y_j|x,z,y_<j)

    RAG-Sequence's are ``prefix_posterior`` one step behind. A passage that has given a token probability zero has
    no weight after it.

    Args:
        log_p_eta: (B, K) nats, normalised over K.
        log_p_theta: (B, K, T) nats, of the gold tokens.
        mask: (B, T), True = scored. A masked position changes nothing.
        variant: "sequence" or "token".
    Returns: (B, K, T) nats, normalised over K.
    Raises: ShapeError if the shapes do not fit together; InputError for another variant.
    """
    prior, tokens = checked(log_p_eta, log_p_theta, mask)
    weights = prior[:, :, None].expand_as(tokens)  # (B, K, T)
    if variant == "token":
        return weights
    if variant == "sequence":
        # Shifted, not cumsum minus tokens: −inf − (−inf) is no number.
        before = torch.nn.functional.pad(tokens, (1, 0))[:, :, :-1].cumsum(dim=2)
        return torch.log_softmax(weights + before, dim=1)
    raise InputError(f"variant={variant!r} is unknown; needed 'sequence' or 'token'")


def without_passage(
    log_p_eta: Float[Tensor, "B K"],
    log_p_theta: Float[Tensor, "B K T"],
    mask: Bool[Tensor, "B T"],
    *,
    variant: Literal["sequence", "token"] = "sequence",
) -> Float[Tensor, "B K"]:
    """log p(y|x) had passage k not been retrieved, for every k: the exact counterfactual.

    The prior is renormalised over the other passages. For RAG-Sequence this has the closed form

        log p(y|x, without z) = log p(y|x) + log(1 − p(z|x,y)) − log(1 − p_η(z|x)),

    which loses every digit where z explains y alone, so both terms are summed over the other passages instead.
    For RAG-Token the likelihood is taken again under the renormalised prior.

    Args:
        log_p_eta: (B, K) nats, normalised over K; K ≥ 2.
        log_p_theta: (B, K, T) nats, of the gold tokens.
        mask: (B, T), True = scored.
        variant: "sequence" or "token".
    Returns: (B, K) nats; column k is without passage k.
    Raises: ShapeError if the shapes do not fit together or K = 1; InputError for another variant.
    """
    prior, tokens = checked(log_p_eta, log_p_theta, mask)
    num_passages = prior.shape[1]
    if num_passages < 2:
        raise ShapeError("K=1 leaves no passage when one is taken away; needed K ≥ 2")
    columns = []
    for k in range(num_passages):
        others = [j for j in range(num_passages) if j != k]
        columns.append(log_likelihood(log_prior(prior[:, others]), tokens[:, others], mask, variant=variant))
    return torch.stack(columns, dim=1)  # (B, K)
