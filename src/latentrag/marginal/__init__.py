"""The paper's mathematics: two small tensors in, likelihoods and posteriors out (Lewis et al. 2020, §2).

    log_p_eta    (B, K)     how much the retriever believes in each passage
    log_p_theta  (B, K, T)  how well the generator explains each token of y from each passage

Pure functions of tensors: no models, no files, no state. Natural logarithms; float32 or better inside, whatever
comes in; differentiable.
"""

from latentrag.marginal.likelihood import sequence_log_likelihood, token_log_likelihood
from latentrag.marginal.posterior import prefix_posterior, sequence_posterior, token_posterior, without_passage
from latentrag.marginal.prior import log_prior

__all__ = [
    "log_prior",
    "prefix_posterior",
    "sequence_log_likelihood",
    "sequence_posterior",
    "token_log_likelihood",
    "token_posterior",
    "without_passage",
]
