"""The values that pass between the rooms. No I/O, nothing heavy to import.

Dimensions, everywhere in latentrag:

    B  batch: questions handled together       T  target tokens
    K  latent values of a question             V  vocabulary of the generator
    M  beams (hypotheses kept alive)           D  embedding
    N  passages in the memory                  S  input tokens of the generator

Symbols of Lewis et al. (2020): x input (the question), y target (the answer), z latent value, η retriever,
θ generator. Logarithms are natural: every ``log_*`` is in nats.

A latent value is a tuple of passages: one passage in the paper, ``()`` for the generator alone, several for a set.
"""

from latentrag.types.answers import (
    Answer,
    Classification,
    Conversation,
    Decoding,
    Hypothesis,
    Label,
    NoPassage,
    Reading,
    Score,
    Sentence,
    Source,
    Targets,
    Token,
    Variant,
)
from latentrag.types.passages import (
    KEPT_ATTRIBUTES,
    Document,
    Latent,
    LatentLists,
    Passage,
    PassageLists,
    Scalar,
    no_passages,
    singles,
)
from latentrag.types.questions import Asked, Messages, Question, Role, Turn, question_texts, turns_of
from latentrag.types.retrieval import (
    AsRead,
    Candidates,
    Found,
    Readings,
    Retrieved,
    SearchResult,
    Together,
    WordResult,
    distinct_passages,
)

__all__ = [
    "KEPT_ATTRIBUTES",
    "Answer",
    "AsRead",
    "Asked",
    "Candidates",
    "Classification",
    "Conversation",
    "Decoding",
    "Document",
    "Found",
    "Hypothesis",
    "Label",
    "Latent",
    "LatentLists",
    "Messages",
    "NoPassage",
    "Passage",
    "PassageLists",
    "Question",
    "Reading",
    "Readings",
    "Retrieved",
    "Role",
    "Scalar",
    "Score",
    "SearchResult",
    "Sentence",
    "Source",
    "Targets",
    "Together",
    "Token",
    "Turn",
    "Variant",
    "WordResult",
    "distinct_passages",
    "no_passages",
    "question_texts",
    "singles",
    "turns_of",
]
