"""What requests may hold, and what responses look like: the checks, and what OpenAPI shows.

Options are those of ``latentrag.options``, by the names that ``latentrag ask`` has for them, within the server's own
limits. Responses that are an object of ``--json`` are described in ``records``; the others here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

from latentrag.conditions import MAX_CHARS
from latentrag.errors import InputError
from latentrag.options import (
    AskOptions,
    ConfidenceOptions,
    DecodingOptions,
    EvidenceOptions,
    Given,
    OneAnswerOptions,
    OptionField,
    RetrievalOptions,
    options_of,
)
from latentrag.records import PassageRecord
from latentrag.serving import options as limit
from latentrag.types import Question, Role, Variant

if sys.version_info >= (3, 12):
    from typing import NotRequired, TypedDict
else:
    from typing import NotRequired

    from typing_extensions import TypedDict

M = TypeVar("M", bound=BaseModel)
O = TypeVar("O")  # noqa: E741  a dataclass of options

Text = Annotated[str, Field(min_length=1, max_length=limit.MAX_TEXT)]
Listed = Annotated[int, Field(ge=0, le=limit.MAX_LISTED, description="Passages listed, of each kind.")]
Seed = Annotated[int, Field(ge=0, le=limit.MAX_SEED)]
Stop = Annotated[str, Field(min_length=1, max_length=limit.MAX_STOP)]
Stops = Annotated[list[Stop], Field(max_length=limit.MAX_STOPS)]
Ids = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=limit.MAX_ID)]], Field(max_length=limit.MAX_PASSAGES)
]
VersionName = Annotated[str, Field(min_length=1, max_length=limit.MAX_NAME)]
Version = Annotated[
    Annotated[int, Field(ge=1, le=10**9)] | VersionName,
    Field(description="A number, a tag, a date, newest or served."),
]

SERVED: Mapping[str, object] = {
    "k": Field(le=limit.MAX_PASSAGES),
    "beams": Field(le=limit.MAX_BEAMS),
    "best": Field(le=limit.MAX_BEAMS),
    "max_tokens": Field(le=limit.MAX_TOKENS),
    "min_tokens": Field(le=limit.MAX_TOKENS),
    "no_repeat_ngram": Field(le=limit.MAX_TOKENS),
    "length_penalty": Field(ge=-10, le=10),
    "temperature": Field(ge=0.01, le=100),
    "top_k": Field(le=10**6),
    "seed": Field(ge=0, le=limit.MAX_SEED),
}
"""Limits of a server beside those of the options themselves."""
_LISTS: Mapping[str, Any] = {"stop": Stops, "without": Ids}


class Asked(BaseModel):
    """Fields are checked as they are: no text for a number, none that is unknown."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def options(self, options: type[O]) -> O:
        """The options among the fields."""
        return options(**self._values(options))

    def given(self, options: type[O]) -> Given[O]:
        """The options among the fields that were given."""
        return Given.of(options, {name: value for name, value in self._values(options).items() if value is not False})

    def _values(self, options: type) -> dict[str, object]:
        values = {name: getattr(self, field.name, field.default) for name, field in options_of(options).items()}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def made_of(*groups: type) -> Callable[[type[M]], type[M]]:
    """The model with a field for every public option of these dataclasses; of ``Given[T]`` each may be left out."""

    def made(model: type[M]) -> type[M]:
        fields: dict[str, Any] = {}
        for group in groups:
            is_given = get_origin(group) is Given
            for field in options_of(get_args(group)[0] if is_given else group).values():
                if field.option.public:
                    fields[field.name] = _field(field, is_given=is_given)
        return create_model(model.__name__, __base__=model, __doc__=model.__doc__, __module__=__name__, **fields)

    return made


def _field(field: OptionField, *, is_given: bool) -> tuple[Any, Any]:
    option, default = field.option, field.default
    type_: Any = _LISTS.get(field.name, field.type)
    if is_given and default is not False:
        type_, default = type_ | None, None
    own = Field(ge=option.ge, gt=option.gt, le=option.le, lt=option.lt, description=field.help)
    return Annotated[type_, own, SERVED.get(field.name, Field())], list(default) if default == () else default


class Retrieval(Asked):
    """Which version of the memory, and which of its passages."""

    where: Annotated[
        str | None,
        Field(
            max_length=MAX_CHARS,
            description="A condition on fields, as \"date >= '2024-01-01' and source like 'manual/%'\": only passages "
            "that satisfy it are retrieved. docs/filters.md has the language.",
        ),
    ] = None

    as_of: Annotated[Version | None, Field(description="Of the memory; null: the one that is served.")] = None


class Message(BaseModel):
    """A turn of a conversation; what the system says is the instruction."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Role
    content: Annotated[str, Field(max_length=limit.MAX_TEXT)]


class Questioned(Retrieval):
    """A question, or the messages of a conversation, of which the last is the user's."""

    question: Text | None = None
    messages: Annotated[
        list[Message] | None,
        Field(
            min_length=1,
            max_length=limit.MAX_MESSAGES,
            description="A conversation in place of a question: its turns, the last of which asks.",
        ),
    ] = None

    def asked(self) -> str | Question:
        """x. Raises: InputError for both or neither, or a conversation that does not end with a question."""
        if (self.question is None) == (self.messages is None):
            got = "neither question nor messages" if self.question is None else "question and messages"
            raise InputError(f"got {got}; needed one of them")
        if self.messages is None:
            return self.question or ""
        return Question.of([message.model_dump() for message in self.messages])


@made_of(OneAnswerOptions, EvidenceOptions, ConfidenceOptions, Given[DecodingOptions])
class Answering(Retrieval):
    """The options of ``latentrag ask``."""


class AnswerRequest(Answering, Questioned):
    """A question or a conversation, with the options of ``latentrag ask``. k × beams is 320 at most.

    Sets of two passages and "no passage", where the model reads them, count as passages.
    """


@made_of(AskOptions, EvidenceOptions)
class ScoreRequest(Retrieval):
    """A question x and an answer y to it; x may be the messages of a conversation.

    Passages, with sets of two and "no passage" where the model reads them, are 320 at most.
    """

    x: Text | Annotated[list[Message], Field(min_length=1, max_length=limit.MAX_MESSAGES)]
    y: Annotated[str, Field(max_length=limit.MAX_TEXT)]

    def asked(self) -> str | Question:
        """x. Raises: InputError for a conversation that does not end with a question."""
        return self.x if isinstance(self.x, str) else Question.of([message.model_dump() for message in self.x])


@made_of(AskOptions)
class ClassifyRequest(Questioned):
    """A question or a conversation, and the labels to choose from. k × their number is 320 at most.

    Sets of two passages and "no passage", where the model reads them, count as passages.
    """

    labels: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=limit.MAX_LABEL)]],
        Field(min_length=2, max_length=limit.MAX_LABELS),
    ]


@made_of(RetrievalOptions)
class SearchRequest(Questioned):
    """A question or a conversation whose passages are wanted."""


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


class FoundRecord(PassageRecord):
    """A passage that was found."""

    score: float
    prior: float


class SearchRecord(TypedDict):
    """Passages, best first; ``missing`` as in an answer."""

    question: str
    memory_version: int
    passages: list[FoundRecord]
    missing: NotRequired[list[str]]


class VersionRecord(TypedDict):
    """A version of the memory."""

    version: int
    time: str
    passages: int
    change: str
    tags: list[str]


class SyncedRecord(TypedDict):
    """A folder that ``latentrag index sync`` keeps the memory equal to."""

    name: str
    files: int
    passages: int
    time: str


class MemoryRecord(TypedDict):
    """The memory: what is served, its versions (the newest 100), tags, and synced folders.

    ``follows_newest``: no version was chosen with use, and the newest is served. ``choice_kept``: false if the memory
    cannot be written, so that this process alone knows which version was chosen, until it ends.
    """

    name: str
    version: int
    passages: int
    encoder: str
    newest: int
    follows_newest: bool
    choice_kept: bool
    tags: dict[str, int]
    versions: list[VersionRecord]
    synced: list[SyncedRecord]


class ServedModelRecord(TypedDict):
    """The model that answers. ``feedback``: whether `POST /api/feedback` keeps what users think of answers; ``writes``:
    whether the client may change documents; ``exchanges``: whether it may change which version and model are served."""

    name: str
    variant: Variant
    k: int
    device: str
    loaded: str
    feedback: bool
    writes: bool
    exchanges: bool


class PassageNameRecord(TypedDict):
    """A passage by its names."""

    id: str
    title: str


class ChangesRecord(TypedDict):
    """How many passages, and the first of them in the order of the memory."""

    count: int
    passages: list[PassageNameRecord]


EncodersRecord = TypedDict("EncodersRecord", {"from": str, "to": str})
EncodersRecord.__doc__ = "What encoded the passages of the two versions."
_DiffVersions = TypedDict("_DiffVersions", {"from": int, "to": int})


class DiffRecord(_DiffVersions):
    """What leads from one version of the memory to another, as ``latentrag index diff``.

    ``changed``: another text, title, source, page or place; titles are those of ``to``. ``reencoded``: the vectors are
    another encoder's.
    """

    added: ChangesRecord
    changed: ChangesRecord
    removed: ChangesRecord
    reencoded: bool
    encoders: EncodersRecord


class ModelRecord(TypedDict):
    """A model, as OpenAI's clients list them."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsRecord(TypedDict):
    """The models: one."""

    object: Literal["list"]
    data: list[ModelRecord]


class StatusRecord(TypedDict):
    """How the server is."""

    status: str


class ErrorDetail(TypedDict):
    """What went wrong: got, needed, remedy."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorRecord(TypedDict):
    """The body of every response that is no success."""

    error: ErrorDetail
