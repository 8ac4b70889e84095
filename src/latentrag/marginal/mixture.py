"""The prior over passages where the question can be read in several ways: one more latent value, summed out."""

import torch
from jaxtyping import Float
from torch import Tensor

from latentrag.errors import ShapeError
from latentrag.marginal.prior import accurate


def mixture(
    log_p_r: Float[Tensor, " R"], logits: Float[Tensor, "R N"], num_candidates: int | None = None
) -> tuple[Float[Tensor, " N"], Float[Tensor, "R N"]]:
    """The logits of a mixture of priors over the same N passages, and which reading each passage is owed to.

        p(z|h) = Σ_r p(r|h) p_η(z|r),   p_η(z|r) = e^{s_r(z)} / Z_r,   Z_r = Σ_z e^{s_r(z)} over the candidates

    Logits are log p(z|h) + log Σ_r p(r|h) Z_r, so that those of a single reading are its own s_r(z), and can be
    compared with logits that do not depend on the question ("no passage").

    Args:
        log_p_r: (R,) nats, normalised.
        logits: (R, N) s_r(z).
        num_candidates: how many of the N passages, the first ones, Z_r is the sum of; None: all. The others get logits
            by the same formula and change none.
    Returns: (N,) logits, and (R, N) p(r|z,h), which sums to one over R.
    Raises: ShapeError unless there is a row of logits for each reading.
    """
    if logits.dim() != 2 or log_p_r.shape != logits.shape[:1]:
        raise ShapeError(f"log_p_r has shape {tuple(log_p_r.shape)}, logits {tuple(logits.shape)}; needed (R,), (R, N)")
    logits = accurate(logits)
    if len(logits) == 1:
        return logits[0], torch.ones_like(logits)
    log_z = logits[:, :num_candidates].logsumexp(dim=1)  # (R,)
    joint = log_p_r[:, None] + logits - log_z[:, None]  # (R, N)
    log_p_z = joint.logsumexp(dim=0)  # (N,)
    return log_p_z + (log_p_r + log_z).logsumexp(dim=0), (joint - log_p_z).exp()
