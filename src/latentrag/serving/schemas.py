"""What requests may hold, and what responses look like: the checks, and what OpenAPI shows.

Names of options are those of ``latentrag ask``, those of responses are those of ``--json``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from latentrag.serving import options as limit
from latentrag.types import Decoding, Variant

Text = Annotated[str, Field(min_length=1, max_length=limit.MAX_TEXT)]
Passages = Annotated[int, Field(ge=1, le=limit.MAX_PASSAGES)]
Listed = Annotated[int, Field(ge=0, le=limit.MAX_LISTED, description="Passages listed, of each kind.")]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Stop = Annotated[str, Field(min_length=1, max_length=limit.MAX_STOP)]
Stops = Annotated[list[Stop], Field(max_length=limit.MAX_STOPS)]
VersionName = Annotated[str, Field(min_length=1, max_length=limit.MAX_NAME)]
Version = Annotated[
    Annotated[int, Field(ge=1, le=10**9)] | VersionName,
    Field(description="A number, a tag, a date, newest or served."),
]
LogProb = Annotated[float | None, Field(description="Nats; null is −∞.")]
Probability = Annotated[float, Field(ge=0, le=1.001)]


class Asked(BaseModel):
    """Fields are checked as they are: no text for a number, none that is unknown."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Retrieval(Asked):
    """Which passages."""

    k: Annotated[Passages | None, Field(description="Passages to retrieve; null: the model's own number.")] = None
    as_of: Annotated[Version | None, Field(description="Of the memory; null: the one that is served.")] = None


class Modelled(Retrieval):
    """Which distribution."""

    variant: Annotated[Variant | None, Field(description="null: the model's own.")] = None


class AnswerOptions(Modelled):
    """The options of ``latentrag ask``."""

    decoding: Decoding = "exact"
    beams: Annotated[
        Annotated[int, Field(ge=1, le=limit.MAX_BEAMS)] | None,
        Field(description="Hypotheses kept alive, or samples drawn."),
    ] = None
    best: Annotated[
        Annotated[int, Field(ge=1, le=limit.MAX_BEAMS)] | None,
        Field(description="Hypotheses to find, `beams` at most; null: the model's own number, usually one."),
    ] = None
    max_tokens: Annotated[int, Field(ge=1, le=limit.MAX_TOKENS)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=limit.MAX_TOKENS)] | None = None
    no_repeat_ngram: Annotated[int, Field(ge=0, le=limit.MAX_TOKENS)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    stop: Stops | None = None
    sample: bool = False
    temperature: Annotated[float, Field(ge=0.01, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0, le=10**6)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = None
    without: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=limit.MAX_ID)]],
        Field(max_length=limit.MAX_PASSAGES, description="Ids of passages that count as not retrieved."),
    ] = []

    def decoding_options(self) -> dict[str, Any]:
        """Under the names of ``DecodingOptions``."""
        return {
            "num_beams": self.beams,
            "num_best": self.best,
            "max_tokens": self.max_tokens,
            "min_tokens": self.min_tokens,
            "no_repeat_ngram_size": self.no_repeat_ngram,
            "length_penalty": self.length_penalty,
            "stop": tuple(self.stop) if self.stop else None,
            "sample": self.sample or None,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": self.seed,
        }


class AnswerRequest(AnswerOptions):
    """A question, with the options of ``latentrag ask``."""

    question: Text


class ScoreRequest(Modelled):
    """A question x and an answer y to it."""

    x: Text
    y: Annotated[str, Field(max_length=limit.MAX_TEXT)]


class ClassifyRequest(Modelled):
    """A question and the labels to choose from."""

    question: Text
    labels: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=limit.MAX_LABEL)]],
        Field(min_length=2, max_length=limit.MAX_LABELS),
    ]


class SearchRequest(Retrieval):
    """A question whose passages are wanted."""

    question: Text


class Use(Asked):
    """Serve this version from now on, as ``latentrag index use``."""

    action: Literal["use"]
    version: Version


class Tag(Asked):
    """Name a version, as ``latentrag index tag``."""

    action: Literal["tag"]
    name: Annotated[str, Field(min_length=1, max_length=limit.MAX_NAME)]
    version: Version | None = None


class Untag(Asked):
    """Take a name away."""

    action: Literal["untag"]
    name: Annotated[str, Field(min_length=1, max_length=limit.MAX_NAME)]


class Reload(Asked):
    """Load the model anew, from where it was loaded when the server started."""

    action: Literal["reload"]


class DiffRequest(BaseModel):
    """Which versions differ, and how much of it is listed."""

    model_config = ConfigDict(extra="forbid")

    before: Annotated[VersionName, Field(alias="from", description="A number, a tag, a date, newest or served.")]
    after: Annotated[VersionName, Field(alias="to", description="Another, older or newer.")]
    limit: Listed = 20


MemoryRequest = Annotated[Use | Tag | Untag, Field(discriminator="action")]

# Responses


class PassageOut(BaseModel):
    """A passage and where it comes from; offsets in characters."""

    id: str
    title: str
    text: str
    source: str
    start: int
    end: int
    page: int | None


class SourceOut(PassageOut):
    """A passage with its share in the answer."""

    prior: Probability
    posterior: Probability


class TokenOut(BaseModel):
    """A token, with a posterior for each source."""

    text: str
    log_prob: LogProb
    posterior: list[Probability]


class HypothesisOut(BaseModel):
    """A candidate answer."""

    text: str
    log_prob: LogProb
    finished: bool


class AnswerOut(BaseModel):
    """The object of ``latentrag ask --json``."""

    question: str
    answer: str
    log_prob: LogProb
    closed_book_log_prob: LogProb
    variant: Variant
    decoding: Decoding
    memory_version: int
    sources: list[SourceOut]
    tokens: list[TokenOut]
    hypotheses: list[HypothesisOut]
    log_p_eta: Annotated[list[LogProb], Field(description="log p_η(z|x) of each source.")]
    log_p_theta: Annotated[
        list[list[LogProb]],
        Field(description="log p_θ(y_i|x,z,y_<i): for each source each token of log_prob, the end token included."),
    ]


class ScoreSourceOut(BaseModel):
    """A passage with its share in y."""

    id: str
    title: str
    prior: Probability
    posterior: Probability


class ScoreOut(BaseModel):
    """The object of ``latentrag score --json``."""

    x: str
    y: str
    log_likelihood: LogProb
    closed_book_log_likelihood: LogProb
    num_tokens: int
    posterior: list[Probability]
    sources: list[ScoreSourceOut]
    without_passage: list[LogProb]


class LabelOut(BaseModel):
    """A label; its probability is among the labels given."""

    text: str
    probability: Probability
    log_likelihood: LogProb


class ClassifyOut(BaseModel):
    """The object of ``latentrag classify --json``."""

    question: str
    label: str
    labels: list[LabelOut]
    variant: Variant
    memory_version: int
    sources: list[SourceOut]


class FoundOut(PassageOut):
    """A passage that was found."""

    score: float
    prior: Probability


class SearchOut(BaseModel):
    """Passages, best first."""

    question: str
    memory_version: int
    passages: list[FoundOut]


class VersionOut(BaseModel):
    """A version of the memory."""

    version: int
    time: str
    passages: int
    change: str
    tags: list[str]


class SyncedOut(BaseModel):
    """A folder that ``latentrag index sync`` keeps the memory equal to."""

    name: str
    files: int
    passages: int
    time: str


class MemoryOut(BaseModel):
    """The memory: what is served, its versions (the newest 100), tags, and synced folders."""

    name: str
    version: int
    passages: int
    encoder: str
    newest: int
    follows_newest: Annotated[bool, Field(description="No version was chosen with use.")]
    tags: dict[str, int]
    versions: list[VersionOut]
    synced: list[SyncedOut]


class ServedModelOut(BaseModel):
    """The model that answers."""

    name: str
    variant: Variant
    k: int
    loaded: str


class PassageNameOut(BaseModel):
    """A passage by its names."""

    id: str
    title: str


class ChangesOut(BaseModel):
    """How many passages, and the first of them in the order of the memory."""

    count: int
    passages: list[PassageNameOut]


class EncodersOut(BaseModel):
    """What encoded the passages of the two versions."""

    before: Annotated[str, Field(alias="from")]
    after: Annotated[str, Field(alias="to")]


class DiffOut(BaseModel):
    """What leads from one version of the memory to another, as ``latentrag index diff``."""

    before: Annotated[int, Field(alias="from")]
    after: Annotated[int, Field(alias="to")]
    added: ChangesOut
    changed: Annotated[
        ChangesOut, Field(description="Another text, title, source, page or place; titles are those of `to`.")
    ]
    removed: ChangesOut
    reencoded: Annotated[bool, Field(description="The vectors are another encoder's.")]
    encoders: EncodersOut


class ModelOut(BaseModel):
    """A model, as OpenAI's clients list them."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsOut(BaseModel):
    """The models: one."""

    object: Literal["list"]
    data: list[ModelOut]


class StatusOut(BaseModel):
    """How the server is."""

    status: str


class ErrorDetail(BaseModel):
    """What went wrong: got, needed, remedy."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorOut(BaseModel):
    """The body of every response that is no success."""

    error: ErrorDetail
