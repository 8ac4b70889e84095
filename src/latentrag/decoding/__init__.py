"""From p(y_i|x,y_<i) to answers: one marginal beam, the paper's Thorough and Fast Decoding, classification (§2.5)."""

from latentrag.decoding.beam import marginal_beam
from latentrag.decoding.classify import label_log_likelihoods
from latentrag.decoding.decoded import Decoded
from latentrag.decoding.rescore import fast, rescored, thorough
from latentrag.decoding.sample import marginal_sample
from latentrag.decoding.watch import Watcher

__all__ = [
    "Decoded",
    "Watcher",
    "fast",
    "label_log_likelihoods",
    "marginal_beam",
    "marginal_sample",
    "rescored",
    "thorough",
]
