"""q(x) and d(z): questions and passages as vectors (Lewis et al. 2020, §2.2)."""

from latentrag.encoder.dpr import DprPassageEncoder, DprQueryEncoder
from latentrag.encoder.loading import load_passage_encoder, load_query_encoder
from latentrag.encoder.sentence import SentenceEncoder

__all__ = [
    "DprPassageEncoder",
    "DprQueryEncoder",
    "SentenceEncoder",
    "load_passage_encoder",
    "load_query_encoder",
]
