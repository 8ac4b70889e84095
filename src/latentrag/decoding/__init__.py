"""From p(y_i|x,y_<i) to answers: one marginal beam, the paper's Thorough and Fast Decoding, classification (§2.5)."""

from collections.abc import Callable, Mapping
from functools import partial

from latentrag.decoding.answering import Answered, Answering, Begun, Sources, apart, decodes_apart
from latentrag.decoding.beam import BeamSearch, marginal_beam
from latentrag.decoding.classify import label_log_likelihoods
from latentrag.decoding.enumerate import Enumeration
from latentrag.decoding.loop import Decided, Decoded, Ended, Failed, Loop, Search, run
from latentrag.decoding.rescore import Rescoring, fast, quickly, thorough, thoroughly
from latentrag.decoding.sample import Sampling

SEARCHES: Mapping[str, Callable[..., Search]] = {
    "exact": BeamSearch,
    "thorough": partial(Rescoring, thoroughly),
    "fast": partial(Rescoring, quickly),
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
    "Failed",
    "Loop",
    "Sampling",
    "Search",
    "Sources",
    "apart",
    "decodes_apart",
    "fast",
    "label_log_likelihoods",
    "marginal_beam",
    "run",
    "thorough",
]
