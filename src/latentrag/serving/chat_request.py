"""What OpenAI's clients may send for a chat completion: what is used, what changes nothing, what cannot be had."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model

from latentrag.errors import InputError
from latentrag.serving import options as limit
from latentrag.serving.failures import Refused
from latentrag.serving.schemas import Answering, Asked, Seed, Stop, Stops
from latentrag.types import Question, Role, Turn

M = TypeVar("M", bound=BaseModel)

IDLE: Mapping[str, tuple[tuple[object, ...], str]] = {
    "n": ((1,), "there is one answer; `best` in latentrag gives the next best ones beside it"),
    "frequency_penalty": ((0,), "there are no penalties; `no_repeat_ngram` in latentrag forbids repetitions"),
    "presence_penalty": ((0,), "there are no penalties; `no_repeat_ngram` in latentrag forbids repetitions"),
    "logit_bias": (({},), "no token can be favoured"),
    "tools": (([],), "this model calls no tools"),
    "functions": (([],), "this model calls no tools"),
    "tool_choice": (("none", "auto"), "this model calls no tools"),
    "function_call": (("none", "auto"), "this model calls no tools"),
    "response_format": (({"type": "text"},), "answers are plain text; /v1/classify chooses among labels"),
    "modalities": ((["text"],), "answers are text"),
    "audio": ((), "answers are text"),
    "store": ((False,), "nothing is kept"),
}
"""Fields of which some values change nothing, beside null; others are refused, and why."""
SILENT = (
    *("user", "metadata", "service_tier", "parallel_tool_calls"),
    *("safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
)
"""Fields that say nothing about the answer."""
_TEXT_PARTS = {"text", "input_text"}
_MAX_IGNORED = 20
_SHOWN = 80


class Message(BaseModel):
    """A message. Of the user's last one the content is the question: a text, or parts of type "text", of which each
    begins a line. Those before it are the conversation, as far as they have such a content; what the system or the
    developer says is the instruction. The others are not read."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: Any = None


class StreamOptions(BaseModel):
    """include_usage: one more chunk at the end, with ``usage`` and no choice."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request in our terms. capped: by name, what a value above the limit was lowered to. num_not_read: messages that
    are no part of the question."""

    question: Question
    options: Answering
    capped: Mapping[str, int]
    num_not_read: int


def _described(name: str) -> tuple[Any, Any]:
    values = [json.dumps(value) for value in IDLE[name][0]] if name in IDLE else ["any value"]
    return Any, Field(None, description=f"Changes nothing: {' or '.join(values) or 'null'}.")


def _with_idle(model: type[M]) -> type[M]:
    """The model with the fields that change nothing."""
    fields: dict[str, Any] = {name: _described(name) for name in (*IDLE, *SILENT)}
    return create_model(model.__name__, __base__=model, __doc__=model.__doc__, __module__=__name__, **fields)


@_with_idle
class ChatRequest(Asked):
    """As OpenAI's, as far as it can be had. What cannot be had is refused; unknown fields are ignored, and named in the
    reply's ``latentrag``. ``latentrag`` holds options of ``/v1/answer``."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: Annotated[str, Field(min_length=1, max_length=limit.MAX_NAME)]
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, description="More than the server's limit counts as the limit.")] | None = (
        None
    )
    max_completion_tokens: Annotated[int, Field(ge=1, description="As max_tokens.")] | None = None
    temperature: Annotated[
        Annotated[float, Field(ge=0, le=2)] | None,
        Field(description="Above 0, the answer is drawn; 0 or absent, it is searched, unless top_p is below 1."),
    ] = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Stop | Stops | None = None
    seed: Seed | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=limit.MAX_TOP_LOGPROBS)] | None = None
    latentrag: Answering = Field(default_factory=Answering)

    @property
    def ignored(self) -> list[str]:
        """Names of fields that are not known here and were not looked at."""
        return [name[: limit.MAX_NAME] for name in sorted(self.model_extra or {})[:_MAX_IGNORED]]

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def num_top(self) -> int:
        """Other tokens wanted beside each one."""
        return self.top_logprobs or 0 if self.logprobs else 0

    def wanted(self, most_tokens: int) -> Wanted:
        """What is asked, in our terms.

        Args:
            most_tokens: the longest answer that can be had.
        Raises: Refused for what cannot be had; InputError for an option that is given twice.
        """
        for name, (values, why) in IDLE.items():
            value = getattr(self, name)
            if value is not None and value not in values:
                raise _refused(f"{name}={_shown(value)} cannot be had: {why}; leave it out", name)
        if self.top_logprobs and not self.logprobs:
            raise _refused(f"top_logprobs={self.top_logprobs} has no effect without logprobs; add it", "top_logprobs")
        options, capped = self._options(most_tokens)
        question, num_read = self._question()
        return Wanted(question, options, capped, len(self.messages) - num_read)

    def _question(self) -> tuple[Question, int]:
        """The conversation up to the user's last message, and how many messages it is made of. Raises: Refused if there
        is none that can be asked, or for an instruction that is too long."""
        places = [place for place, each in enumerate(self.messages) if each.role == "user"]
        text = _text(self.messages[places[-1]].content if places else None)
        if not text.strip() or len(text) > limit.MAX_TEXT:
            raise _refused(
                f"the user's last message has {len(text)} characters; needed 1 to {limit.MAX_TEXT}, some of them text",
                "messages",
            )
        turns = [turn for each in self.messages[: places[-1]] if (turn := _turn(each)) is not None]
        told = "\n".join(turn.text for turn in turns if turn.role == "system")
        if len(told) > limit.MAX_TEXT:
            raise _refused(
                f"the system's messages have {len(told)} characters; needed {limit.MAX_TEXT} at most", "messages"
            )
        said = _newest([turn for turn in turns if turn.role != "system"])
        system = [Turn("system", told)] if told else []
        num_system = sum(turn.role == "system" for turn in turns)
        return Question((*system, *said, Turn("user", text))), num_system + len(said) + 1

    def _options(self, most_tokens: int) -> tuple[Answering, dict[str, int]]:
        """OpenAI's options and ours together, and what was lowered to the limit."""
        chosen = self.latentrag.model_dump(exclude_unset=True)
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        max_tokens: int | None = getattr(self, name)
        capped = {} if max_tokens is None or max_tokens <= most_tokens else {name: most_tokens}
        theirs: dict[str, Any] = {
            "max_tokens": capped.get(name, max_tokens),
            "stop": [self.stop] if isinstance(self.stop, str) else self.stop,
            "seed": self.seed,
        }
        draws = self.temperature is None or self.temperature > 0
        if draws and (self.temperature is not None or self.top_p not in {None, 0, 1}):
            # 0.01 is as good as the limit towards 0, which a search has exactly.
            temperature = None if self.temperature is None else max(self.temperature, 0.01)
            theirs |= {"sample": True, "beams": 1, "temperature": temperature, "top_p": self.top_p or None}
        theirs = {name: value for name, value in theirs.items() if value is not None}
        twice = sorted(set(chosen) & set(theirs))
        if twice:
            raise InputError(f"{twice[0]} is given by latentrag and by another field; leave one of them out")
        if not {**chosen, **theirs}.get("sample"):
            theirs.pop("seed", None)  # a search gives the same answer each time, with any seed
        return Answering(**chosen, **theirs), capped


_ROLES: Mapping[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def _turn(message: Message) -> Turn | None:
    """An earlier message as a turn; None for one that has no text, or not only text."""
    try:
        text = _text(message.content)
    except Refused:
        return None
    role = _ROLES.get(message.role)
    return Turn(role, text) if role is not None and text.strip() else None


def _newest(turns: Sequence[Turn]) -> list[Turn]:
    """The last turns that are read."""
    kept: list[Turn] = []
    room = limit.MAX_HISTORY
    for turn in reversed(turns[-limit.MAX_MESSAGES :]):
        room -= len(turn.text)
        if room < 0:
            break
        kept.append(turn)
    return kept[::-1]


def _text(content: object) -> str:
    """Raises: Refused for what is no text."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    texts = []
    for part in content:
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
        is_text = isinstance(kind, str) and kind in _TEXT_PARTS
        if not is_text or not isinstance(text, str):
            shown = "a part without text" if is_text else f"a part of type {_shown(kind)}"
            raise _refused(f"the user's last message has {shown}, but this model reads text; leave it out", "messages")
        texts.append(text)
    return "\n".join(texts)


def _refused(message: str, param: str) -> Refused:
    return Refused(422, message, "invalid_value", param=param)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
