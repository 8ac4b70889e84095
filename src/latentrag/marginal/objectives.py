"""What training minimises: one loss for each example, in nats (Lewis et al. 2020, §2.4, and its successors).

Every loss is differentiable in both tensors, so that one pair (x, y) teaches the retriever which passages help and
the generator how to use them. EMDR², PDist and LOOP separate the two: the generator learns to read, and the
retriever learns from what the generator made of each passage.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentrag.errors import InputError, ShapeError
from latentrag.marginal.likelihood import checked, log_likelihood
from latentrag.marginal.posterior import without_passage
from latentrag.marginal.prior import accurate


def nll(
    log_p_eta: Float[Tensor, "B K"],
    log_p_theta: Float[Tensor, "B K T"],
    mask: Bool[Tensor, "B T"],
    *,
    variant: Literal["sequence", "token"],
) -> Float[Tensor, "B"]:
    """Negative marginal log-likelihood, the paper's loss (Lewis et al. 2020, §2.4).

        L = −log p(y|x)

    Its gradient with respect to the score of z is prior − posterior.

    Args:
        log_p_eta: (B, K) nats, normalised over K.
        log_p_theta: (B, K, T) nats, of the gold tokens.
        mask: (B, T), True = scored.
        variant: "sequence" or "token".
    Returns: (B,) nats.
    Raises: ShapeError if the shapes do not fit together; InputError for another variant.
    """
    return -log_likelihood(log_p_eta, log_p_theta, mask, variant=variant)


def smoothed_nll(
    log_p_eta: Float[Tensor, "B K"],
    log_p_theta: Float[Tensor, "B K T"],
    mean_log_p: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    variant: Literal["sequence", "token"],
    smoothing: float,
) -> Float[Tensor, "B"]:
    """Label smoothing of the marginal: the gold token shares a little of its mass with the whole vocabulary.

        L = −(1−ε) log p(y|x) − ε Σ_i 1/V Σ_v log p(v|x,y_<i)

    This is the cross-entropy of the smoothed labels with p(·|x,y_<i), the distribution that is decoded from, after
    the passages have been summed out.

    Args:
        log_p_eta: (B, K) nats, normalised over K.
        log_p_theta: (B, K, T) nats, of the gold tokens.
        mean_log_p: (B, T) nats, 1/V Σ_v log Σ_z w_{i,z} p_θ(v|x,z,y_<i) with w = ``marginal_weights``.
        mask: (B, T), True = scored.
        variant: "sequence" or "token".
        smoothing: ε, from 0 (``nll``) to 1.
    Returns: (B,) nats.
    Raises: ShapeError if the shapes do not fit together; InputError for another variant or smoothing.
    """
    if not 0 <= smoothing <= 1:
        raise InputError(f"smoothing={smoothing} is no share of the probability; needed 0 to 1")
    loss = nll(log_p_eta, log_p_theta, mask, variant=variant)
    if smoothing == 0:  # 0 · inf would be NaN where the model rules a token out
        return loss
    return (1 - smoothing) * loss - smoothing * _sum_of_tokens(mean_log_p, mask, name="mean_log_p")


def emdr2(
    log_p_eta: Float[Tensor, "B K"],
    log_p_theta: Float[Tensor, "B K T"],
    mask: Bool[Tensor, "B T"],
    log_p_together: Float[Tensor, "B T"],
    *,
    variant: Literal["sequence", "token"],
) -> Float[Tensor, "B"]:
    """EMDR² (Sachan et al. 2021): a generator that reads all passages at once, a retriever taught by single ones.

        L = −log p(y|x,Z) − log Σ_z p_η(z|x) sg(p_θ(y|x,z))

    sg stops the gradient: the first term trains the generator, the second the retriever. With the marginal itself
    in the place of p(y|x,Z), the prior stopped there, the gradient is that of ``nll``; what is new is the reader.

    Differs: variant="token" marginalises the second term token by token, which the original does not have.

    Args:
        log_p_eta: (B, K) nats, normalised over K.
        log_p_theta: (B, K, T) nats, of the gold tokens, each passage alone. Gets no gradient.
        mask: (B, T), True = scored.
        log_p_together: (B, T) nats, log p(y_i|x,Z,y_<i) of the generator that reads all passages at once.
        variant: "sequence" or "token".
    Returns: (B,) nats.
    Raises: ShapeError if the shapes do not fit together; InputError for another variant.
    """
    retriever_loss = nll(log_p_eta, log_p_theta.detach(), mask, variant=variant)
    return retriever_loss - _sum_of_tokens(log_p_together, mask, name="log_p_together")


def pdist(
    log_p_eta: Float[Tensor, "B K"],
    log_p_theta: Float[Tensor, "B K T"],
    mask: Bool[Tensor, "B T"],
    *,
    variant: Literal["sequence", "token"],
    temperature: float = 1.0,
) -> Float[Tensor, "B"]:
    """Perplexity distillation (Izacard et al. 2022): the prior learns how well each passage explains y.

        L = −log Σ_z sg(p_η(z|x)) p_θ(y|x,z) + KL(t ‖ p_η),   t_z ∝ exp(mean_i log p_θ(y_i|x,z,y_<i) / τ), stopped

    The first term is ``nll`` with the prior stopped and trains the generator alone; the gradient of the second with
    respect to the score of z is p_η(z|x) − t_z.

    Differs: the original's reader takes all passages at once; ours is the paper's marginal.

    Args:
        log_p_eta: (B, K) nats, normalised over K. A passage taken out by −inf stays out.
        log_p_theta: (B, K, T) nats, of the gold tokens.
        mask: (B, T), True = scored.
        variant: "sequence" or "token".
        temperature: τ > 0; below 1 the target is sharper.
    Returns: (B,) nats.
    Raises: ShapeError if the shapes do not fit together; InputError for another variant or temperature.
    """
    prior, tokens = checked(log_p_eta, log_p_theta, mask)
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    usefulness = tokens.detach().sum(dim=2) / lengths  # (B, K)
    reader_loss = nll(prior.detach(), tokens, mask, variant=variant)
    return reader_loss + _kl_to_prior(usefulness, prior, temperature=temperature)


def loop(
    log_p_eta: Float[Tensor, "B K"],
    log_p_theta: Float[Tensor, "B K T"],
    mask: Bool[Tensor, "B T"],
    *,
    variant: Literal["sequence", "token"],
    temperature: float = 1.0,
) -> Float[Tensor, "B"]:
    """Leave-one-out perplexity distillation (Izacard et al. 2022): a passage is worth what y loses without it.

        L = −log Σ_z sg(p_η(z|x)) p_θ(y|x,z) + KL(t ‖ p_η),   t_z ∝ exp(−log p(y|x, without z) / τ), stopped

    log p(y|x, without z) is exact here (``without_passage``). With one passage there is nothing to compare: the
    second term is 0.

    Differs: the original's reader takes all passages at once; ours is the paper's marginal.

    Args:
        log_p_eta: (B, K) nats, normalised over K. A passage taken out by −inf stays out; two must be left in.
        log_p_theta: (B, K, T) nats, of the gold tokens.
        mask: (B, T), True = scored.
        variant: "sequence" or "token".
        temperature: τ > 0; below 1 the target is sharper.
    Returns: (B,) nats.
    Raises: ShapeError if the shapes do not fit together; InputError for another variant or temperature.
    """
    prior, tokens = checked(log_p_eta, log_p_theta, mask)
    usefulness = torch.zeros_like(prior)  # (B, K)
    if prior.shape[1] > 1:
        usefulness = -without_passage(prior.detach(), tokens.detach(), mask, variant=variant)
    reader_loss = nll(prior.detach(), tokens, mask, variant=variant)
    return reader_loss + _kl_to_prior(usefulness, prior, temperature=temperature)


def _kl_to_prior(usefulness: Tensor, log_p_eta: Tensor, *, temperature: float) -> Tensor:
    """(B,) KL(softmax(usefulness / temperature) ‖ p_η); usefulness (B, K) has no gradient."""
    if not temperature > 0:
        raise InputError(f"temperature={temperature} makes no distribution; needed more than 0")
    out = log_p_eta.isneginf()
    target = torch.softmax((usefulness / temperature).masked_fill(out, -torch.inf), dim=1)  # (B, K)
    # Of a passage that is out, 0 · −inf: filled, so that it adds nothing to the sum or the gradient.
    return (torch.xlogy(target, target) - target * log_p_eta.masked_fill(out, 0.0)).sum(dim=1)


def _sum_of_tokens(log_p: Tensor, mask: Tensor, *, name: str) -> Tensor:
    """(B,) the sum of (B, T) over the scored positions, in float32 or better."""
    if log_p.shape != mask.shape:
        raise ShapeError(f"{name} has shape {tuple(log_p.shape)}; the mask needs {tuple(mask.shape)}")
    return accurate(log_p).masked_fill(~mask, 0.0).sum(dim=1)
