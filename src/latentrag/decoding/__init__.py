"""From p(y_i|x,y_<i) to answers: one marginal beam, the paper's Thorough and Fast Decoding, classification (§2.5)."""

from collections.abc import Callable, Mapping
from functools import partial

from latentrag.decoding.answering import Answered, Answering, Begun, Sources
from latentrag.decoding.beam import BeamSearch, marginal_beam
from latentrag.decoding.classify import label_log_likelihoods
from latentrag.decoding.enumerate import Enumeration
from latentrag.decoding.loop import Decided, Decoded, Ended, Loop, Search, run
from latentrag.decoding.rescore import Rescoring, fast, thorough
from latentrag.decoding.sample import Sampling

SEARCHES: Mapping[str, Callable[..., Search]] = {
    "exact": BeamSearch,
    "thorough": partial(Rescoring, thorough),
    "fast": partial(Rescoring, fast),
    "sample": Sampling,
    "enumerate": Enumeration,
}
"""How to decode. Each takes generator, prepared, log_p_eta, variant and options."""

__all__ = [
    "SEARCHES",
    "Answered",
    "Answering",
    "BeamSearch",
    "Begun",
    "Decided",
    "Decoded",
    "Ended",
    "Enumeration",
    "Loop",
    "Sampling",
    "Search",
    "Sources",
    "fast",
    "label_log_likelihoods",
    "marginal_beam",
    "run",
    "thorough",
]
