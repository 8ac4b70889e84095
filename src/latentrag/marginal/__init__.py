"""The paper's mathematics: two small tensors in, likelihoods, posteriors and losses out (Lewis et al. 2020, §2).

    log_p_eta    (B, K)     how much the retriever believes in each passage
    log_p_theta  (B, K, T)  how well the generator explains each token of y from each passage

Pure functions of tensors: no models, no files, no state. Natural logarithms; float32 or better inside, whatever
comes in; differentiable.
"""

from latentrag.marginal.likelihood import log_likelihood, sequence_log_likelihood, token_log_likelihood
from latentrag.marginal.mixture import mixture
from latentrag.marginal.objectives import emdr2, loop, nll, pdist, smoothed_nll
from latentrag.marginal.posterior import (
    marginal_weights,
    prefix_posterior,
    sequence_posterior,
    token_posterior,
    without_passage,
)
from latentrag.marginal.prior import log_prior

__all__ = [
    "emdr2",
    "log_likelihood",
    "log_prior",
    "loop",
    "marginal_weights",
    "mixture",
    "nll",
    "pdist",
    "prefix_posterior",
    "sequence_log_likelihood",
    "sequence_posterior",
    "smoothed_nll",
    "token_log_likelihood",
    "token_posterior",
    "without_passage",
]
